"""im2col + matrix product, as in the article: unfold a block of pixels, multiply it by the weights.

The block of oh * ow is a parameter; one block for the whole image is the textbook's version. The
unfolded block is written straight into the panels the product reads (`fused`), or first as a
matrix and then packed. K is cut into blocks of `kc` input channels; partial sums wait in the
output. In NCHW vectors are pixels, else output channels.
"""

from __future__ import annotations

from fastrun.kernels.codegen.builder import Int, Kernel, Module
from fastrun.kernels.codegen.micro_kernel import check_tile
from fastrun.kernels.codegen.tile_choice import best_tile
from fastrun.kernels.codegen.tiling import Tiles, sweep, tile_count
from fastrun.kernels.conv.im2col.forms import Channels, Planar, pixel_lanes
from fastrun.kernels.conv.im2col.product import Chunk, Form, chunks
from fastrun.kernels.conv.im2col.schedule import Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate, check, check_operands, check_sizes


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.kernel == (1, 1) and p.stride == (1, 1) and not any(p.padding):
        return "a 1x1 filter leaves nothing to unfold"
    return None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    lanes = pixel_lanes(p, cpu)
    pixels = p.oh * p.ow
    _, rows, cols = best_tile(1, min(p.group_oc, 16), -(-pixels // lanes), cpu)
    # The article's formula: the unfolded panel fills L2, here half of it, for the rest of K's
    # operands pass through as well.
    block = max(cols * lanes, cpu.l2 // 2 // F32.bytes(p.depth))
    return Schedule("NCHW", rows, cols, 1, min(block, pixels), p.group_c, fused=True)


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s)
    check_operands(p, io)
    check(why_not(p, cpu) is None, "nothing to unfold")
    check(io.src.layout == io.dst.layout, "im2col keeps the layout")
    check(io.dst.dense and io.add.dense, "rows of output pixels have gaps between them")
    check(1 <= s.kc <= p.group_c, "a K block has more channels than there are")
    form: Form
    form = Planar(p, s, cpu, io) if io.src.layout.name == "NCHW" else Channels(p, s, cpu, io)
    for pixels in form.tiles:
        for panel in form.panels:
            rows, cols = form.shape(pixels, panel)
            check_tile(cpu, rows, cols, min(s.unroll, p.depth))
    per_task = form.block_tiles
    tasks = -(-tile_count(form.tiles) // per_task)
    matrix_floats = per_task * form.tile_pixels * s.kc * p.kernel[0] * p.kernel[1]

    module = Module(cpu)
    with module.stage("im2col", p.n * p.groups * tasks) as (k, task):
        block, rest = task % tasks, task // tasks
        form.enter(k, image=rest // p.groups, group=rest % p.groups, matrix_floats=matrix_floats)
        for chunk in chunks(k, p.group_c, s.kc):
            _add_block(k, form, s, chunk, block * per_task, per_task)
    buffers = 1 if s.fused else 2
    return module.program(io, form.pack_weights, local_bytes=F32.bytes(buffers * matrix_floats))


def _add_block(k: Kernel, form: Form, s: Schedule, chunk: Chunk, first: Int, count: int) -> None:
    """Unfold one block of K for `count` register tiles from `first` on, and multiply it."""

    def unfold(tile: Tiles, at: Int) -> None:
        form.unfold(chunk, tile, at, first)

    def pack(tile: Tiles, at: Int) -> None:
        form.pack(chunk, tile, at, first)

    def multiply(panel: Tiles, channel: Int) -> None:
        def product(tile: Tiles, at: Int) -> None:
            form.product(chunk, panel, channel, tile, at, first)

        sweep(k, form.tiles, product, first, first + count)

    sweep(k, form.tiles, unfold, first, first + count)
    if not s.fused:
        sweep(k, form.tiles, pack, first, first + count)
    sweep(k, form.panels, multiply)


template = KernelTemplate(
    "im2col",
    Schedule,
    why_not,
    heuristic,
    build,
    rank=lambda p, cpu: 0,
    grain=lambda p, s: -(-s.block // p.ow),
)

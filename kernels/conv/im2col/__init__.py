"""im2col + matrix product, as in the article: unfold a block of pixels, multiply it by the weights.

The number of pixels in a block is a parameter; the textbook has one block for the whole image. The
block is unfolded straight into the panels that the product reads (`fused`), or first into a matrix
that is packed afterwards. K is cut into blocks of `kc` input channels; between them the output
holds partial sums, or a workspace if it has no room for them. In NCHW vectors are pixels, in other
layouts output channels, and weights may have 16 bits. A product of pairs of bf16 rounds the input
as it is unfolded.
"""

from __future__ import annotations

from fastrun.kernels.codegen.builder import Index, Kernel, Module
from fastrun.kernels.codegen.chunks import chunk_loop
from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.codegen.micro_kernel import check_tile, registers
from fastrun.kernels.codegen.tile_choice import best_tile
from fastrun.kernels.codegen.tiling import channel_lanes, cut, tile_count
from fastrun.kernels.conv.im2col.forms import Channels, Planar, kinds, pixel_lanes
from fastrun.kernels.conv.im2col.product import Product
from fastrun.kernels.conv.im2col.schedule import Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F32, DType
from fastrun.kernels.core.layout import NHWC
from fastrun.kernels.core.levels import Block, register_tile
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate, check, check_sizes
from fastrun.kernels.core.types import Types


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.kernel == (1, 1) and p.stride == (1, 1) and not any(p.padding):
        return "a 1x1 filter leaves nothing to unfold"
    return None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    if p.types:
        return _of_channels(p, cpu)
    lanes = pixel_lanes(p, cpu)
    pixels = p.oh * p.ow
    _, rows, cols = best_tile(1, min(p.group_oc, 16), -(-pixels // lanes), cpu)
    kc, block = _blocks(p, rows, cpu, F32)
    return Schedule("NCHW", rows, cols, 1, min(max(cols * lanes, block), pixels), kc, fused=True)


def _blocks(p: ConvProblem, panel: int, cpu: Cpu, dtype: DType) -> tuple[int, int]:
    """Channels of a block of K, and pixels that are unfolded at a time.

    A panel of `panel` output channels, whose weights all pixels of the block read, fills half of L1
    (Goto and van de Geijn); the other half is for the pixels that stream by. The article's formula
    lets the unfolded block fill L2. Here it fills half, since the other operands pass through L2 as
    well. Without blocks of K the block of pixels would be small for many channels, and each block
    reads all weights.
    """
    taps = p.kernel[0] * p.kernel[1]
    most = max(1, cpu.l1 // 2 // dtype.bytes(taps * panel))
    kc = -(-p.group_c // -(-p.group_c // most))
    return kc, cpu.l2 // 2 // dtype.bytes(taps * kc)


def levels(p: ConvProblem, s: Schedule, cpu: Cpu) -> list[Block]:
    """The blocks of a schedule."""
    dot, planes = kinds(p, cpu)[s.dot], s.layout == "NCHW"
    lanes = pixel_lanes(p, cpu) if planes else channel_lanes(p.group_oc, NHWC, cpu, p.precision)
    terms = s.kc * p.kernel[0] * p.kernel[1]
    held = register_tile(
        cpu,
        "rows, cols",
        registers(s.rows, s.cols) + dot.registers,
        f"sums of {s.rows} by {s.cols} vectors",
    )
    channels = s.rows if planes else s.cols * lanes
    panel = dot.types.weights.bytes(terms * channels)
    unfolded = dot.operand.bytes(terms * s.block)
    weights = dot.types.weights.bytes(terms * p.group_oc)
    found = [held]
    if panel <= cpu.l1:
        holds = f"a panel of weights, {s.kc} channels of {channels}"
        found.append(Block("L1", "kc", holds, "the panel fills half of L1", panel))
    if unfolded <= cpu.l2:
        holds = f"{s.block} unfolded pixels of {s.kc} channels"
        found.append(Block("L2", "block", holds, "the unfolded block fills half of L2", unfolded))
    if s.block < p.oh * p.ow:
        holds = f"the weights of {s.kc} channels, read again for each block"
        found.append(Block("L3", "kc", holds, "no block: all output channels", weights))
    return found


def _of_channels(p: ConvProblem, cpu: Cpu) -> Schedule:
    """Blocks of pixels that fill half of L2, for the best kind of dot product."""
    dot = next(x for x in kinds(p, cpu).values() if not x.rounds or p.group_c % x.group == 0)
    lanes, pixels = channel_lanes(p.group_oc, NHWC, cpu, p.precision), p.oh * p.ow
    vectors = -(-p.group_oc // lanes)
    _, rows, cols = best_tile(1, pixels, vectors, cpu, p.depth, further=dot.spare)
    block = max(rows, cpu.l2 // 2 // dot.operand.bytes(p.depth))
    return Schedule("NHWC", rows, cols, 4, min(block, pixels), p.group_c, True, dot.name)


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s)
    check(io.src.layout.order == io.dst.layout.order, "im2col keeps the layout")
    check(io.dst.dense and io.add.dense, "rows of output pixels have gaps between them")
    check(1 <= s.kc <= p.group_c, "a K block has more channels than there are")
    form = Planar if io.src.layout.name == "NCHW" else Channels
    product: Product = form(p, s, cpu, io)
    for pixels in product.tiles:
        for panel in product.panels:
            rows, cols = product.shape(pixels, panel)
            check_tile(cpu, rows, cols, min(s.unroll, p.depth), product.dot.registers)
    per_task = product.block_tiles
    tasks = -(-tile_count(product.tiles) // per_task)

    module = Module(cpu)

    @module.stage("im2col", p.n * p.groups * tasks)
    def write_im2col(k: Kernel, task: Index) -> None:
        block, rest = task % tasks, task // tasks
        product.enter(k, image=rest // p.groups, group=rest % p.groups)
        for blocks in cut(p.group_c, s.kc):
            with chunk_loop(k, blocks) as chunk:
                first = product.first_tile = block * per_task
                end = first + per_task
                for tile in product.tiles:
                    with tile.loop(k, first, end) as at:
                        product.unfold(chunk, tile, at, first)
                for tile in () if s.fused else product.tiles:
                    with tile.loop(k, first, end) as at:
                        product.pack(chunk, tile, at, first)
                for panel in product.panels:
                    with panel.loop(k) as channel:
                        for tile in product.tiles:
                            with tile.loop(k, first, end) as at:
                                product.multiply(chunk, panel, channel, tile, at, first)

    return module.program(io, product.pack_weights, local_bytes=product.local_bytes)


def takes(types: Types, cpu: Cpu) -> bool:
    """Integers, and float32 input with weights of any type that a kind of dot product has."""
    return types.src is not BF16 and any(dot.plain for dot in dots(types, cpu))


template = KernelTemplate(
    "im2col",
    Schedule,
    why_not,
    heuristic,
    build,
    rank=lambda p, cpu: 0,
    takes=takes,
    grain=lambda p, s: -(-s.block // p.ow),
    levels=levels,
)

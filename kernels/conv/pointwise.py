"""1x1 convolution as one matrix product: pixels of the whole image x output channels.

Nothing is unfolded, copied or padded. Without gaps between rows an image is one long line of
pixels, so a register tile may continue over the end of a row. `direct` or `planar` builds it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.blocking import block_of_k
from fastrun.kernels.codegen.dot import usual_dot
from fastrun.kernels.codegen.tile_choice import best_tile, tiles_per_task
from fastrun.kernels.codegen.tiling import channel_lanes
from fastrun.kernels.conv import direct, planar
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout, Placement
from fastrun.kernels.core.levels import Block
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate, check, check_sizes

# Input channels that give an output few products.
FEW_CHANNELS = 24


@dataclass(frozen=True)
class Schedule:
    layout: str
    rows: int  # NCHW: output channels of a register tile, else its pixels
    cols: int  # vectors of a register tile: of pixels in NCHW, else of output channels
    unroll: int  # input channels in the loop body
    tiles: int  # register tiles, along the pixels, of a task
    oc_outer: bool  # tasks run through all pixels for each panel of weights, else the reverse
    kc: str = ""  # input channels of a block of K; "": all
    prefetch: int = 0  # input channels by which weights are fetched ahead; 0: no prefetch
    dot: str = ""  # the kind of dot product, of those for the types and the processor


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.kernel != (1, 1):
        return "the filter is not 1x1"
    if p.stride != (1, 1) or any(p.padding):
        return "pixels are strided or padded"
    return None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    block = direct.usual_layout(p, cpu).rpartition(">")[2]
    lanes = channel_lanes(p.group_oc, Layout(block), cpu, p.precision)
    dot = usual_dot(p, cpu)
    vectors, depth = -(-p.group_oc // lanes), dot.groups(p.group_c)
    best = functools.partial(best_tile, further=dot.spare, widens=dot.widens)
    _, rows, cols = best(1, p.h * p.w, vectors, cpu, depth)
    # Pixels of eight steps would spill where there are 28 sums. With few products for each output
    # a small tile lets the next one begin while it is stored. It may have a single vector where
    # FMAs broadcast their operand from memory (AVX-512).
    broadcasts = cpu.lanes == 16 and not p.types
    unroll = 4 if broadcasts else direct.usual_unroll(p, cpu)
    if broadcasts and p.group_c <= FEW_CHANNELS and cols > 1:
        return Schedule(block, min(9, p.h * p.w), 1, unroll, tiles=4, oc_outer=False, dot=dot.name)

    # The pixels of a task fit half of L2, while the panels of weights stream through.
    def per_task(rows: int, cols: int) -> int:
        row = p.precision.src.bytes(p.group_c * rows)
        panel = p.precision.weights.bytes(p.group_c * cols * lanes)
        fit = min(cpu.l2 // 2, max(0, cpu.l2 - panel)) // row
        tiles, panels = -(-p.h * p.w // rows), -(-vectors // cols)
        return tiles_per_task(tiles, fit, cpu, panels, p.n * p.groups)

    # Blocks of K keep a panel in L1, where it costs no tile more than its loads.
    _, near_rows, near_cols = best(1, p.h * p.w, vectors, cpu)
    near = near_rows, near_cols * lanes
    kc = block_of_k(p, *near, cpu.block, per_task(near_rows, near_cols), cpu)
    if kc < p.group_c:
        tiles = per_task(near_rows, near_cols)
        return Schedule(block, near_rows, near_cols, unroll, tiles, False, dot=dot.name, kc=str(kc))
    return Schedule(block, rows, cols, unroll, per_task(rows, cols), oc_outer=False, dot=dot.name)


def levels(p: ConvProblem, s: Schedule, cpu: Cpu) -> list[Block]:
    """The blocks of a schedule: those of `direct` or `planar`, which build it."""
    pixels = p.h * p.w
    if s.layout == "NCHW":
        line = replace(p, h=1, w=pixels)
        across = planar.Schedule("NCHW", s.rows, s.cols, s.unroll, 1, s.oc_outer)
        return planar.levels(line, across, cpu)
    column, names = replace(p, h=pixels, w=1), {"tile_h, tile_w, cols": "rows, cols"}
    names["rows, columns"] = "tiles"
    blocks = direct.levels(column, _down(s), cpu)
    return [replace(b, fields=names.get(b.fields, b.fields)) for b in blocks]


def _down(s: Schedule) -> direct.Schedule:
    """The schedule of all pixels one below the other."""
    return direct.Schedule(s.layout, s.rows, 1, s.cols, s.unroll, s.tiles, s.oc_outer,
                           kc=s.kc, prefetch=s.prefetch, dot=s.dot)  # fmt: skip


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s, "prefetch")
    for where in (io.src, io.dst, io.add):
        check(where.dense, "rows of pixels have gaps between them")
    pixels = p.h * p.w
    if s.layout == "NCHW":
        check(not io.gathered, "channels are gathered from NHWC only")
        check(not s.prefetch, "weights are not fetched ahead in NCHW")
        check(not p.types, f"there are no products of {p.types} in NCHW")
        check(not s.kc, "sums in NCHW have no blocks of K")
        line = replace(p, h=1, w=pixels)
        flat = Io(_line(io.src), _line(io.dst), _line(io.add))
        across = planar.Schedule("NCHW", s.rows, s.cols, s.unroll, 1, s.oc_outer)
        return replace(planar.build(line, across, cpu, flat), io=io)
    column = replace(p, h=pixels, w=1)
    flat = Io(in_column(io.src), in_column(io.dst), in_column(io.add), io.gathered)
    return replace(direct.build(column, _down(s), cpu, flat), io=io)


def _line(where: Placement) -> Placement:
    """All pixels of a plane in one row."""
    top, _, bottom, _ = where.halo
    return replace(where, h=1, w=where.h * where.w, halo=(0, top * where.w, 0, bottom * where.w))


def in_column(where: Placement) -> Placement:
    """All pixels of a plane one below the other."""
    top, _, bottom, _ = where.halo
    return replace(where, h=where.h * where.w, w=1, halo=(top * where.w, 0, bottom * where.w, 0))


template = KernelTemplate(
    "pointwise",
    Schedule,
    why_not,
    heuristic,
    build,
    rank=lambda p, cpu: 2,
    gathers=True,
    takes=direct.template.takes,
    streaming=direct.template.streaming,
    levels=levels,
)

"""Depthwise and thinly grouped convolution: a vector of channels spans several groups.

Depthwise, output lane i needs input lane i only. With a few channels per group, lane i needs each
channel of its own group, which is a permutation of the loaded vector: x[first of i's group + j]
for step j. Either way every lane works, whatever the size of the groups.

A register tile of tile_h x tile_w outputs reads every input pixel it needs once and adds it to
all the outputs it touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Module, Tile, Vec, at_channel, fma
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.tiling import Tiles, channel_panels, cover, dispatch, sweep, tile_count
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Array, Layout, Placement, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate, check, check_operands, check_sizes

# Multiply-adds of a tile up to which all rows of the filter are straight code.
STRAIGHT = 640
# Tasks that the heuristic aims at: enough for any number of threads to share evenly.
TASKS = 32


@dataclass(frozen=True)
class Schedule:
    layout: str
    tile_h: int  # output rows of a register tile
    tile_w: int  # output columns of a register tile
    vectors: int  # vectors of channels of a task, innermost loop
    rows: int  # register tiles, one below the other, of a task
    hold: bool  # weights stay in registers; else each row of them is read again


@dataclass(frozen=True)
class Span:
    """What one vector covers: `groups` groups, that is `inputs` -> `outputs` channels.

    `fits` says whether they fill no more than a vector and begin where channel blocks allow.
    """

    lanes: int
    groups: int
    inputs: int
    outputs: int
    fits: bool

    @classmethod
    def of(cls, p: ConvProblem, src: Layout, dst: Layout, cpu: Cpu) -> Span:
        """As many whole groups as vectors and blocks of channels hold."""
        lanes = min(cpu.lanes, src.blocked or cpu.lanes, dst.blocked or cpu.lanes)
        groups = max(1, lanes // max(p.group_c, p.group_oc))
        inputs, outputs = groups * p.group_c, groups * p.group_oc
        aligned = src.blocked % inputs == 0 and dst.blocked % outputs == 0
        return cls(lanes, groups, inputs, outputs, aligned and max(inputs, outputs) <= lanes)


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.groups == 1:
        return "one group: there are no channels to keep apart"
    if max(p.group_c, p.group_oc) > cpu.lanes:
        return f"more than {cpu.lanes} channels per group do not fit into a vector"
    return None


def registers(p: ConvProblem, s: Schedule) -> int:
    """Vector registers that a tile keeps alive."""
    (kh, kw), tile_h, tile_w = p.kernel, min(s.tile_h, p.oh), min(s.tile_w, p.ow)
    # Read again, a weight is needed from the first to the last column of the tile.
    passing = min(tile_h, kh) * min(kw, (tile_w - 1) * p.stride[1] + 1)
    return tile_h * tile_w + (kh * kw * p.group_c if s.hold else passing) + 2


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    blocked = f"NCHW{cpu.block}c"
    layout = blocked if Span.of(p, Layout(blocked), Layout(blocked), cpu).fits else "NHWC"
    vectors = -(-p.oc // Span.of(p, *layout_pair(layout), cpu).outputs)
    # Blocks of channels lie apart, so each is a task; in NHWC all channels of a pixel go by.
    together = 1 if layout == blocked else vectors
    tiles = [Schedule(layout, 2, 4, together, rows=1, hold=True)]
    tiles += [Schedule(layout, 1, w, together, rows=1, hold=False) for w in range(8, 0, -1)]
    schedule = next(s for s in tiles if registers(p, s) <= cpu.registers)
    count = p.n * tile_count(cover(p.oh, schedule.tile_h)) * (vectors // together)
    return replace(schedule, rows=max(1, count // TASKS))


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s)
    check_operands(p, io)
    reason = why_not(p, cpu)
    check(reason is None, f"depthwise: {reason}")
    src_layout, dst_layout = io.src.layout, io.dst.layout
    check("NCHW" not in (src_layout.name, dst_layout.name), "depthwise needs NHWC or NCHWc")
    span = Span.of(p, src_layout, dst_layout, cpu)
    check(span.fits, f"whole groups do not fill blocks of {src_layout} and {dst_layout}")
    check(registers(p, s) <= cpu.registers, "tile needs too many registers")
    panels = channel_panels(p.oc, span.outputs, s.vectors, split_tail=not io.dst.layout.blocked)
    y_tiles, x_tiles = cover(p.oh, s.tile_h), cover(p.ow, s.tile_w)
    row_tasks = -(-tile_count(y_tiles) // s.rows)
    panel_tasks = tile_count(panels)

    module = Module(cpu)
    with module.stage("depthwise", p.n * panel_tasks * row_tasks) as (k, task):
        row, rest = task % row_tasks, task // row_tasks
        panel, image = rest % panel_tasks, rest // panel_tasks

        def whole_panel(v: Tiles, first: Int) -> None:
            ragged = v.end == panels[-1].end and not io.dst.layout.blocked
            kept = p.oc % span.outputs if ragged else 0

            def tile(y: Tiles, top: Int, x: Tiles, left: Int) -> None:
                full = v.size - 1 if kept else v.size
                if full == 1:
                    one_tile(y, top, x, left, first, span.outputs)
                elif full:
                    with k.loop(full) as i:
                        one_tile(y, top, x, left, i + first, span.outputs)
                if kept:
                    one_tile(y, top, x, left, first + full, kept)

            def tile_row(y: Tiles, top: Int) -> None:
                sweep(k, x_tiles, lambda x, left: tile(y, top, x, left))

            sweep(k, y_tiles, tile_row, row * s.rows, row * s.rows + s.rows)

        def one_tile(y: Tiles, top: Int, x: Tiles, left: Int, vector: Int, kept: int) -> None:
            needed = kept // p.group_oc * max(p.group_c, p.group_oc)
            lanes = min(span.lanes, cpu.lanes_for(needed))
            acc = k.tile(y.size, x.size, lanes)
            acc.fill(k.argument("bias", span.outputs).load(vector, lanes=lanes))
            src = k.tensor("src", io.src, y=-p.padding[0], x=-p.padding[1]).at(image)
            window = at_channel(src, io.src, vector, span.inputs)
            corner = window.at(0, 0, top * p.stride[0], left * p.stride[1])
            accumulate(k, p, s, span, acc, corner, vector)
            dst = outputs("dst", io.dst, vector, top, left)
            add = outputs("add", io.add, vector, top, left) if p.add else None
            for i, j in acc:
                residual = add.load(0, 0, i, j, lanes=lanes) if add else None
                dst.store_first(finish(p, acc[i, j], residual), kept, 0, 0, i, j)

        def outputs(name: str, where: Placement, vector: Int, top: Int, left: Int) -> Buffer:
            tensor = at_channel(k.tensor(name, where).at(image), where, vector, span.outputs)
            return tensor.at(0, 0, top, left)

        dispatch(k, panels, panel, whole_panel)
    return module.program(io, lambda w: pack(w, p, span))


def accumulate(
    k: Kernel, p: ConvProblem, s: Schedule, span: Span, acc: Tile, src: Buffer, vector: Int
) -> None:
    """Add the whole filter window's products; `src` is the tile's first input pixel."""
    (kh, kw), lanes = p.kernel, acc.lanes
    weights = k.argument("weights", span.lanes * p.depth).at(vector)
    weights = weights.strided(span.lanes * p.group_c * kw, span.lanes * kw, span.lanes)

    def input_row(iy: Int, uses: Sequence[tuple[int, Int]]) -> None:
        """One row of pixels into the output rows that use it, each with its row of the filter."""
        if not uses:
            return
        taps = weights if s.hold else weights.opaque()
        for channel in range(p.group_c):
            w: dict[tuple[int, int], Vec] = {}
            columns = (acc.cols - 1) * p.stride[1] + (kw - 1) * p.dilation[1] + 1
            for ix in range(columns):
                found = _uses(ix, acc.cols, kw, p.stride[1], p.dilation[1])
                if not found:
                    continue
                x = _spread(k, src.load(0, 0, iy, ix, lanes=lanes), p, channel)
                for ox, kx in found:
                    for oy, ky in uses:
                        if (oy, kx) not in w:
                            w[oy, kx] = taps.load(ky, channel, kx, lanes=lanes)
                        acc[oy, ox] = fma(x, w[oy, kx], acc[oy, ox])

    if acc.rows * acc.cols * p.depth <= STRAIGHT:
        for iy in range((acc.rows - 1) * p.stride[0] + (kh - 1) * p.dilation[0] + 1):
            input_row(iy, _uses(iy, acc.rows, kh, p.stride[0], p.dilation[0]))
    else:
        with k.loop(kh) as ky:
            for oy in range(acc.rows):
                input_row(ky * p.dilation[0] + oy * p.stride[0], [(oy, ky)])


def pack(weights: Array, p: ConvProblem, span: Span) -> Array:
    """Weights (oc, c/groups, kh, kw) -> (vector, kh, c/groups, kw, lane), idle lanes zero."""
    vectors = -(-p.oc // span.outputs)
    filled = np.zeros((vectors * span.outputs, *weights.shape[1:]), np.float32)
    filled[: p.oc] = weights
    packed = np.zeros((vectors, p.kernel[0], p.group_c, p.kernel[1], span.lanes), np.float32)
    packed[..., : span.outputs] = filled.reshape(
        vectors, span.outputs, *weights.shape[1:]
    ).transpose(0, 3, 2, 4, 1)
    return packed.reshape(-1)


def _uses(i: int, outputs: int, taps: int, stride: int, dilation: int) -> list[tuple[int, int]]:
    """(output, tap) pairs along one axis that need input `i` of a tile."""
    pairs = ((o, i - o * stride) for o in range(outputs))
    return [(o, d // dilation) for o, d in pairs if d % dilation == 0 and 0 <= d // dilation < taps]


def _spread(k: Kernel, x: Vec, p: ConvProblem, channel: int) -> Vec:
    """Input channel `channel` of every group in all the lanes of the group's outputs."""
    order = [min(i // p.group_oc * p.group_c + channel, x.lanes - 1) for i in range(x.lanes)]
    return x if order == list(range(x.lanes)) else k.shuffle(x, x, order)


template = KernelTemplate(
    "depthwise",
    Schedule,
    why_not,
    heuristic,
    build,
    rank=lambda p, cpu: 4,
    grain=lambda p, s: int(s.tile_h),
)

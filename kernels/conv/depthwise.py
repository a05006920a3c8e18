"""Depthwise and thinly grouped convolution: a vector of channels spans several groups.

Depthwise, output lane i needs input lane i only. With a few channels per group, lane i needs each
channel of its own group, which is a permutation of the loaded vector: x[first of i's group + j]
for step j. Either way every lane works, whatever the size of the groups.

A register tile of tile_h x tile_w outputs reads every input pixel it needs once and adds it to
all the outputs it touches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels.codegen.builder import Buffer, Int, Kernel, Module, Tile, Vec, at_channel, fma
from kernels.codegen.epilogue import finish
from kernels.codegen.tile_gemm import Run, channel_panels, cover, dispatch, sweep, tile_count
from kernels.core.cpu import Cpu
from kernels.core.layout import Array, Io, Layout, Placement, layout_pair
from kernels.core.problem import ConvProblem
from kernels.core.template import KernelTemplate, Program, check

# Multiply-adds of a tile up to which all rows of the filter are straight code.
STRAIGHT = 640


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
    """What one vector of outputs covers: `groups` groups, that is `inputs` -> `outputs` channels.

    `outputs` <= `lanes`; the rest of the lanes idle.
    """

    lanes: int
    groups: int
    inputs: int
    outputs: int

    @classmethod
    def of(cls, p: ConvProblem, src: Layout, dst: Layout, cpu: Cpu) -> Span:
        """As many whole groups as vectors and blocks of channels hold."""
        widest = min(cpu.lanes, src.blocked or cpu.lanes, dst.blocked or cpu.lanes)
        groups = max(1, min(p.groups, widest // max(p.group_c, p.group_oc)))
        return cls(
            lanes=min(widest, _power_of_two(groups * max(p.group_c, p.group_oc))),
            groups=groups,
            inputs=groups * p.group_c,
            outputs=groups * p.group_oc,
        )


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.groups == 1:
        return "one group: no channels to keep apart"
    if max(p.group_c, p.group_oc) > cpu.lanes:
        return f"more than {cpu.lanes} channels per group"
    return None


def registers(p: ConvProblem, s: Schedule) -> int:
    """Vector registers that a tile keeps alive."""
    taps = p.kernel[0] * p.group_c if s.hold else min(s.tile_h, p.kernel[0])
    return s.tile_h * s.tile_w + taps * p.kernel[1] + 2


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    block = min(16, max(4, cpu.lanes))
    aligned = all(block % c == 0 for c in (p.group_c, p.group_oc)) and p.group_c == p.group_oc
    layout = f"NCHW{block}c" if aligned else "NHWC"
    room = cpu.registers - 2 - p.kernel[1]
    tile_w = cover(p.ow, max(1, min(room, 8)))[0].size
    whole = -(-p.oc // Span.of(p, *layout_pair(layout), cpu).outputs)
    schedule = Schedule(
        layout, 1, tile_w, vectors=1 if aligned else min(whole, 8), rows=max(1, p.oh), hold=False
    )
    return schedule


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    reason = why_not(p, cpu)
    check(reason is None, f"depthwise: {reason}")
    check("NCHW" not in (io.src.layout.name, io.dst.layout.name), "depthwise needs NHWC or NCHWc")
    span = Span.of(p, io.src.layout, io.dst.layout, cpu)
    for where, unit in ((io.src, span.inputs), (io.dst, span.outputs)):
        whole = not where.layout.blocked or where.block % unit == 0
        check(whole, f"{unit} channels of {span.groups} groups do not fit into {where.layout}")
    check(span.lanes >= max(span.inputs, span.outputs), "a group is wider than a channel block")
    check(registers(p, s) <= cpu.registers, "tile needs too many registers")
    panels = channel_panels(p.oc, span.outputs, s.vectors, split_tail=not io.dst.layout.blocked)
    y_tiles, x_tiles = cover(p.oh, s.tile_h), cover(p.ow, s.tile_w)
    row_tasks = -(-tile_count(y_tiles) // s.rows)
    panel_tasks = tile_count(panels)

    module = Module(cpu)
    with module.stage("depthwise", p.n * panel_tasks * row_tasks) as (k, task):
        row, rest = task % row_tasks, task // row_tasks
        panel, image = rest % panel_tasks, rest // panel_tasks

        def whole_panel(v: Run, first: Int) -> None:
            ragged = v.end == panels[-1].end and not io.dst.layout.blocked
            kept = p.oc % span.outputs if ragged else 0

            def tile(y: Run, top: Int, x: Run, left: Int) -> None:
                full = v.size - 1 if kept else v.size
                if full == 1:
                    one_tile(y, top, x, left, first, span.outputs)
                elif full:
                    with k.loop(full) as i:
                        one_tile(y, top, x, left, i + first, span.outputs)
                if kept:
                    one_tile(y, top, x, left, first + full, kept)

            def tile_row(y: Run, top: Int) -> None:
                sweep(k, x_tiles, lambda x, left: tile(y, top, x, left))

            sweep(k, y_tiles, tile_row, row * s.rows, row * s.rows + s.rows)

        def one_tile(y: Run, top: Int, x: Run, left: Int, vector: Int, kept: int) -> None:
            needed = kept // p.group_oc * max(p.group_c, p.group_oc)
            lanes = min(span.lanes, _power_of_two(needed))
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
            w = {
                (oy, kx): taps.load(ky, channel, kx, lanes=lanes)
                for oy, ky in uses
                for kx in range(kw)
            }
            columns = (acc.cols - 1) * p.stride[1] + (kw - 1) * p.dilation[1] + 1
            for ix in range(columns):
                found = _uses(ix, acc.cols, kw, p.stride[1], p.dilation[1])
                if not found:
                    continue
                x = _spread(k, src.load(0, 0, iy, ix, lanes=lanes), p, channel)
                for ox, kx in found:
                    for oy, _ in uses:
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


def _power_of_two(n: int) -> int:
    """The least one that is not below `n`."""
    return 1 << (n - 1).bit_length()


template = KernelTemplate("depthwise", Schedule, why_not, heuristic, build)

"""Direct convolution in NCHW: a vector holds neighbouring pixels of one output row.

Rows of the register tile are output channels, whose weights are broadcast. Pixels are loaded where
they lie; a strided convolution loads every `stride`-th of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from fastrun.kernels.codegen.blocking import input_span
from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Tile
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.micro_kernel import check_tile, outer_product, registers
from fastrun.kernels.codegen.packing import pack_panels
from fastrun.kernels.codegen.reduction import reduction
from fastrun.kernels.codegen.tile_choice import best_tile, tiles_per_task
from fastrun.kernels.codegen.tiling import (
    channel_panels,
    consecutive,
    cover,
    task_order,
    tile_count,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.levels import Block, register_tile
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate, check, check_sizes


@dataclass(frozen=True)
class Schedule:
    layout: str
    ocs: int  # output channels of a register tile
    cols: int  # vectors of pixels of a register tile
    unroll: int  # steps of K in the loop body
    rows: int  # output rows of a task
    oc_outer: bool  # tasks run through the image for each panel of weights, else the reverse


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    return None


def pixel_lanes(p: ConvProblem, cpu: Cpu) -> int:
    """Lanes of vectors of pixels: a row fills them, and strided loads stay in the read slack."""
    return min(cpu.lanes_for(p.ow), max(1, READ_SLACK // p.stride[1]))


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    vectors = -(-p.ow // pixel_lanes(p, cpu))
    _, ocs, cols = best_tile(1, min(p.group_oc, 16), vectors, cpu)
    # The input rows of a task fit half of L2, while the panels of weights stream through.
    rows = tiles_per_task(p.oh, cpu.l2 // 2 // F32.bytes(p.group_c * p.w * p.stride[0]), cpu)
    return Schedule("NCHW", ocs, cols, unroll=p.kernel[1], rows=rows, oc_outer=False)


def levels(p: ConvProblem, s: Schedule, cpu: Cpu) -> list[Block]:
    """The blocks of a schedule."""
    ocs, cols = min(s.ocs, p.group_oc), min(s.cols, -(-p.ow // pixel_lanes(p, cpu)))
    held = f"sums of {ocs} channels by {cols} vectors of pixels"
    panel, task = F32.bytes(p.depth * ocs), input_span(p, min(s.rows, p.oh), p.ow)
    found = [register_tile(cpu, "ocs, cols", registers(ocs, cols), held)]
    if panel <= cpu.l1:
        holds = "a panel of weights, read again for each vector of pixels"
        found.append(Block("L1", "ocs", holds, "no block of K: the whole panel", panel))
    if not s.oc_outer and task <= cpu.l2:
        holds = f"the input of a task, {s.rows} rows"
        found.append(Block("L2", "rows", holds, "the input fills half of L2", task))
    return found


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s)
    layouts = {s.layout, io.src.layout.name, io.dst.layout.name}
    check(layouts == {"NCHW"}, "planar reads and writes NCHW")
    lanes = pixel_lanes(p, cpu)
    panels = cover(p.group_oc, s.ocs)
    x_tiles = channel_panels(p.ow, lanes, s.cols, split_tail=True)
    for oc, x in product(panels, x_tiles):
        check_tile(cpu, oc.size, x.size, min(s.unroll, p.depth))
    row_tasks, panel_tasks = -(-p.oh // s.rows), tile_count(panels)
    [rows] = consecutive((1, p.oh))

    module = Module(cpu)

    @module.stage("planar", p.n * p.groups * row_tasks * panel_tasks)
    def write_planar(k: Kernel, task: Index) -> None:
        row, panel, rest = task_order(task, row_tasks, panel_tasks, s.oc_outer)
        group, image = rest % p.groups, rest // p.groups
        src = k.tensor("src", io.src, y=-p.padding[0], x=-p.padding[1])
        src = src.at(image, group * p.group_c)
        dst = k.tensor("dst", io.dst).at(image, group * p.group_oc)
        add = k.tensor("add", io.add).at(image, group * p.group_oc)
        bias = k.argument("bias", p.group_oc, 1).at(group)
        weights = k.argument("weights", p.group_oc * p.depth, p.depth)
        for oc in panels:
            with oc.when(k, panel) as first:
                packed = weights.at(group, first).strided(oc.size, 1)
                with rows.loop(k, row * s.rows, (row + 1) * s.rows) as y:
                    for x in x_tiles:
                        with x.loop(k) as vector:
                            left = vector * lanes
                            acc = k.tile(oc.size, x.size, lanes)
                            for i in range(oc.size):
                                start = bias.splat(0, first + i, lanes=lanes)
                                for j in range(x.size):
                                    acc[i, j] = start
                            corner = src.at(0, 0, y * p.stride[0], left * p.stride[1])
                            _add_products(k, acc, p, s, corner, packed)
                            last = x is x_tiles[-1] and p.ow % lanes
                            for i, j in acc:
                                at = (0, first + i, y, left + j * lanes)
                                residual = add.load(*at, lanes=lanes) if p.add else None
                                kept = p.ow % lanes if last and j == x.size - 1 else lanes
                                dst.store_first(finish(p, acc[i, j], residual), kept, *at)

    return module.program(io, lambda w: pack_panels(w, p.groups, 1, 1, panels))


def _add_products(
    k: Kernel, acc: Tile, p: ConvProblem, s: Schedule, corner: Buffer, weights: Buffer
) -> None:
    """Add the whole filter window's products; `corner` is the first pixel's first input pixel."""
    lanes, (_, step_x) = acc.lanes, p.stride

    def step(c: Int, ky: Int, kx: Int, _: Int, position: Int) -> None:
        pixels = corner.at(0, c, ky * p.dilation[0], kx * p.dilation[1])
        across = [pixels.at(0, 0, 0, j * lanes * step_x) for j in range(acc.cols)]
        outer_product(
            acc,
            (weights.splat(position, i, lanes=lanes) for i in range(acc.rows)),
            (pixel.load_strided(0, step=step_x, lanes=lanes) for pixel in across),
        )

    reduction(k, p.group_c, 1, p.kernel, s.unroll, step)


def rank(p: ConvProblem, cpu: Cpu) -> int:
    """Preferred where pixels fill vectors much better than output channels do."""

    def share(size: int, lanes: int) -> float:
        return size / (-(-size // lanes) * cpu.lanes)

    channels = share(p.group_oc, cpu.lanes)
    return 3 if share(p.ow, pixel_lanes(p, cpu)) > 1.5 * channels else 0


template = KernelTemplate("planar", Schedule, why_not, heuristic, build, rank, levels=levels)

"""MEC: im2col that lowers only along rows, by Cho and Brand (2017).

"MEC: Memory-Efficient Convolution for Deep Neural Network", https://arxiv.org/abs/1706.06873.

For each output column the input columns under the filter are copied, over the whole height. The
windows of output rows overlap there, so that a filter of kh rows needs kh / stride times less
memory than im2col's. Every output row is a matrix product whose left operand begins `stride` rows
further down. Vectors are output channels, in NHWC. It is a baseline: what the paper gains by less
memory, `direct` gains by none.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Tile
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.micro_kernel import check_tile, outer_product
from fastrun.kernels.codegen.packing import pack_panels
from fastrun.kernels.codegen.tile_choice import best_tile
from fastrun.kernels.codegen.tiling import channel_lanes, channel_panels, cover, cut, tile_count
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import NHWC, READ_SLACK
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate, check_layouts, check_sizes


@dataclass(frozen=True)
class Schedule:
    layout: str
    rows: int  # output pixels of a register tile, in one row
    cols: int  # vectors of output channels of a register tile
    unroll: int  # steps of K in the loop body


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.kernel == (1, 1):
        return "a 1x1 filter leaves nothing to lower"
    if p.groups > 1 or p.dilation != (1, 1):
        return "no groups and no dilation"
    return None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    vectors = -(-p.oc // channel_lanes(p.oc, NHWC, cpu))
    _, rows, cols = best_tile(1, p.ow, vectors, cpu, p.depth)
    return Schedule("NHWC", rows, cols, unroll=4)


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s)
    check_layouts(io, "NHWC")
    lanes = channel_lanes(p.oc, NHWC, cpu)
    panels = channel_panels(p.oc, lanes, s.cols, split_tail=True)
    tiles = cover(p.ow, s.rows)
    for tile, panel in product(tiles, panels):
        check_tile(cpu, tile.size, panel.size, min(s.unroll, p.depth))
    height = (p.oh - 1) * p.stride[0] + p.kernel[0]
    line = p.kernel[1] * p.c  # numbers that lie under a row of the filter
    lowered = height * line

    module = Module(cpu)

    @module.stage("lower", p.n * p.ow)
    def write_lower(k: Kernel, task: Index) -> None:
        column, image = task % p.ow, task // p.ow
        src = k.tensor("src", io.src, y=-p.padding[0], x=-p.padding[1])
        src = src.at(image, 0, 0, column * p.stride[1])
        to = k.argument("shared", lowered, line, p.c, 1).at(task)
        with k.loop(height) as y, k.times(p.kernel[1]) as x:
            for some in cut(p.c, lanes):
                with some.loop(k) as c:
                    value = src.load(0, 0, y, x, c, lanes=lanes)
                    to.store_first(value, some.size, 0, y, x, c)

    @module.stage("multiply", p.n * p.oh * tile_count(panels))
    def write_multiply(k: Kernel, task: Index) -> None:
        number, rest = task % tile_count(panels), task // tile_count(panels)
        row, image = rest % p.oh, rest // p.oh
        columns = k.argument("shared", lowered * p.ow, lowered, line, 1)
        columns = columns.at(image, 0, row * p.stride[0]).strided(lowered, 1)
        for panel in panels:
            tail = p.oc % lanes if panel is panels[-1] else 0
            with panel.when(k, number) as vector:
                weights = k.argument("weights", p.depth * lanes).at(vector)
                weights = weights.strided(panel.size * lanes, lanes)
                for tile in tiles:
                    with tile.loop(k) as x:
                        acc = k.tile(tile.size, panel.size, lanes)
                        _multiply(k, acc, columns.at(x), weights, p.depth, s.unroll, vector)
                        _store(k, acc, p, io, (image, row, x, vector), tail)

    shared = F32.bytes(p.n * p.ow * lowered + READ_SLACK)
    return module.program(io, lambda w: pack_panels(w, 1, p.c, lanes, panels), shared)


def _multiply(
    k: Kernel, acc: Tile, columns: Buffer, weights: Buffer, depth: int, unroll: int, vector: Int
) -> None:
    """The bias, and the products over a whole window, which lies in one run."""
    bias = k.argument("bias", acc.lanes)
    for i, j in acc:
        acc[i, j] = bias.load(vector + j, lanes=acc.lanes)
    for steps in cut(depth, unroll):
        with steps.unrolled(k) as terms:
            for t in terms:
                outer_product(
                    acc,
                    (columns.splat(i, t, lanes=acc.lanes) for i in range(acc.rows)),
                    (weights.load(t, j, lanes=acc.lanes) for j in range(acc.cols)),
                )


def _store(
    k: Kernel, acc: Tile, p: ConvProblem, io: Io, at: tuple[Int, Int, Int, Int], tail: int
) -> None:
    """Add the residual, apply the activation, store; the last vector may have a `tail`."""
    image, row, x, vector = at
    dst, add = (k.tensor(name, where) for name, where in (("dst", io.dst), ("add", io.add)))
    for i, j in acc:
        place = (image, 0, row, x + i, (vector + j) * acc.lanes)
        residual = add.load(*place, lanes=acc.lanes) if p.add else None
        kept = tail if tail and j == acc.cols - 1 else acc.lanes
        dst.store_first(finish(p, acc[i, j], residual), kept, *place)


template = KernelTemplate("mec", Schedule, why_not, heuristic, build, baseline=True)

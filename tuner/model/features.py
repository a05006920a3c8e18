"""A schedule of a problem on a processor in numbers that its time depends on.

Most are known before any code exists: how many lanes of vectors and rows of register tiles do
useful work, loads for each multiply-add, how often operands are read again, and which cache they
fit. All are ratios or logarithms, so that what is learnt from some sizes holds for others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.blocking import input_span
from fastrun.kernels.codegen.reduction import share_met
from fastrun.kernels.codegen.tile_choice import step_cycles
from fastrun.kernels.codegen.tiling import channel_lanes
from fastrun.kernels.conv.planar import pixel_lanes
from fastrun.kernels.conv.strassen import AHEAD, PRODUCTS
from fastrun.kernels.conv.winograd.parts import Parts, widened
from fastrun.kernels.conv.winograd.transform import tile_grid
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Layout, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import applicable

ALGORITHMS = ("depthwise", "direct", "im2col", "planar", "pointwise", "strassen", "winograd")
"""The algorithms whose schedules have features: those with which the model was learnt."""

# Fields of schedules. One that a schedule lacks is -1.
_FIELDS = (
    *("tile_h", "tile_w", "cols", "unroll", "rows", "oc_outer", "prefetch", "ocs", "tiles"),
    *("vectors", "hold", "block", "kc", "fused", "mh", "mw", "nr_tiles", "oc_block"),
    *("columns", "parts"),
)

_PROBLEM = (
    *("channels", "filters", "groups", "height", "width", "kernel_h", "kernel_w", "stride"),
    *("dilation", "padded", "flops", "weights_in_l2", "input_in_l2", "output_in_l2", "all_in_l3"),
    *("added", "activation", "lanes", "registers", "l1", "l2", "l3"),
)

_DERIVED = (
    *("tile_rows", "tile_vectors", "accumulators", "loads", "lanes_used", "rows_used"),
    *("products", "transforms", "panel_in_l1", "task_in_l2", "passes", "tasks"),
    *("cycles", "weights_again", "input_again", "taps_met", "filter_parts"),
)

NAMES = (
    *_PROBLEM,
    *ALGORITHMS,
    *("reads_planes", "reads_block", "writes_block", "channel_split", "standard_points"),
    *_FIELDS,
    *_DERIVED,
    *("heuristic", "usual"),
    *(f"{name}_moved" for name in _FIELDS),
    *(f"{name}_over" for name in _DERIVED),
)
"""The names of the features, in order."""

_CHEAP = ("", "relu", "relu6", "leaky0.1")


def rows(p: ConvProblem, schedules: Iterable[tuple[str, Any]], cpu: Cpu) -> NDArray[np.float32]:
    """A row of features for each schedule, given with the name of its algorithm.

    `heuristic` says that it is the heuristic's schedule among the `ALGORITHMS`, `usual` that it has
    its algorithm. Names with `_moved` say how far fields are from the heuristic's, as logarithms,
    those with `_over` how much what is derived differs from the heuristic's.
    """
    problem = _of_problem(p, cpu)
    known = [t for t in applicable(p, cpu) if t.name in ALGORITHMS]
    best = max(known, key=lambda t: t.rank(p, cpu))
    first = best.heuristic(p, cpu)
    usual, over = _fields(first), _derived(p, best.name, first, cpu)
    found = []
    for name, schedule in schedules:
        fields = _fields(schedule)
        alike = name == best.name
        moved = (b - a if alike and a >= 0 else 0.0 for a, b in zip(usual, fields, strict=True))
        derived = _derived(p, name, schedule, cpu)
        found.append(
            [
                *problem,
                *(float(name == other) for other in ALGORITHMS),
                *_layouts(schedule),
                *fields,
                *derived,
                float(alike and schedule == first),
                float(alike),
                *moved,
                *(b - a for a, b in zip(over, derived, strict=True)),
            ]
        )
    return np.array(found, np.float32).reshape(len(found), len(NAMES))


def _of_problem(p: ConvProblem, cpu: Cpu) -> list[float]:
    weights = F32.bytes(p.oc * p.depth)
    read, written = F32.bytes(p.n * p.c * p.h * p.w), F32.bytes(p.n * p.oc * p.oh * p.ow)
    sizes = (p.group_c, p.group_oc, p.groups, p.oh, p.ow, *p.kernel, p.stride[1], p.dilation[1])
    area = (p.h + p.padding[0] + p.padding[2]) * (p.w + p.padding[1] + p.padding[3])
    return [
        *map(math.log2, sizes),
        area / (p.h * p.w) - 1,
        math.log2(p.flops),
        *(math.log2(count / cpu.l2) for count in (weights, read, written)),
        math.log2((weights + read + written) / max(cpu.usable_l3, cpu.l2)),
        float(p.add),
        float(p.activation not in _CHEAP),
        *map(float, (cpu.lanes, cpu.registers)),
        *(math.log2(max(size, 1)) for size in (cpu.l1, cpu.l2, cpu.usable_l3)),
    ]


def _fields(schedule: Any) -> list[float]:
    values = (getattr(schedule, name, None) for name in _FIELDS)
    return [-1.0 if value in (None, "") else math.log2(1 + int(value)) for value in values]


def _layouts(schedule: Any) -> tuple[float, ...]:
    src, dst = layout_pair(schedule.layout)
    return (
        float(src.name == "NCHW"),
        float(_block(src)),
        float(_block(dst)),
        float(getattr(schedule, "split", "") == "channels"),
        float(getattr(schedule, "points", "") == "standard"),
    )


def _block(layout: Layout) -> int:
    """Channels of a block; 0 where channels lie side by side, 1 where each has a plane."""
    return layout.blocked or int(layout.name == "NCHW")


def _derived(p: ConvProblem, name: str, s: Any, cpu: Cpu) -> tuple[float, ...]:
    _, dst = layout_pair(s.layout)
    planes = dst.name == "NCHW"
    lanes = pixel_lanes(p, cpu) if planes else channel_lanes(p.group_oc, dst, cpu, p.precision)
    lanes = max(lanes, 1)
    shape = _SHAPES[name](p, s, cpu)
    tile, vectors = int(shape["rows"]), int(shape["vectors"])
    across, down = (p.ow, p.group_oc) if planes else (p.group_oc, int(shape["length"]))
    if name == "depthwise":
        across = p.oc
    across = int(shape.get("across", across))
    panel = F32.bytes(int(shape.get("depth", p.depth)) * vectors * lanes)
    useful = _used(across, vectors * lanes) * _used(down, tile)
    products, met = shape.get("products", 1.0), shape.get("met", 1.0)
    # Cycles for each product of the direct method, in those of a register tile at full rate.
    cycles = products * met * 2 * step_cycles(tile, vectors) / (tile * vectors * useful)
    weights = shape.get("weights", F32.bytes(p.oc * p.depth))
    read = F32.bytes(p.n * p.c * p.h * p.w)
    return (
        float(tile),
        float(vectors),
        float(tile * vectors),
        (tile + vectors) / (tile * vectors),
        _used(across, vectors * lanes),
        _used(down, tile),
        math.log2(products),
        math.log2(1 + shape.get("transforms", 0.0)),
        math.log2(panel / cpu.l1),
        math.log2(max(shape.get("task", 1.0), 1.0) / cpu.l2),
        math.log2(max(1.0, down / tile)),
        math.log2(max(1.0, shape.get("tasks", 1.0))),
        math.log2(cycles),
        _again(p, weights, shape.get("weights_read", 1.0), cpu),
        _again(p, read, shape.get("input_read", 1.0), cpu),
        met,
        math.log2(shape.get("parts", 1.0)),
    )


def _again(p: ConvProblem, size: float, times: float, cpu: Cpu) -> float:
    """Bytes from beyond L2 for each vector of products; L2 keeps half of its size."""
    beyond = size if size <= cpu.l2 / 2 else size * max(1.0, times)
    return math.log2(1 + 2 * cpu.lanes * beyond / p.flops)


def _used(count: int, size: float) -> float:
    """The share of whole tiles of this size that `count` fills."""
    return float(count / (math.ceil(count / size) * size))


def _direct(p: ConvProblem, s: Any, cpu: Cpu) -> Mapping[str, float]:
    rows = s.rows * s.tile_h
    fill = _used(p.oh, s.tile_h) * _used(p.ow, s.tile_w)
    strips = math.ceil(p.oh / rows)
    if s.columns:
        strips *= math.ceil(p.ow / (int(s.columns) * s.tile_w))
    return {
        "rows": s.tile_h * s.tile_w,
        "vectors": s.cols,
        # A length of which the tiles fill the same share as of the image.
        "length": max(1, round(fill * 64 * s.tile_h * s.tile_w)),
        "task": input_span(p, min(rows, p.oh), min(int(s.columns or p.ow) * s.tile_w, p.ow)),
        "tasks": strips * p.groups,
        "met": share_met(p, 0, s.tile_h) * share_met(p, 1, s.tile_w),
        **_reads(p, s, strips, cpu),
    }


def _reads(p: ConvProblem, s: Any, strips: int, cpu: Cpu) -> dict[str, float]:
    """How often tasks read all weights or all input again, by the order in which they run."""
    panels = math.ceil(p.group_oc / (s.cols * cpu.lanes))
    return {"input_read": panels} if s.oc_outer else {"weights_read": strips * p.n}


def _planar(p: ConvProblem, s: Any, cpu: Cpu) -> Mapping[str, float]:
    strips, panels = math.ceil(p.oh / s.rows), math.ceil(p.group_oc / s.ocs)
    return {
        "rows": s.ocs,
        "vectors": s.cols,
        "length": p.group_oc,
        "task": input_span(p, min(s.rows, p.oh), p.ow),
        "tasks": strips * p.groups,
        **({"input_read": panels} if s.oc_outer else {"weights_read": strips * p.n}),
    }


def _pointwise(p: ConvProblem, s: Any, cpu: Cpu) -> Mapping[str, float]:
    pixels = p.h * p.w
    strips = math.ceil(pixels / (s.rows * s.tiles))
    return {
        "rows": s.rows,
        "vectors": s.cols,
        "length": pixels,
        "task": F32.bytes(p.group_c * s.rows * s.tiles),
        "tasks": strips,
        **_reads(p, s, strips, cpu),
    }


def _strassen(p: ConvProblem, s: Any, cpu: Cpu) -> Mapping[str, float]:
    half = math.ceil(p.n * p.h * p.w / 2)
    strips = math.ceil(half / (s.rows * s.tiles))
    return {
        "rows": s.rows,
        "vectors": s.cols,
        "length": half,
        "across": p.oc // 2,
        "depth": p.c // 2,
        "products": PRODUCTS / 8,
        # Sums of pixels for each product: each part of the output channels makes them again.
        "transforms": s.parts / p.oc,
        "task": F32.bytes(AHEAD * (p.c // 2) * s.rows * s.tiles),
        "tasks": strips * s.parts,
        "weights": F32.bytes(PRODUCTS * p.c * p.oc // 4),
        "weights_read": strips,
    }


def _depthwise(p: ConvProblem, s: Any, cpu: Cpu) -> Mapping[str, float]:
    fill = _used(p.oh, s.tile_h) * _used(p.ow, s.tile_w)
    tile = s.tile_h * s.tile_w
    touched = math.prod(
        (size - 1) * stride + (span - 1) * apart + 1
        for size, stride, span, apart in zip(
            (s.tile_h, s.tile_w), p.stride, p.kernel, p.dilation, strict=True
        )
    )
    return {
        "rows": tile,
        "vectors": 1,
        "length": max(1, round(fill * 64 * tile)),
        # Pixels that are loaded for each multiply-add.
        "products": touched / (tile * math.prod(p.kernel)),
        "task": F32.bytes(s.vectors * cpu.lanes * p.w * s.rows * s.tile_h),
        "tasks": math.ceil(p.oh / (s.rows * s.tile_h)) * math.ceil(p.oc / (s.vectors * cpu.lanes)),
    }


def _im2col(p: ConvProblem, s: Any, cpu: Cpu) -> Mapping[str, float]:
    pixels = p.oh * p.ow
    return {
        "rows": s.rows,
        "vectors": s.cols,
        "length": p.group_oc if s.layout == "NCHW" else pixels,
        "transforms": 1 / p.group_oc,
        "task": F32.bytes(s.block * s.kc * math.prod(p.kernel)),
        "tasks": math.ceil(pixels / s.block) * math.ceil(p.group_c / s.kc),
        "weights_read": math.ceil(pixels / s.block),
    }


def _winograd(p: ConvProblem, s: Any, cpu: Cpu) -> Mapping[str, float]:
    # A strided or large filter is one in parts, which read further channels.
    wide, parts = widened(p), Parts.of(p).count
    side = (s.mh + wide.kernel[0] - 1) * (s.mw + wide.kernel[1] - 1)
    tiles = math.prod(tile_grid(wide, (s.mh, s.mw)))
    outputs = p.oh * p.ow
    rows = max(1, min((cpu.registers - 1 - s.cols) // s.cols, s.nr_tiles))
    blocks = math.ceil(p.n * tiles / s.nr_tiles)
    return {
        "rows": rows,
        "vectors": s.cols,
        "length": s.nr_tiles,
        "products": parts * tiles * side / (outputs * math.prod(p.kernel)),
        # Transformed numbers of input and output for each product.
        "transforms": 8 * tiles * side * (1 / p.group_c + parts / p.group_oc) / outputs,
        "task": F32.bytes(side * s.nr_tiles * wide.group_c),
        "tasks": blocks,
        "weights": F32.bytes(side * wide.group_c * p.oc),
        "weights_read": blocks,
        "parts": parts,
    }


_SHAPES = {
    "depthwise": _depthwise,
    "direct": _direct,
    "im2col": _im2col,
    "planar": _planar,
    "pointwise": _pointwise,
    "strassen": _strassen,
    "winograd": _winograd,
}

"""A schedule of a problem on a processor in numbers that its time depends on.

Most are known before any code exists: how many lanes of vectors and rows of register tiles do
useful work, loads for each multiply-add, how often operands are read again, and which cache they
fit. All are ratios or logarithms, so that what is learnt from some sizes holds for others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.tile_choice import step_cycles
from fastrun.kernels.codegen.tiling import channel_lanes
from fastrun.kernels.conv.planar import pixel_lanes
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Layout, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import applicable
from fastrun.tuner.model.operations import SHAPES, used
from fastrun.tuner.model.rates import Rates, rates_of

TILES = "amx"
"""The algorithm whose products run in tile registers."""

VECTORS = ("depthwise", "direct", "im2col", "planar", "pointwise", "strassen", "winograd")
"""The others whose schedules have features."""

ALGORITHMS = (*VECTORS, TILES)
"""The algorithms whose schedules have features."""

# Fields of schedules. One that a schedule lacks is -1.
_FIELDS = (
    *("tile_h", "tile_w", "cols", "unroll", "rows", "oc_outer", "prefetch", "ocs", "tiles"),
    *("vectors", "hold", "block", "kc", "fused", "mh", "mw", "nr_tiles", "oc_block"),
    *("columns", "parts", "panels", "strips", "terms"),
)

_PROBLEM = (
    *("channels", "filters", "groups", "height", "width", "kernel_h", "kernel_w", "stride"),
    *("dilation", "padded", "flops", "weights_in_l2", "input_in_l2", "output_in_l2", "all_in_l3"),
    *("added", "activation", "lanes", "registers", "l1", "l2", "l3"),
    *("l2_rate", "l3_rate", "memory_rate", "tile_rate"),
)

_DERIVED = (
    *("tile_rows", "tile_vectors", "accumulators", "loads", "lanes_used", "rows_used"),
    *("products", "transforms", "panel_in_l1", "task_in_l2", "passes", "tasks"),
    *("cycles", "weights_again", "input_again", "taps_met", "filter_parts"),
    *("multiplying", "fetching", "expected"),
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

    Schedules compare with the heuristic's among the algorithms of vectors: `heuristic` says that it
    is that one, `usual` that it has its algorithm. Names with `_moved` say how far fields are from
    the heuristic's, as logarithms, those with `_over` how much what is derived differs from the
    heuristic's. In tiles `heuristic` and `_moved` refer to the heuristic's schedule in tiles, and
    `usual` says that the heuristic prefers them.
    """
    rates = rates_of(cpu)
    problem = _of_problem(p, cpu, rates)
    known = {t.name: t for t in applicable(p, cpu) if t.name in ALGORITHMS}
    best = max((known[x] for x in VECTORS if x in known), key=lambda t: t.rank(p, cpu))
    usual = {best.name: best.heuristic(p, cpu)}
    if tiles := known.get(TILES):
        usual[TILES] = tiles.heuristic(p, cpu)
    fields = {name: _fields(s) for name, s in usual.items()}
    preferred = {best.name, TILES if tiles and tiles.rank(p, cpu) > best.rank(p, cpu) else ""}
    over = _derived(p, best.name, usual[best.name], cpu, rates)
    found = []
    for name, schedule in schedules:
        own = _fields(schedule)
        start = fields.get(name, own)
        moved = (b - a if a >= 0 else 0.0 for a, b in zip(start, own, strict=True))
        derived = _derived(p, name, schedule, cpu, rates)
        found.append(
            [
                *problem,
                *(float(name == other) for other in ALGORITHMS),
                *_layouts(schedule),
                *own,
                *derived,
                float(schedule == usual.get(name)),
                float(name in preferred),
                *moved,
                *(b - a for a, b in zip(over, derived, strict=True)),
            ]
        )
    return np.array(found, np.float32).reshape(len(found), len(NAMES))


def _of_problem(p: ConvProblem, cpu: Cpu, rates: Rates) -> list[float]:
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
        *map(math.log2, (rates.l2, rates.l3, rates.memory, max(1.0, rates.tiles))),
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


def _derived(p: ConvProblem, name: str, s: Any, cpu: Cpu, rates: Rates) -> tuple[float, ...]:
    _, dst = layout_pair(s.layout)
    planes = dst.name == "NCHW"
    lanes = pixel_lanes(p, cpu) if planes else channel_lanes(p.group_oc, dst, cpu, p.precision)
    lanes = max(lanes, 1)
    shape = SHAPES[name](p, s, cpu)
    tile, vectors = int(shape["rows"]), int(shape["vectors"])
    across, down = (p.ow, p.group_oc) if planes else (p.group_oc, int(shape["length"]))
    if name == "depthwise":
        across = p.oc
    across = int(shape.get("across", across))
    panel = F32.bytes(int(shape.get("depth", p.depth)) * vectors * lanes)
    useful = used(across, vectors * lanes) * used(down, tile)
    products, met = shape.get("products", 1.0), shape.get("met", 1.0)
    # Cycles for each product of the direct method, in those of a register tile at full rate.
    full = products * met / useful
    cycles = shape.get("cycles", full * 2 * step_cycles(tile, vectors) / (tile * vectors))
    multiplying = shape.get("cycles", full * _slower(tile, vectors, cpu))
    multiplying += shape.get("extra", 0.0)
    weights = shape.get("weights", F32.bytes(p.oc * p.depth))
    read = F32.bytes(p.n * p.c * p.h * p.w)
    # Seconds of reading what L2 does not keep, in those of all products of the direct method.
    fetching = (
        sum(
            rates.fetching(size, shape.get(times, 1.0), cpu)
            for size, times in ((weights, "weights_read"), (read, "input_read"))
        )
        / p.flops
    )
    return (
        float(tile),
        float(vectors),
        float(tile * vectors),
        (tile + vectors) / (tile * vectors),
        used(across, vectors * lanes),
        used(down, tile),
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
        math.log2(multiplying),
        math.log2(1 + fetching),
        math.log2(multiplying + fetching),
    )


def _slower(tile: int, vectors: int, cpu: Cpu) -> float:
    """How many times longer the steps of a register tile take than their products at full rate.

    Where a unit computes a vector in two halves, the loads of a step hide behind more cycles.
    """
    products = tile * vectors * (2 if cpu.halves else 1)
    return (max(products, tile + vectors, 8) + (tile + vectors) / 16) / products


def _again(p: ConvProblem, size: float, times: float, cpu: Cpu) -> float:
    """Bytes from beyond L2 for each vector of products; L2 keeps half of its size."""
    beyond = size if size <= cpu.l2 / 2 else size * max(1.0, times)
    return math.log2(1 + 2 * cpu.lanes * beyond / p.flops)

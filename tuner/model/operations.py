"""What an algorithm does with the operands of a problem, in numbers: sizes, tiles, tasks, traffic.

`rows` and `vectors` are those of a register tile, `length` the number of rows that tiles divide,
`task` the bytes that a task keeps in L2, `tasks` their number. `products` are multiples of the
direct method's, `transforms` numbers that are transformed for each of them, `extra` what they cost
in products, `met` the share of taps that meet the image. `weights_read` and `input_read` say how
often tasks read all weights (of `weights` bytes) or all input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastrun.kernels.codegen.blocking import input_span
from fastrun.kernels.codegen.reduction import share_met
from fastrun.kernels.conv.amx.schedule import Lines, Window, cycles, vector_cycles, width_of
from fastrun.kernels.conv.amx.sums import CHANNELS
from fastrun.kernels.conv.strassen import AHEAD, PRODUCTS
from fastrun.kernels.conv.winograd.parts import Parts, widened
from fastrun.kernels.conv.winograd.transform import tile_grid
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io


def used(count: int, size: float) -> float:
    """The share of whole tiles of this size that `count` fills."""
    return float(count / (math.ceil(count / size) * size))


def _amx(p: ConvProblem, s: Any, cpu: Cpu) -> Mapping[str, float]:
    src = Io.of(p, s.layout).src
    window = Window.of(p, src, s.terms)
    lines = Lines.of(p, s, width_of(src), min(s.rows, p.oh))
    panels = math.ceil(p.group_oc / CHANNELS)
    strips = math.ceil(p.oh / s.rows)
    blocks = math.ceil(panels / (s.cols * s.panels))
    again = {"input_read": blocks} if s.oc_outer else {"weights_read": strips * p.n}
    copied = 0 if window.in_place else p.h * window.row * p.w * blocks / strips
    return {
        "rows": s.tiles * lines.height,
        "vectors": s.cols,
        "length": lines.total * lines.height,
        # Multiples of the cycles of a register tile at full rate.
        "cycles": cycles(p, s) / vector_cycles(p),
        "task": lines.total * lines.height * s.cols * CHANNELS * F32.bytes(1) + copied,
        "tasks": strips * blocks * p.groups,
        "weights": p.groups * panels * window.weight_bytes,
        **again,
    }


def _direct(p: ConvProblem, s: Any, cpu: Cpu) -> Mapping[str, float]:
    rows = s.rows * s.tile_h
    fill = used(p.oh, s.tile_h) * used(p.ow, s.tile_w)
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
    fill = used(p.oh, s.tile_h) * used(p.ow, s.tile_w)
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
        "extra": 1 / p.group_oc,
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
        "extra": 6
        * tiles
        * side
        * (1 / p.group_c + parts / p.group_oc)
        / (outputs * math.prod(p.kernel)),
        "task": F32.bytes(side * s.nr_tiles * wide.group_c),
        "tasks": blocks,
        "weights": F32.bytes(side * wide.group_c * p.oc),
        "weights_read": blocks,
        "parts": parts,
    }


SHAPES = {
    "amx": _amx,
    "depthwise": _depthwise,
    "direct": _direct,
    "im2col": _im2col,
    "planar": _planar,
    "pointwise": _pointwise,
    "strassen": _strassen,
    "winograd": _winograd,
}
"""For each algorithm whose schedules have features what `features` derives them from."""

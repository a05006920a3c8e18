"""Winograd: the tile on each axis, its points, the block of tiles, and the register tile."""

from __future__ import annotations

import math

from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.conv.winograd import CHUNKS, heuristic, largest_error, template
from fastrun.kernels.conv.winograd.parts import widened
from fastrun.kernels.conv.winograd.schedule import Schedule
from fastrun.kernels.conv.winograd.steps import rounds
from fastrun.kernels.conv.winograd.transform import (
    POINTS,
    sets_of_points,
    shared_outputs,
    tile_grid,
    tile_sizes,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, I16
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.types import Types
from fastrun.search_spaces.space import Space, blocked_layouts, upto


def space(whole: ConvProblem, cpu: Cpu) -> Space:
    p = widened(whole)

    def alphas(s: Schedule) -> tuple[int, int]:
        return s.mh + p.kernel[0] - 1, s.mw + p.kernel[1] - 1

    def tiles(s: Schedule) -> int:
        return p.n * math.prod(tile_grid(p, (s.mh, s.mw)))

    def transforms_an_axis(s: Schedule) -> bool:
        """Without any transform it would be a slow direct convolution."""
        return (s.mh, s.mw) != (1, 1)

    def sets_of_points_differ(s: Schedule) -> bool:
        """Balanced points are never worse; standard ones are tried only where they differ."""
        names = [sets_of_points(alpha - 1) for alpha in alphas(s)]
        return s.points == "balanced" or (
            all("standard" in n for n in names) and any("balanced" in n for n in names)
        )

    def block_has_its_tiles(s: Schedule) -> bool:
        return s.nr_tiles < 2 * tiles(s)

    def planes_fit_caches(s: Schedule) -> bool:
        planes = (I16 if small else F32).bytes(math.prod(alphas(s)) * s.nr_tiles * p.group_c)
        return planes <= max(4 * cpu.l2, cpu.l3 // 4)

    def body_fits_op_cache(s: Schedule) -> bool:
        return s.unroll * cpu.registers <= 128

    def has_the_panels(s: Schedule) -> bool:
        return (s.oc_block - 1) * s.cols * cpu.lanes < p.group_oc

    def exact_enough(s: Schedule) -> bool:
        return template.error(p, s) <= largest_error(p)

    small = rounds(p)
    kinds = [dot.name for dot in dots(Types.pairs(), cpu)]
    chunks = ["", *(str(n) for n in CHUNKS if n < p.group_c)]
    blocks = (4, 8, 12, 14, 16, 18, 21, 24, 28, 36, 42, 49, 56, 84, 112)
    most = p.n * math.prod(tile_grid(p, (2, 2)))
    down, across = shared_outputs(p)
    return Space(
        Schedule,
        {
            "layout": ["NHWC", *blocked_layouts(whole, cpu)],
            "mh": tile_sizes(p.kernel[0], down),
            "mw": tile_sizes(p.kernel[1], across),
            "points": POINTS,
            "nr_tiles": sorted({heuristic(whole, cpu).nr_tiles, *upto(most, *blocks)}),
            "cols": [1, 2, 3, 4],
            "unroll": [2, 4, 8],
            "oc_block": [1, 4],
            "prefetch": [0, 64],
            "split": ["tiles", "channels"],
            **({"dot": kinds, "chunk": chunks} if small else {}),
        },
        [
            transforms_an_axis,
            sets_of_points_differ,
            block_has_its_tiles,
            planes_fit_caches,
            body_fits_op_cache,
            has_the_panels,
            *([exact_enough] if small else []),
        ],
    )

"""Winograd: the tile on each axis, its points, the block of tiles, and the register tile."""

from __future__ import annotations

from kernels.codegen.winograd import POINTS
from kernels.conv.winograd import Schedule
from kernels.core.cpu import Cpu
from kernels.core.problem import ConvProblem
from search_spaces.space import Space, blocked_layouts, upto


def space(p: ConvProblem, cpu: Cpu) -> Space:
    most = p.n * -(-p.oh // 2) * -(-p.ow // 2)

    def sizes(r: int, extent: int) -> list[int]:
        return [1] if r == 1 else [m for m in (2, 4, 6) if m + r <= 9 and m < 2 * extent] or [2]

    def enough_points(s: Schedule) -> bool:
        alpha = max(s.mh + p.kernel[0], s.mw + p.kernel[1]) - 1
        return alpha - 1 <= len(POINTS[s.points])

    def one_set_where_sets_agree(s: Schedule) -> bool:
        """Tiles of two use 0, 1 and -1 only."""
        return s.points == "standard" or max(s.mh, s.mw) > 2

    def block_has_its_tiles(s: Schedule) -> bool:
        tiles = p.n * -(-p.oh // s.mh) * -(-p.ow // s.mw)
        return s.nr_tiles <= 2 * tiles

    def planes_fit_caches(s: Schedule) -> bool:
        planes = (s.mh + p.kernel[0] - 1) * (s.mw + p.kernel[1] - 1)
        return 4 * planes * s.nr_tiles * p.group_c <= max(4 * cpu.l2, cpu.l3 // 4)

    return Space(
        Schedule,
        {
            "layout": ["NHWC", *blocked_layouts(p, cpu)],
            "mh": sizes(p.kernel[0], p.oh),
            "mw": sizes(p.kernel[1], p.ow),
            "points": list(POINTS),
            "nr_tiles": upto(most, 4, 8, 12, 16, 20, 24, 28, 32, 42, 49, 56, 64, 84, 98, 128),
            "cols": [1, 2, 3, 4],
            "unroll": [1, 2, 4, 8],
            "oc_block": [1, 2, 4],
            "prefetch": [0, 4, 16],
            "split": ["tiles", "channels"],
        },
        [enough_points, one_set_where_sets_agree, block_has_its_tiles, planes_fit_caches],
    )

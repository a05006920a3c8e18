"""Planar: the register tile, how it is unrolled, and the order of tasks."""

from __future__ import annotations

from fastrun.kernels.conv.planar import Schedule, pixel_lanes
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import Space, tile_rules, upto


def space(p: ConvProblem, cpu: Cpu) -> Space:
    vectors = -(-p.ow // pixel_lanes(p, cpu))

    fits_registers, body_fits_op_cache = tile_rules(cpu, lambda s: (s.ocs, s.cols))

    def hides_latency(s: Schedule) -> bool:
        """Fewer accumulators than four per FMA port leave it waiting for its own results."""
        return s.ocs * s.cols >= min(8, p.group_oc * vectors)

    return Space(
        Schedule,
        {
            "layout": ["NCHW"],
            "ocs": upto(p.group_oc, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28),
            "cols": upto(vectors, 1, 2, 3, 4, 6),
            "unroll": sorted({1, p.kernel[1], p.kernel[0] * p.kernel[1]}),
            "rows": upto(p.oh, 1, 2, 4, 8, 16, 64),
            "oc_outer": [False, True],
        },
        [fits_registers, hides_latency, body_fits_op_cache],
    )

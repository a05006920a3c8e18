"""MEC: the register tile and its loop body."""

from __future__ import annotations

from fastrun.kernels.conv.mec import Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import Space, tile_rules, upto


def space(p: ConvProblem, cpu: Cpu) -> Space:
    return Space(
        Schedule,
        {
            "layout": ["NHWC"],
            "rows": upto(p.ow, 2, 4, 6, 9, 14),
            "cols": [1, 2, 3, 4],
            "unroll": [1, 4, 8],
        },
        tile_rules(cpu, lambda s: (s.rows, s.cols)),
    )

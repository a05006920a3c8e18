"""Naive Winograd: the tile, and nothing else."""

from __future__ import annotations

from fastrun.kernels.conv.winograd_naive import Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import Space


def space(p: ConvProblem, cpu: Cpu) -> Space:
    sizes = [m for m in (2, 4, 6) if m + max(p.kernel) <= 9]
    return Space(Schedule, {"layout": ["NCHW"], "m": sizes})

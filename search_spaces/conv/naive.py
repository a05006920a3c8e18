"""A single point: a baseline is not tuned."""

from fastrun.kernels.conv.naive import Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import Space


def space(p: ConvProblem, cpu: Cpu) -> Space:
    return Space(Schedule, {"layout": ["NCHW"]})

"""One point: a baseline is not tuned."""

from kernels.conv.naive import Schedule
from kernels.core.cpu import Cpu
from kernels.core.problem import ConvProblem
from search_spaces.space import Space


def space(p: ConvProblem, cpu: Cpu) -> Space:
    return Space(Schedule, {"layout": ["NCHW"]})

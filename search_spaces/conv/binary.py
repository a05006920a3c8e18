"""Binary: the register tile, how it is unrolled, and the order of tasks."""

from __future__ import annotations

from fastrun.kernels.conv.binary import Schedule, further_registers
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import Space, tile_rules, upto


def space(p: ConvProblem, cpu: Cpu) -> Space:
    rules = tile_rules(cpu, lambda s: (s.tile_w, s.cols), lambda s: further_registers(cpu))

    def has_the_channels(s: Schedule) -> bool:
        return (s.cols - 1) * cpu.lanes < p.oc

    return Space(
        Schedule,
        {
            "layout": ["NHWC"],
            "tile_w": range(1, min(p.ow, cpu.registers - 4) + 1),
            "cols": [1, 2, 3, 4, 6],
            "unroll": [1, 2, 4, 8],
            "rows": upto(p.oh, 1, 2, 4, 8, 16, 64),
            "oc_outer": [False, True],
        },
        [*rules, has_the_channels],
    )

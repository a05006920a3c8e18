"""Strassen: the register tile, and how pixels and output channels are shared among tasks."""

from __future__ import annotations

from fastrun.kernels.conv.strassen import AHEAD, Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import Space, blocked_layouts, tile_rules, upto


def space(p: ConvProblem, cpu: Cpu) -> Space:
    half = -(-p.h * p.w // 2)
    fits_registers, body_fits_op_cache = tile_rules(cpu, lambda s: (s.rows, s.cols))

    def hides_latency(s: Schedule) -> bool:
        """Fewer accumulators than four per FMA port leave it waiting for its own results."""
        return s.rows * s.cols >= 8 or p.oc * half < 16 * cpu.lanes

    def has_the_channels(s: Schedule) -> bool:
        return (s.cols - 1) * cpu.lanes < p.oc // 2

    return Space(
        Schedule,
        {
            "layout": ["NHWC", *blocked_layouts(p, cpu)],
            "rows": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 20, 24, 28],
            "cols": [1, 2, 3, 4, 6],
            "unroll": upto(p.c // 2, 2, 4, 8, 16),
            "tiles": upto(half, 1, 2, 3, 4, 6, 8, 11, 16, 32, 64),
            "parts": upto(p.oc // (2 * cpu.block), *sorted({1, 2, cpu.cores, 2 * cpu.cores})),
            "prefetch": [0, AHEAD],
        },
        [fits_registers, hides_latency, has_the_channels, body_fits_op_cache],
    )

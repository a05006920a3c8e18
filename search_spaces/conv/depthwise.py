"""Depthwise: the register tile, where weights are kept, and what a task is."""

from __future__ import annotations

from fastrun.kernels.conv.depthwise import Schedule, Span, kinds, registers
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import BLOCKS, Layout, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import Space, upto


def space(p: ConvProblem, cpu: Cpu) -> Space:
    blocked = [Layout(f"NCHW{b}c") for b in BLOCKS if cpu.lanes <= 2 * b <= 4 * cpu.lanes]
    layouts = ["NHWC", *(str(b) for b in blocked if Span.of(p, b, b, cpu).fits)]
    vectors = -(-p.oc // min(Span.of(p, *layout_pair(name), cpu).outputs for name in layouts))

    def fits_registers(s: Schedule) -> bool:
        return registers(p, s, cpu) <= cpu.registers

    def hides_latency(s: Schedule) -> bool:
        """Fewer accumulators than four leave even one FMA port waiting for its own results."""
        return s.tile_h * s.tile_w >= min(4, p.oh * p.ow)

    def has_the_vectors(s: Schedule) -> bool:
        return s.vectors <= -(-p.oc // Span.of(p, *layout_pair(s.layout), cpu).outputs)

    return Space(
        Schedule,
        {
            "layout": layouts,
            "tile_h": upto(p.oh, 1, 2, 3, 4),
            "tile_w": upto(p.ow, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16),
            "vectors": sorted({*upto(vectors, 1, 2, 4, 8), vectors}),
            "rows": upto(p.oh, 1, 2, 4, 8, 16, 64),
            "hold": [False, True],
            **({"dot": list(kinds(p, cpu))} if p.types else {}),
        },
        [fits_registers, hides_latency, has_the_vectors],
    )

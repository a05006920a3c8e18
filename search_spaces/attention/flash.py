"""Flash: the register tile, blocks of keys, unrolling, and the queries of a task."""

from __future__ import annotations

from fastrun.kernels.core.attention import AttentionProblem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.ops.attention import Schedule
from fastrun.search_spaces.space import Space, tile_rules, upto


def space(p: AttentionProblem, cpu: Cpu) -> Space:
    fits_registers, body_fits_op_cache = tile_rules(cpu, lambda s: (s.rows, s.cols))

    def hides_latency(s: Schedule) -> bool:
        """Fewer accumulators than four per FMA port leave it waiting for its own results."""
        return s.rows * s.cols >= 8 or p.queries < 8

    def has_the_vectors(s: Schedule) -> bool:
        return (s.cols - 1) * cpu.lanes < max(p.values, p.keys)

    def has_the_tiles(s: Schedule) -> bool:
        """A task of more queries than there are is one of all queries."""
        return s.tiles == 1 or (s.tiles // 2) * s.rows < p.queries

    return Space(
        Schedule,
        {
            "layout": ["NHWC"],
            "rows": upto(p.queries, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 20, 28),
            "cols": [1, 2, 3, 4, 6],
            "keys": [*upto(p.keys - 1, 16, 32, 64, 128, 256, 512, 1024), p.keys],
            "tiles": [1, 2, 4, 8, 16, 32, 64, 256],
            "unroll": upto(p.size, 1, 2, 4, 8, 16),
        },
        [fits_registers, body_fits_op_cache, hides_latency, has_the_vectors, has_the_tiles],
    )

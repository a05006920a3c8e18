"""Pointwise: the register tile over flattened pixels, unrolling, and the order of tasks."""

from __future__ import annotations

from fastrun.kernels.conv.pointwise import Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import (
    DotDomain,
    Space,
    blocked_layouts,
    blocks_of_k,
    prefetch_distances,
    tile_rules,
    upto,
)


def space(p: ConvProblem, cpu: Cpu) -> Space:
    pixels, kinds = p.h * p.w, DotDomain(p, cpu)

    fits_registers, body_fits_op_cache = tile_rules(
        cpu, lambda s: (s.rows, s.cols), kinds.registers
    )

    def hides_latency(s: Schedule) -> bool:
        """Fewer accumulators than four per FMA port leave it waiting for its own results."""
        return s.rows * s.cols >= 8 or p.oc * pixels < 8 * cpu.lanes

    def has_the_channels(s: Schedule) -> bool:
        return s.layout == "NCHW" or (s.cols - 1) * cpu.lanes < p.group_oc

    def fetches_ahead_for_vectors_of_channels(s: Schedule) -> bool:
        return s.layout != "NCHW" or not s.prefetch

    def blocks_of_vectors_of_channels(s: Schedule) -> bool:
        return s.layout != "NCHW" or not s.kc

    def whole_channel_blocks(s: Schedule) -> bool:
        block = Layout(s.layout).blocked
        return not s.kc or not block or int(s.kc) % block == 0

    blocks = blocks_of_k(p, cpu)
    return Space(
        Schedule,
        {
            "layout": [*([] if p.types else ["NCHW"]), "NHWC", *blocked_layouts(p, cpu)],
            "rows": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 16, 20, 24, 28],
            "cols": [1, 2, 3, 4, 6],
            "unroll": upto(p.group_c, 1, 2, 4, 8, 16, 32),
            "tiles": upto(pixels, 1, 2, 4, 8, 16, 64, 256),
            "oc_outer": [False, True],
            **blocks,
            "prefetch": prefetch_distances(p, cpu),
            **kinds.domain,
        },
        [
            fits_registers,
            hides_latency,
            has_the_channels,
            fetches_ahead_for_vectors_of_channels,
            body_fits_op_cache,
            *([blocks_of_vectors_of_channels, whole_channel_blocks] if blocks else []),
            *([kinds.groups_fill_blocks] if p.types else []),
        ],
    )

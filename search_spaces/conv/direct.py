"""Direct: the register tile, its loop body, blocks of K and of the image, the order of tasks."""

from __future__ import annotations

from fastrun.kernels.codegen.blocking import input_span
from fastrun.kernels.codegen.tiling import channel_lanes
from fastrun.kernels.conv.direct import Schedule
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
    layouts = ["NHWC", *blocked_layouts(p, cpu)]
    kinds = DotDomain(p, cpu)
    if p.group_c < cpu.lanes and p.groups == 1 and not p.precision.integer:
        layouts += [f"NCHW>{layout}" for layout in layouts]

    fits_registers, body_fits_op_cache = tile_rules(
        cpu, lambda s: (s.tile_h * s.tile_w, s.cols), kinds.registers
    )

    def hides_latency(s: Schedule) -> bool:
        """Fewer accumulators than four per FMA port leave it waiting for its own results."""
        widest = min(s.tile_h, p.oh) * min(s.tile_w, p.ow) * s.cols
        return widest >= 8 or p.oh * p.ow * s.cols < 8

    def has_the_channels(s: Schedule) -> bool:
        lanes = channel_lanes(p.group_oc, Layout(s.layout.rpartition(">")[2]), cpu, p.precision)
        return (s.cols - 1) * lanes < p.group_oc

    # Whole rows, unless L2 could not hold what a part of the image's width reads.
    wide = input_span(p, 1, p.ow) > cpu.l2 // 2
    columns = {"columns": ["", "32", "16", "8", "4"]} if wide else {}
    blocks = {} if p.c < cpu.lanes else blocks_of_k(p, cpu)

    def whole_channel_blocks(s: Schedule) -> bool:
        block = Layout(s.layout.partition(">")[0]).blocked
        return not s.kc or not block or int(s.kc) % block == 0

    return Space(
        Schedule,
        {
            "layout": layouts,
            "tile_h": upto(p.oh, 1, 2, 3),
            "tile_w": range(1, min(p.ow, cpu.registers - 4) + 1),
            "cols": [1, 2, 3, 4, 6],
            "unroll": [1, 2, 4, 8, 16, 32],
            "rows": upto(p.ow if p.oh == 1 else p.oh, 1, 2, 4, 8, 16, 64),
            "oc_outer": [False, True],
            **columns,
            **blocks,
            "prefetch": prefetch_distances(p, cpu),
            **kinds.domain,
        },
        [
            fits_registers,
            hides_latency,
            has_the_channels,
            body_fits_op_cache,
            *([whole_channel_blocks] if blocks else []),
            *([kinds.groups_fill_blocks] if p.types else []),
        ],
    )

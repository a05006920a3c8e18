"""im2col: the register tile, the block of pixels and of K, and whether packing is fused."""

from __future__ import annotations

from fastrun.kernels.conv.im2col.forms import kinds
from fastrun.kernels.conv.im2col.schedule import Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.problem import ConvProblem
from fastrun.search_spaces.space import Space, blocked_layouts, tile_rules, upto


def space(p: ConvProblem, cpu: Cpu) -> Space:
    pixels, known = p.oh * p.ow, kinds(p, cpu)

    fits_registers, body_fits_op_cache = tile_rules(
        cpu, lambda s: (s.rows, s.cols), lambda s: known[s.dot].registers
    )

    def hides_latency(s: Schedule) -> bool:
        """Fewer accumulators than four per FMA port leave it waiting for its own results."""
        return s.rows * s.cols >= 8

    def whole_channel_blocks(s: Schedule) -> bool:
        block = int("0" + s.layout.strip("NCHWc"))
        return not block or s.kc % block == 0 or s.kc == p.group_c

    def unfolds_less_than_a_megabyte_or_all(s: Schedule) -> bool:
        """Blocks fit some cache, or are the textbook's whole image; nothing in between is tried."""
        unfolded = F32.bytes(s.block * s.kc * p.kernel[0] * p.kernel[1])
        return s.block == pixels or unfolded <= max(1 << 20, 2 * cpu.l2)

    return Space(
        Schedule,
        {
            "layout": [*([] if p.types else ["NCHW"]), "NHWC", *blocked_layouts(p, cpu)],
            "rows": [2, 3, 4, 5, 6, 7, 8, 10, 12, 14],
            "cols": [1, 2, 3, 4, 6],
            "unroll": [1, 2, 4, 8],
            "block": sorted({*upto(pixels, 24, 48, 96, 192, 384, 768, 1536), pixels}),
            "kc": sorted({*upto(p.group_c, 8, 16, 32, 64, 128), p.group_c}),
            "fused": [True] if p.types else [False, True],
            **({"dot": list(known)} if p.types else {}),
        },
        [
            fits_registers,
            hides_latency,
            whole_channel_blocks,
            unfolds_less_than_a_megabyte_or_all,
            body_fits_op_cache,
        ],
    )

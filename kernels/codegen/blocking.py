"""Formulas for the blocks of products whose pixels are read where they lie: direct and 1x1."""

from __future__ import annotations

from fastrun.kernels.codegen.tile_choice import tiles_per_task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.problem import ConvProblem

# Register tiles that must read a panel of weights again, and terms of a block of K, for which
# leaving the sums and fetching them again costs less than weights from L2. Measured on 1x1
# convolutions (Zen 4): gains up to 14 % with 25 tiles and more, losses up to 5 % with 17 to 20.
REUSED, TERMS = 24, 64


def input_span(p: ConvProblem, rows: int, columns: int) -> int:
    """Bytes of the input that so many rows and columns of the output read, of one group.

    Taps that lie further apart than the outputs leave gaps between what they read.
    """

    def read(size: int, stride: int, taps: int, apart: int, limit: int) -> int:
        run = (size - 1) * stride + 1
        return min(limit, run + (taps - 1) * min(apart, run))

    axes = zip((rows, columns), p.stride, p.kernel, p.dilation, (p.h, p.w), strict=True)
    down, across = (read(*axis) for axis in axes)
    return p.precision.src.bytes(p.group_c * down * across)


def strip(
    p: ConvProblem, tile_h: int, tile_w: int, panels: int, panel: int, cpu: Cpu
) -> tuple[int, int]:
    """Register tiles of a task, down and across: their input fills half of L2.

    The `panels` of weights stream through the other half; L2 holds at least one, of `panel` bytes,
    beside the input. Tasks take whole rows. Only if L2 cannot hold what a row of tiles reads they
    take a part of it.
    """
    fit = cpu.l2 // 2 // p.precision.src.bytes(p.group_c * p.w * p.stride[0] * tile_h)
    rows = tiles_per_task(-(-p.oh // tile_h), fit, cpu, panels, p.n * p.groups)
    across = -(-p.ow // tile_w)
    while rows > 1 and input_span(p, rows * tile_h, p.ow) + panel > cpu.l2:
        rows -= 1
    room, parts = min(cpu.l2 // 2 if fit == 0 else cpu.l2, cpu.l2 - panel), 1
    while parts < across and input_span(p, rows * tile_h, -(-across // parts) * tile_w) > room:
        parts += 1
    return rows, -(-across // parts)


def block_of_k(p: ConvProblem, rows: int, panel: int, unit: int, tiles: int, cpu: Cpu) -> int:
    """Input channels of a block of K: L1 holds a panel of weights and the pixels of a tile.

    A tile has `rows` pixels and `panel` output channels, `unit` channels lie together, and `tiles`
    register tiles read a panel one after another. If they are too few, L2 must hold a panel; if no
    number of units that is worth it divides the channels, all of them are one block.
    """
    taps = p.kernel[0] * p.kernel[1]
    for size in (cpu.l1, cpu.l2 // 2) if tiles >= REUSED else (cpu.l2 // 2,):
        limit = size // F32.bytes(taps * (rows + panel))
        enough = limit if size == cpu.l1 else 2 * limit
        if p.group_c <= enough or p.types:
            break
        parts = (kc for kc in range(unit, limit + 1, unit) if p.group_c % kc == 0)
        if kc := max((kc for kc in parts if kc * taps >= TERMS), default=0):
            return kc
    return p.group_c

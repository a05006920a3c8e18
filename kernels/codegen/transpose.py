"""Square transposes inside vector registers."""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.kernels.codegen.builder import Kernel, Vec
from fastrun.kernels.core.dtype import F32, DType

# Floats in 128 bits: the widest piece that moves inside one part of a register on every target.
PART = 4


def cell_side(dtype: DType) -> int:
    """Elements in 128 bits."""
    return PART * F32.bits // dtype.bits


def transpose(k: Kernel, rows: Sequence[Vec]) -> list[Vec]:
    """Column i of `rows` as the i-th result.

    There are as many rows as elements in 128 bits, or as many as lanes. It transposes first the
    square cells inside 128-bit parts, then the parts. Shuffles that cross parts are slow or take
    an index register.
    """
    lanes, side = rows[0].lanes, cell_side(rows[0].dtype)
    cells = [_cell(k, rows[first : first + side]) for first in range(0, len(rows), side)]
    columns: dict[int, Vec] = {}
    for j in range(side):
        for number, column in enumerate(_parts(k, [cell[j] for cell in cells])):
            columns[number * side + j] = column
    return [columns[i] for i in range(lanes)]


def _cell(k: Kernel, rows: Sequence[Vec], width: int = 1) -> list[Vec]:
    """As many rows as pieces of `width` elements in 128 bits -> columns, in each part by itself."""
    if len(rows) == 1:
        return list(rows)
    lows, highs = list[Vec](), list[Vec]()
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        lows.append(_zip(k, a, b, width, 0))
        highs.append(_zip(k, a, b, width, 1))
    return _cell(k, lows, 2 * width) + _cell(k, highs, 2 * width)


def _parts(k: Kernel, rows: Sequence[Vec]) -> list[Vec]:
    """The transpose of a square of 128-bit parts, two or four of them a row; or a row's parts."""
    if len(rows) == 1:
        [row] = rows
        side = cell_side(row.dtype)
        if row.lanes == side:
            return [row]
        return [_pick(k, row, row, [number]) for number in range(row.lanes // side)]
    if len(rows) == 2:
        a, b = rows
        return [_pick(k, a, b, order) for order in ((0, 2), (1, 3))]
    columns = []
    for half in ((0, 1, 4, 5), (2, 3, 6, 7)):
        ab, cd = _pick(k, rows[0], rows[1], half), _pick(k, rows[2], rows[3], half)
        columns += [_pick(k, ab, cd, order) for order in ((0, 2, 4, 6), (1, 3, 5, 7))]
    return columns


def _zip(k: Kernel, a: Vec, b: Vec, width: int, half: int) -> Vec:
    """Pieces of `width` elements of a and b in turn, from one half of each 128-bit part."""
    side = cell_side(a.dtype)
    starts = range(half * side // 2, (half + 1) * side // 2, width)
    lanes = [
        source + first + start + i
        for first in range(0, a.lanes, side)
        for start in starts
        for source in (0, a.lanes)
        for i in range(width)
    ]
    return k.shuffle(a, b, lanes)


def _pick(k: Kernel, a: Vec, b: Vec, order: Sequence[int]) -> Vec:
    """Whole 128-bit parts, a's then b's."""
    side = cell_side(a.dtype)
    return k.shuffle(a, b, [number * side + i for number in order for i in range(side)])

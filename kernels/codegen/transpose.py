"""Square transposes inside vector registers."""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.kernels.codegen.builder import Kernel, Vec

# Lanes of the widest piece that moves inside one 128-bit part of a register on every target.
PART = 4


def transpose(k: Kernel, rows: Sequence[Vec]) -> list[Vec]:
    """Column i of `rows` as the i-th result; as many rows as lanes, 4, 8 or 16.

    It transposes first the 4x4 cells inside 128-bit parts, then the parts. Shuffles that cross
    parts are slow or take an index register.
    """
    lanes = len(rows)
    cells = [_cell(k, rows[first : first + PART]) for first in range(0, lanes, PART)]
    columns: dict[int, Vec] = {}
    for j in range(PART):
        for part, column in enumerate(_parts(k, [cell[j] for cell in cells])):
            columns[part * PART + j] = column
    return [columns[i] for i in range(lanes)]


def _cell(k: Kernel, rows: Sequence[Vec]) -> list[Vec]:
    """Four rows -> four columns, in each 128-bit part by itself."""
    a, b, c, d = rows
    low_ab, high_ab = _zip(k, a, b, (0, 4, 1, 5)), _zip(k, a, b, (2, 6, 3, 7))
    low_cd, high_cd = _zip(k, c, d, (0, 4, 1, 5)), _zip(k, c, d, (2, 6, 3, 7))
    return [
        _zip(k, low_ab, low_cd, (0, 1, 4, 5)),
        _zip(k, low_ab, low_cd, (2, 3, 6, 7)),
        _zip(k, high_ab, high_cd, (0, 1, 4, 5)),
        _zip(k, high_ab, high_cd, (2, 3, 6, 7)),
    ]


def _parts(k: Kernel, rows: Sequence[Vec]) -> list[Vec]:
    """The transpose of a square of 128-bit parts: one, two or four of them a row."""
    if len(rows) == 1:
        return list(rows)
    if len(rows) == 2:
        a, b = rows
        return [_pick(k, a, b, order) for order in ((0, 2), (1, 3))]
    columns = []
    for half in ((0, 1, 4, 5), (2, 3, 6, 7)):
        ab, cd = _pick(k, rows[0], rows[1], half), _pick(k, rows[2], rows[3], half)
        columns += [_pick(k, ab, cd, order) for order in ((0, 2, 4, 6), (1, 3, 5, 7))]
    return columns


def _zip(k: Kernel, a: Vec, b: Vec, order: Sequence[int]) -> Vec:
    """The same pick from each 128-bit part of a (0-3) and b (4-7)."""
    lanes = [
        part + i if i < PART else a.lanes + part + i - PART
        for part in range(0, a.lanes, PART)
        for i in order
    ]
    return k.shuffle(a, b, lanes)


def _pick(k: Kernel, a: Vec, b: Vec, order: Sequence[int]) -> Vec:
    """Whole 128-bit parts, a's then b's."""
    return k.shuffle(a, b, [part * PART + i for part in order for i in range(PART)])

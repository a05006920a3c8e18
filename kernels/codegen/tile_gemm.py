"""The register tile everyone shares: one step of a matrix product held in vector registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kernels.codegen.builder import Tile, Vec, fma


def outer_product(acc: Tile, a: Callable[[int], Vec], b: Callable[[int], Vec]) -> None:
    """acc[i, j] += a(i) * b(j): one step along K.

    The smaller side is held in registers and the larger streamed, so that
    rows * cols + min(rows, cols) + 1 registers do; the other order spills.
    """
    if acc.cols <= acc.rows:
        held = [b(j) for j in range(acc.cols)]
        for i in range(acc.rows):
            x = a(i)
            for j, y in enumerate(held):
                acc[i, j] = fma(x, y, acc[i, j])
    else:
        held = [a(i) for i in range(acc.rows)]
        for j in range(acc.cols):
            y = b(j)
            for i, x in enumerate(held):
                acc[i, j] = fma(x, y, acc[i, j])


def registers(rows: int, cols: int) -> int:
    """Vector registers that `outer_product` keeps alive."""
    return rows * cols + min(rows, cols) + 1


@dataclass(frozen=True)
class Run:
    """`count` tiles of `size` one after another, the first at `start`."""

    start: int
    size: int
    count: int


def cover(total: int, tile: int) -> list[Run]:
    """Cover `total` by the fewest tiles of at most `tile`, sizes equal to within one.

    49 by 6 is five tiles of 5 after four of 6: a mix wastes less than padding.
    """
    tiles = -(-total // tile)
    small, larger = divmod(total, tiles)
    runs = [Run(0, small + 1, larger), Run(larger * (small + 1), small, tiles - larger)]
    return [r for r in runs if r.count and r.size]

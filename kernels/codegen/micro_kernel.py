"""The register tile that all products share: one step along K, and what fits the registers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from fastrun.kernels.codegen.builder import Tile, Vec, fma
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.template import check

# Multiply-adds in a loop body beyond which compiling takes seconds and code caches overflow.
STRAIGHT = 2048


T = TypeVar("T")


def _fma(total: Vec, x: Any, y: Any) -> Vec:
    return fma(x, y, total)


def outer_product(
    acc: Tile, a: Iterable[T], b: Iterable[T], add: Callable[[Vec, T, T], Vec] = _fma
) -> None:
    """acc[i, j] += a[i] * b[j]: one step along K. `add` may be another product, see `dot`.

    The smaller side is held in registers and the larger one streamed: rows * cols +
    min(rows, cols) + 1 registers are enough, where the other order spills. So the vectors are
    given as generators, which load each one where it is used.
    """
    if acc.cols <= acc.rows:
        held = list(b)
        for i, x in enumerate(a):
            for j, y in enumerate(held):
                acc[i, j] = add(acc[i, j], x, y)
    else:
        held = list(a)
        for j, y in enumerate(b):
            for i, x in enumerate(held):
                acc[i, j] = add(acc[i, j], x, y)


def registers(rows: int, cols: int) -> int:
    """Vector registers that `outer_product` uses."""
    return rows * cols + min(rows, cols) + 1


def check_tile(cpu: Cpu, rows: int, cols: int, steps: int, further: int = 0) -> None:
    """Raise `ScheduleError` unless the registers hold a tile, and its loop body is not too long.

    The body has `steps` of K as straight code, which needs `further` registers.
    """
    check(registers(rows, cols) + further <= cpu.registers, "tile needs too many registers")
    check(rows * cols * steps <= STRAIGHT, f"{steps} steps of a {rows}x{cols} tile are too long")

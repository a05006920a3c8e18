"""The register tile everyone shares, and how tiles cover an output."""

from __future__ import annotations

from collections.abc import Callable

from fastrun.kernels.codegen.builder import Tile, Vec, fma
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.template import check

# Multiply-adds of a loop body beyond which compiling takes seconds, and the code leaves its caches.
STRAIGHT = 2048


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


def check_tile(cpu: Cpu, rows: int, cols: int, steps: int) -> None:
    """Raise `ScheduleError` unless a register tile fits the processor and its code the compiler.

    `steps` of K are straight code.
    """
    check(registers(rows, cols) <= cpu.registers, "tile needs too many registers")
    check(rows * cols * steps <= STRAIGHT, f"{steps} steps of a {rows}x{cols} tile are too long")

"""The cost model of register tiles, and the tile it chooses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from fastrun.kernels.codegen.micro_kernel import registers
from fastrun.kernels.codegen.tiling import cover
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32


def step_cycles(rows: int, cols: int) -> float:
    """Cycles of one `outer_product` on a core with two FMA and two load ports, FMA latency four.

    The last term is the cost of loads that are not hidden. Of two tiles at full rate, the one
    with fewer loads is therefore cheaper.
    """
    return max(rows * cols, rows + cols, 8) / 2 + (rows + cols) / 32


def tiles_per_task(tiles: int, fit: int, cpu: Cpu) -> int:
    """Tiles per task: about `fit`, which a cache holds, and the same number of tasks per core."""
    tasks = -(-tiles // max(1, fit))
    tasks = min(tiles, -(-tasks // cpu.cores) * cpu.cores)
    return -(-tiles // tasks)


def best_tile(
    height: int,
    width: int,
    vectors: int,
    cpu: Cpu,
    depth: int = 0,
    share: Callable[[int], float] = lambda rows: 1.0,
    further: int = 0,
) -> tuple[int, int, int]:
    """(rows, columns, vectors) of the register tile that covers an output in fewest cycles.

    It counts only FMAs and loads, for sums of `depth` products. `share(rows)` is the part of them
    that tiles of so many rows need, `further` the registers that a step needs beside the tile. Of
    equally good tiles the least high one is chosen.
    """

    def from_l2(rows: int, cols: int) -> float:
        # Measured on 1x1 convolutions: cycles of a step that are not hidden.
        return (rows + 3 * cols * cpu.lanes / 16) / 20

    def cycles(shape: tuple[int, int, int]) -> tuple[float, int]:
        th, tw, cols = shape
        sizes = product(cover(height, th), cover(width, tw), cover(vectors, cols))
        far = F32.bytes(depth * cols * cpu.lanes) > cpu.l1 // 2
        total = 0.0
        for y, x, v in sizes:
            tile = y.size * x.size, v.size
            step = step_cycles(*tile) + (from_l2(*tile) if far else 0)
            total += y.count * x.count * v.count * step
        return total * share(th), th

    shapes = [
        (th, tw, cols)
        for cols in range(1, min(vectors, 6) + 1)
        for th in (1, 2, 3)
        for tw in range(1, min(width, cpu.registers) + 1)
        if th <= height and registers(th * tw, cols) + further <= cpu.registers
    ]
    return min(shapes, key=cycles)

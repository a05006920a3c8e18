"""The cost model of register tiles, and the tile it chooses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

from fastrun.kernels.codegen.micro_kernel import registers
from fastrun.kernels.codegen.tiling import cover
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32


def step_cycles(rows: int, cols: int, widens: bool = False) -> float:
    """Cycles of one `outer_product` on a core with two FMA and two load ports, FMA latency four.

    The last term is the cost of loads that are not hidden. Of two tiles at full rate, the one
    with fewer loads is therefore cheaper. A step that `widens` bytes takes those of each pixel
    apart and loads two vectors of weights for one, which costs half as much as a sum; additions
    need not wait.
    """
    loads = (rows + cols) / 32
    if widens:
        return (rows * cols + (rows + cols) / 2) / 2 + loads
    return max(rows * cols, rows + cols, 8) / 2 + loads


# How much longer the busiest core may work than the mean before tasks get smaller; and what tasks
# of half the size cost, as a share of the work, since each reads its weights again.
_UNEVEN, _HALVED = 1.03, 0.02


def tiles_per_task(tiles: int, fit: int, cpu: Cpu, panels: int = 1, images: int = 1) -> int:
    """Tiles per task: about `fit`, which a cache holds, or less if cores then get equal work.

    Each of the `images` has a task for every so many tiles and every one of `panels`.
    """
    tasks = -(-tiles // max(1, fit))
    tasks = min(tiles, -(-tasks // cpu.cores) * cpu.cores)
    largest = -(-tiles // tasks)
    mean = tiles * panels / cpu.cores
    if images % cpu.cores == 0 or _busiest(tiles, largest, panels, cpu.cores) <= _UNEVEN * mean:
        return largest

    def cost(size: int) -> tuple[float, int]:
        again = _HALVED * (largest / size - 1)
        return _busiest(tiles, size, panels, cpu.cores) / mean + again, -size

    return min(range(1, largest + 1), key=cost)


def _busiest(tiles: int, size: int, panels: int, cores: int) -> int:
    """The tiles of the core with most, of tasks that are shared out in order: panels lie inside."""
    rows = -(-tiles // size)
    tasks, missing = rows * panels, rows * size - tiles
    ends = [tasks * core // cores for core in range(cores + 1)]
    return max(
        size * (end - begin) - missing * max(0, end - max(begin, tasks - panels))
        for begin, end in pairwise(ends)
    )


def best_tile(
    height: int,
    width: int,
    vectors: int,
    cpu: Cpu,
    depth: int = 0,
    share: Callable[[int], float] = lambda rows: 1.0,
    further: int = 0,
    widens: bool = False,
) -> tuple[int, int, int]:
    """(rows, columns, vectors) of the register tile that covers an output in fewest cycles.

    It counts only FMAs and loads, for sums of `depth` products. `share(rows)` is the part of them
    that tiles of so many rows need, `further` the registers that a step needs beside the tile; it
    may be one that `widens` bytes. Of equally good tiles the least high one is chosen.
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
            step = step_cycles(*tile, widens) + (from_l2(*tile) if far else 0)
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

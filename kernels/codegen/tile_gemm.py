"""The register tile everyone shares, and how tiles cover an output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from kernels.codegen.builder import Index, Int, Kernel, Tile, Vec, fma, least
from kernels.core.cpu import Cpu
from kernels.core.layout import Io, Layout
from kernels.core.problem import ConvProblem
from kernels.core.template import check

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


def step_cycles(rows: int, cols: int) -> float:
    """Cycles of one `outer_product` on a core with two FMA and two load ports, FMA latency four.

    The last term is the cost of loads that do not hide: of two tiles at full rate, the one that
    loads less wins.
    """
    return max(rows * cols, rows + cols, 8) / 2 + (rows + cols) / 32


@dataclass(frozen=True)
class Run:
    """`count` tiles of `size` one after another, the first at `start`."""

    start: int
    size: int
    count: int

    @property
    def end(self) -> int:
        """Where the last tile ends."""
        return self.start + self.size * self.count


def cover(total: int, tile: int) -> list[Run]:
    """Cover `total` by the fewest tiles of at most `tile`, sizes equal to within one.

    49 by 6 is five tiles of 5 after four of 6: a mix wastes less than padding.
    """
    tiles = -(-total // tile)
    small, larger = divmod(total, tiles)
    runs = [Run(0, small + 1, larger), Run(larger * (small + 1), small, tiles - larger)]
    return [r for r in runs if r.count]


def cut(total: int, tile: int) -> list[Run]:
    """Cover `total` by tiles of exactly `tile` and one of what is left."""
    full, rest = divmod(total, tile)
    runs = [Run(0, tile, full), Run(full * tile, rest, 1)]
    return [r for r in runs if r.count and r.size]


def lanes_for(channels: int, layout: Layout, cpu: Cpu) -> int:
    """Lanes of the vectors of channels: no wider than the channels that lie together."""
    return min(cpu.lanes, layout.blocked or 1 << (channels - 1).bit_length())


def channel_panels(channels: int, lanes: int, cols: int, split_tail: bool) -> list[Run]:
    """Vectors of `lanes` channels in panels of at most `cols` vectors.

    With `split_tail`, a last vector that is not full gets a run of its own, since storing it
    takes a mask.
    """
    runs = cover(-(-channels // lanes), cols)
    return last_apart(runs) if split_tail and channels % lanes else runs


def last_apart(runs: list[Run]) -> list[Run]:
    """The same tiles with the last in a run of its own, so that it alone needs a mask."""
    *before, last = runs
    if last.count == 1:
        return runs
    whole = replace(last, count=last.count - 1)
    return [*before, whole, Run(whole.end, last.size, 1)]


def task_order(task: Index, rows: int, panels: int, panels_outer: bool) -> tuple[Int, Int, Int]:
    """(row, panel, rest) of a task: which of the two changes first decides what stays in cache."""
    inner, outer = (rows, panels) if panels_outer else (panels, rows)
    fast, rest = task % inner, task // inner
    slow, rest = rest % outer, rest // outer
    return (fast, slow, rest) if panels_outer else (slow, fast, rest)


def check_groups(p: ConvProblem, io: Io) -> None:
    """Raise `ScheduleError` unless groups begin and end on the channel blocks of the layouts."""
    for where, channels in ((io.src, p.group_c), (io.dst, p.group_oc)):
        aligned = p.groups == 1 or not where.layout.blocked or channels % where.block == 0
        check(aligned, f"a group's {channels} channels are not whole blocks of {where.layout}")


def dispatch(k: Kernel, runs: Sequence[Run], number: Int, body: Callable[[Run, Int], None]) -> None:
    """`body(run, position)` for tile `number` of all the runs; `position` is where it starts."""
    before = 0
    for run in runs:
        place = (number - before) * run.size + run.start
        if len(runs) == 1 or isinstance(number, int):
            if len(runs) == 1 or before <= number < before + run.count:
                body(run, place)
        else:
            with k.when((number >= before) & (number < before + run.count)):
                body(run, place)
        before += run.count


def sweep(
    k: Kernel,
    runs: Sequence[Run],
    body: Callable[[Run, Int], None],
    begin: Int = 0,
    end: Int | None = None,
) -> None:
    """`body(run, position)` for tiles begin..end of the runs, in order; all if `begin` is 0."""
    before = 0
    for run in runs:
        if isinstance(begin, int):
            if run.count == 1:
                body(run, run.start)
            else:
                with k.loop(run.count) as i:
                    body(run, i * run.size + run.start)
        else:
            assert isinstance(end, Index)
            first, last = (begin - before).max(0), (end - before).min(run.count)
            with k.loop(first, last) as i:
                body(run, i * run.size + run.start)
        before += run.count


def start_of(runs: Sequence[Run], number: Int) -> Int:
    """Where tile `number` of a cover begins; the number after the last gives its end."""
    small = runs[-1].size
    larger = sum(run.count for run in runs if run.size > small)
    return number * small + (least(number, larger) if larger else 0)


def tiles_per_task(tiles: int, fit: int, cpu: Cpu) -> int:
    """Tiles of a task, when about `fit` of them suit a cache: every core gets as many tasks."""
    tasks = -(-tiles // max(1, fit))
    tasks = min(tiles, -(-tasks // cpu.cores) * cpu.cores)
    return -(-tiles // tasks)


def tile_count(runs: Sequence[Run]) -> int:
    """Tiles in all the runs."""
    return sum(run.count for run in runs)


def best_tile(
    height: int,
    width: int,
    vectors: int,
    cpu: Cpu,
    depth: int = 0,
    share: Callable[[int], float] = lambda rows: 1.0,
) -> tuple[int, int, int]:
    """(rows, columns, vectors) of the register tile that covers an output in fewest cycles.

    Counts FMAs and loads only, of which tiles of so many rows need a `share`, for sums of `depth`
    products; a tie goes to the wider, then the fewer-vectored tile.
    """

    def from_l2(rows: int, cols: int) -> float:
        # Measured on 1x1 convolutions: what does not hide of a step.
        return (rows + 3 * cols * cpu.lanes / 16) / 20

    def cycles(shape: tuple[int, int, int]) -> tuple[float, int]:
        th, tw, cols = shape
        sizes = product(cover(height, th), cover(width, tw), cover(vectors, cols))
        far = 4 * depth * cols * cpu.lanes > cpu.l1 // 2
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
        if th <= height and registers(th * tw, cols) <= cpu.registers
    ]
    return min(shapes, key=cycles)

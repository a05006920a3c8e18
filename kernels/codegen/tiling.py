"""Cut a range into tiles of few sizes, and loop over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import Index, Int, Kernel, least
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.template import check


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


def tile_count(runs: Sequence[Run]) -> int:
    """Tiles in all the runs."""
    return sum(run.count for run in runs)


def each(k: Kernel, count: int, unroll: int, body: Callable[[Int], None]) -> None:
    """`body(i)` for i in range(count), `unroll` at a time as straight code, what is left after."""
    whole = count - count % unroll
    if whole <= unroll:
        for i in range(whole):
            body(i)
    else:
        with k.loop(0, whole, step=unroll) as first:
            for i in range(unroll):
                body(first + i)
    for i in range(whole, count):
        body(i)

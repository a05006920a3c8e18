"""Cut a range into tiles of few sizes, and loop over them.

A list of `Tiles` has an entry for each size. `for` over the list is a loop of Python, which writes
code for each size; `with` on an entry is a loop or a branch of the machine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Index, Int, Kernel, least
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Layout
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.template import check
from fastrun.kernels.core.types import Types

F32_TYPES = Types()


@dataclass(frozen=True)
class Tiles:
    """`count` tiles of `size` one after another, the first at `start`.

    They are the tiles from `number` on of the `total` that cover a range.
    """

    start: int
    size: int
    count: int
    number: int
    total: int

    @property
    def end(self) -> int:
        """Where the last tile ends."""
        return self.start + self.size * self.count

    @contextmanager
    def loop(self, k: Kernel, begin: Int = 0, end: Int = 0) -> Iterator[Int]:
        """A loop over these tiles, which yields where a tile begins.

        Where a range is shared among tasks, a task runs the tiles with numbers from `begin` to
        before `end`. A `begin` that is known is 0, for one task that runs all.
        """
        if isinstance(begin, int):
            with k.times(self.count) as i:
                yield i * self.size + self.start
        else:
            first, last = (begin - self.number).max(0), least(end - self.number, self.count)
            with k.loop(first, last) as i:
                yield i * self.size + self.start

    @contextmanager
    def when(self, k: Kernel, number: Int) -> Iterator[Int]:
        """A branch for tile `number` of the range being one of these: yields where it begins."""
        place = (number - self.number) * self.size + self.start
        if self.count == self.total:
            yield place
        else:
            assert isinstance(number, Index)
            with k.when((number >= self.number) & (number < self.number + self.count)):
                yield place

    @contextmanager
    def unrolled(self, k: Kernel) -> Iterator[list[Int]]:
        """A loop over these tiles whose body is straight code for all positions of a tile."""
        if self.count == 1:
            yield [self.start + i for i in range(self.size)]
        else:
            with k.loop(self.start, self.end, step=self.size) as first:
                yield [first + i for i in range(self.size)]


def consecutive(*pieces: tuple[int, int], start: int = 0) -> list[Tiles]:
    """Tiles one after another, given as (size, count); empty pieces are left out."""
    filled = [(size, count) for size, count in pieces if size and count]
    tiles, number, total = list[Tiles](), 0, sum(count for _, count in filled)
    for size, count in filled:
        tiles.append(Tiles(start, size, count, number, total))
        start, number = start + size * count, number + count
    return tiles


def cover(total: int, tile: int) -> list[Tiles]:
    """Cover `total` by the fewest tiles of at most `tile`, sizes equal to within one.

    49 by 6 is five tiles of 5 after four of 6: a mix wastes less than padding.
    """
    return [*_cover(total, tile)]


@functools.lru_cache(4096)
def _cover(total: int, tile: int) -> tuple[Tiles, ...]:
    """As `cover`. Who looks for the best tile tries the same few covers again and again."""
    tiles = -(-total // tile)
    small, larger = divmod(total, tiles)
    return tuple(consecutive((small + 1, larger), (small, tiles - larger)))


def cut(total: int, tile: int) -> list[Tiles]:
    """Cover `total` by tiles of exactly `tile` and one of what is left."""
    full, rest = divmod(total, tile)
    return consecutive((tile, full), (rest, 1))


def channel_lanes(channels: int, layout: Layout, cpu: Cpu, types: Types = F32_TYPES) -> int:
    """Lanes of the vectors of channels: no wider than the channels that lie together.

    Instructions that multiply groups of small numbers have at least four lanes.
    """
    lanes = min(cpu.lanes, layout.blocked or cpu.lanes_for(channels))
    return lanes if types.weights is F32 else max(4, lanes)


def channel_panels(channels: int, lanes: int, cols: int, split_tail: bool) -> list[Tiles]:
    """Vectors of `lanes` channels in panels of at most `cols` vectors.

    With `split_tail`, the panel whose last vector is not full has an entry of its own, since
    storing that vector takes a mask.
    """
    panels = cover(-(-channels // lanes), cols)
    return last_apart(panels) if split_tail and channels % lanes else panels


def last_apart(tiles: list[Tiles]) -> list[Tiles]:
    """The same tiles with an entry for the last alone, so that only it needs a mask."""
    *before, last = [(t.size, t.count) for t in tiles]
    return consecutive(*before, (last[0], last[1] - 1), (last[0], 1))


def task_order(task: Index, rows: int, panels: int, panels_outer: bool) -> tuple[Int, Int, Int]:
    """(row, panel, rest) of a task. What changes first decides which data stays in the cache."""
    inner, outer = (rows, panels) if panels_outer else (panels, rows)
    fast, rest = task % inner, task // inner
    slow, rest = rest % outer, rest // outer
    return (fast, slow, rest) if panels_outer else (slow, fast, rest)


def check_groups(p: ConvProblem, io: Io) -> None:
    """Raise `ScheduleError` unless groups begin and end with channel blocks of the layouts."""
    for where, channels in ((io.src, p.group_c), (io.dst, p.group_oc)):
        aligned = p.groups == 1 or not where.layout.blocked or channels % where.block == 0
        check(aligned, f"a group's {channels} channels are not whole blocks of {where.layout}")


def start_of(tiles: Sequence[Tiles], number: Int) -> Int:
    """Where tile `number` of a cover begins; the number after the last gives its end."""
    small = tiles[-1].size
    larger = sum(t.count for t in tiles if t.size > small)
    return number * small + (least(number, larger) if larger else 0)


def tile_count(tiles: Sequence[Tiles]) -> int:
    """How many tiles there are of all sizes."""
    return sum(t.count for t in tiles)

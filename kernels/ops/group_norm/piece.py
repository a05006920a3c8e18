"""A piece of a plane, which a task sums or normalises, in vectors of channels or of pixels."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from fastrun.kernels.codegen.builder import (
    Buffer,
    Index,
    Int,
    Kernel,
    Vec,
    at_channel,
    first_lanes,
)
from fastrun.kernels.codegen.sums import across
from fastrun.kernels.codegen.tiling import Tiles, consecutive
from fastrun.kernels.codegen.tiling import cut as cut_exactly
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.ops.group_norm.cut import Cut

SUMS = 8  # accumulators


class Cell(NamedTuple):
    """A vector of values: its accumulator (row, column), first pixel, and lanes in the tensor."""

    row: int
    column: int
    pixel: Int
    used: int


@dataclass(frozen=True)
class Piece(ABC):
    """`pixels` neighbouring pixels of a line of an image, from pixel `x` on.

    `number` is that of the piece in its plane. A column is a channel if vectors are of pixels, else
    a vector of channels. There are `columns` of these from `first` on. Of a vector of channels in
    the last one, `last` lanes are in the tensor.
    """

    cut: Cut
    k: Kernel
    image: Int
    number: Int
    line: Int
    x: Int
    pixels: int
    first: Int
    columns: int
    last: int

    @abstractmethod
    def channel(self, column: int) -> Int:
        """The first channel of a column."""

    @abstractmethod
    def of_channel(self, where: Buffer, column: int) -> Vec:
        """The numbers of a column's channels, from a buffer with one for each channel."""

    @abstractmethod
    def wide(self, total: Vec) -> Vec:
        """What was summed over all pixels, beside every value of the column."""

    @abstractmethod
    def _runs(self) -> list[tuple[Tiles, int]]:
        """Ranges of positions that a loop walks, and how many lanes of each are in the tensor."""

    @abstractmethod
    def _cells(self, positions: Sequence[Int], used: int) -> Iterator[Cell]:
        """The vectors at the positions of one turn of the loop."""

    @abstractmethod
    def _load(self, at: Buffer, cell: Cell) -> Vec: ...

    @abstractmethod
    def _term(self, value: Vec, used: int) -> Vec:
        """What a sum takes of a value."""

    @abstractmethod
    def _total(self, total: Vec) -> Vec:
        """What a column's sum over pixels is, from a vector of sums."""

    def totals(self, function: Callable[[Vec, int], Vec]) -> list[Vec]:
        """The sum over pixels of a function of values and column, for each column."""
        k, lanes = self.k, self.cut.lanes
        acc = k.tile(max(1, SUMS // self.columns), self.columns, lanes)
        acc.fill(k.const(0.0, lanes))
        source = self._all_columns("src", self.cut.src)
        for run, used in self._runs():
            with run.unrolled(k) as positions:
                for cell in self._cells(positions, used):
                    row, column = cell.row, cell.column
                    value = function(self._load(source[column], cell), column)
                    acc[row, column] = acc[row, column] + self._term(value, cell.used)
        rows = range(acc.rows)
        sums = (functools.reduce(Vec.__add__, (acc[i, j] for i in rows)) for j in range(acc.cols))
        return [self._total(total) for total in sums]

    def replace(self, function: Callable[[Vec, int], Vec]) -> None:
        """Store a function of values and column."""
        source = self._all_columns("src", self.cut.src)
        target = self._all_columns("dst", self.cut.dst)
        for run, lanes in self._runs():
            with run.unrolled(self.k) as positions:
                for cell in self._cells(positions, lanes):
                    value = function(self._load(source[cell.column], cell), cell.column)
                    used = cell.used
                    if self.cut.dst.layout.blocked:
                        # Missing channels of a block must be finite.
                        value, used = _zeros_behind(self.k, value, used), value.lanes
                    target[cell.column].store_first(value, used, 0, 0, 0, cell.pixel)

    def _all_columns(self, name: str, where: Placement) -> list[Buffer]:
        """The pixels of each column, along axis 3."""
        whole = self.k.tensor(name, where).at(self.image, 0, self.line, self.x)
        unit = 1 if self.cut.planes else self.cut.lanes
        return [at_channel(whole, where, self.first + j, unit) for j in range(self.columns)]


def _zeros_behind(k: Kernel, value: Vec, used: int) -> Vec:
    if used == value.lanes:
        return value
    return k.blend(first_lanes(used, value.lanes), value, k.const(0.0, value.lanes))


@dataclass(frozen=True)
class OfPixels(Piece):
    """Vectors are of pixels of one channel."""

    def channel(self, column: int) -> Int:
        return self.first

    def of_channel(self, where: Buffer, column: int) -> Vec:
        return where.splat(self.first, lanes=self.cut.lanes)

    def wide(self, total: Vec) -> Vec:
        return self.k.splat(total, self.cut.lanes)

    def _runs(self) -> list[tuple[Tiles, int]]:
        full, rest = divmod(self.pixels, self.cut.lanes)
        runs = [(run, self.cut.lanes) for run in cut_exactly(full, SUMS)]
        return runs + [(run, rest) for run in consecutive((1, min(rest, 1)), start=full)]

    def _cells(self, positions: Sequence[Int], used: int) -> Iterator[Cell]:
        for i, vector in enumerate(positions):
            yield Cell(i, 0, vector * self.cut.lanes, used)

    def _load(self, at: Buffer, cell: Cell) -> Vec:
        return at.load_first(cell.used, 0, 0, 0, cell.pixel, lanes=self.cut.lanes)

    def _term(self, value: Vec, used: int) -> Vec:
        return _zeros_behind(self.k, value, used)

    def _total(self, total: Vec) -> Vec:
        return across(total, Vec.__add__)


@dataclass(frozen=True)
class OfChannels(Piece):
    """Vectors are of channels of one pixel. The last of the tensor may have fewer of them."""

    def channel(self, column: int) -> Int:
        return (self.first + column) * self.cut.lanes

    def of_channel(self, where: Buffer, column: int) -> Vec:
        return where.load(self.channel(column), lanes=self.cut.lanes)

    def wide(self, total: Vec) -> Vec:
        return total

    def _runs(self) -> list[tuple[Tiles, int]]:
        return [
            (run, self.cut.lanes) for run in cut_exactly(self.pixels, max(1, SUMS // self.columns))
        ]

    def _cells(self, positions: Sequence[Int], used: int) -> Iterator[Cell]:
        for i, pixel in enumerate(positions):
            for j in range(self.columns):
                yield Cell(i, j, pixel, self.last if j == self.columns - 1 else used)

    def _load(self, at: Buffer, cell: Cell) -> Vec:
        return at.load(0, 0, 0, cell.pixel, lanes=self.cut.lanes)

    def _term(self, value: Vec, used: int) -> Vec:
        return value

    def _total(self, total: Vec) -> Vec:
        return total


@contextmanager
def branch(k: Kernel, cut: Cut, task: Index, pieces: Tiles, units: Tiles) -> Iterator[Piece]:
    """The code that a task runs if its piece is one of `pieces`, and its channels of `units`."""
    unit, rest = task % cut.per_pixel, task // cut.per_pixel
    piece, rest = rest % cut.per_line, rest // cut.per_line
    line, image = rest % cut.lines, rest // cut.lines
    number = line * cut.per_line + piece
    kind = OfPixels if cut.planes else OfChannels
    last = (units is cut.units[-1] and cut.src.c % cut.lanes) or cut.lanes
    with pieces.when(k, piece) as x, units.when(k, unit) as first:
        yield kind(cut, k, image, number, line, x, pieces.size, first, units.size, last)

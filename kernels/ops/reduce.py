"""Reductions over any axes, and softmax, which is two reductions and a map.

Where the innermost axis is kept, vectors are neighbouring results; where it is reduced, they are
neighbouring terms, summed across lanes at the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Module, Tile, Vec, first_lanes, fma
from fastrun.kernels.codegen.elementary import log, maximum, minimum, weight
from fastrun.kernels.codegen.strided_loops import (
    Nest,
    aligned,
    load_row,
    marked,
    operand,
    rows,
    singly,
    store_row,
)
from fastrun.kernels.codegen.sums import RUN, Totals, across
from fastrun.kernels.codegen.tiling import Tiles, consecutive, cut
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import check, check_f32

# Independent accumulators, which hide the latency of additions.
UNROLL = 4


@dataclass(frozen=True)
class Reduce:
    """`mean`, `sum`, `max`, `min` or `l2` (root of the sum of squares) over some axes."""

    function: str
    axes: Ints


@dataclass(frozen=True)
class Softmax:
    """Softmax along one axis, or its logarithm."""

    axis: int
    log: bool = False


# Where along the summed axes a term is; and a vector of terms by place, column and lanes.
Index = tuple[Int, ...]
Term = Callable[[Index, int, int], Vec]


@dataclass(frozen=True)
class _Sum:
    """A kind of sum: `add(total, term)` adds a term, `join` adds two totals.

    If it `rounds`, long sums are made of runs of terms.
    """

    neutral: float
    rounds: bool
    join: Callable[[Vec, Vec], Vec]
    add: Callable[[Vec, Vec], Vec]


_PLAIN = _Sum(0.0, True, lambda a, b: a + b, lambda a, b: a + b)
_SQUARES = _Sum(0.0, True, lambda a, b: a + b, lambda a, b: fma(b, b, a))
_MAX = _Sum(-math.inf, False, maximum, maximum)
_MIN = _Sum(math.inf, False, minimum, minimum)
_SUMS = {"mean": _PLAIN, "sum": _PLAIN, "max": _MAX, "min": _MIN, "l2": _SQUARES}


@identified
def reduce(spec: Reduce, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Reduce `src` to `dst`, whose shape has ones for the reduced axes or lacks them.

    Raises:
        ScheduleError: the function is unknown, the shapes do not fit, an axis to be reduced has no
            element, or a tensor is not of f32.
    """
    check_f32("a reduction", src, dst)
    check(spec.function in _SUMS, f"unknown reduction {spec.function!r}: use one of {[*_SUMS]}")
    terms = math.prod(src.shape[axis] for axis in spec.axes)
    check(terms > 0, f"an axis of {src.shape} has no element to reduce")
    view, out = aligned(src, _repeated(dst, spec.axes, src.shape))
    axes = range(len(view.shape))
    kept = [axis for axis in axes if out.strides[axis]]
    gone = [axis for axis in axes if not out.strides[axis] and view.shape[axis] > 1]
    inward = bool(gone) and gone[-1] == axes[-1]
    tiles = singly(tuple(view.shape[axis] for axis in kept)) or [consecutive((1, 1))]
    if not inward:
        tiles[-1] = rows(view.shape[-1], cpu.lanes, UNROLL)
    module, nest = Module(cpu), Nest(tiles, work=terms)
    step = out.strides[kept[-1]] if kept else 1

    @nest.stage(module, "reduce")
    def write_reduce(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                source = operand(k, "src", _only(view, kept)).at(*places, x)
                target = operand(k, "dst", _only(out, kept)).at(*places, x).strided(step)
                walk = _Walk(k, tuple(view.shape[axis] for axis in gone), inward, run.size)
                terms_at = _Terms(walk, source, _only(view, gone).strides, view.strides[-1])
                for column, total in enumerate(walk.total(_SUMS[spec.function], terms_at.load)):
                    value = total * (1 / terms) if spec.function == "mean" else total
                    value = k.intrinsic("sqrt", value) if spec.function == "l2" else value
                    first = walk.first(column)
                    store_row(target.at(first), step, min(walk.lanes, run.size - first), value)
                    if inward:
                        break

    return module.program(Io(src.buffer, dst.buffer, dst.buffer))


@identified
def softmax(spec: Softmax, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Softmax of `src` along an axis.

    Raises:
        ScheduleError: the shapes do not fit, or a tensor is not of f32.
    """
    check_f32("softmax", src, dst)
    check(src.shape == dst.shape, f"softmax cannot turn {src.shape} into {dst.shape}")
    # The mark keeps the axis apart from the axes beside it.
    out, view, mark = aligned(dst, src, marked(dst, spec.axis))
    along = next((axis for axis, step in enumerate(mark.strides) if step), None)
    length = 1 if along is None else out.shape[along]
    kept = [axis for axis in range(len(out.shape)) if axis != along]
    inward = along == len(out.shape) - 1
    tiles = singly(tuple(out.shape[axis] for axis in kept)) or [consecutive((1, 1))]
    if not inward:
        tiles[-1] = rows(out.shape[-1], cpu.lanes, UNROLL)
    module, nest = Module(cpu), Nest(tiles, work=length)
    reads, writes = (0, 0) if along is None else (view.strides[along], out.strides[along])

    @nest.stage(module, "softmax")
    def write_softmax(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                source, target = (
                    operand(k, name, _only(where, kept)).at(*places, x)
                    for name, where in (("src", view), ("dst", out))
                )
                walk = _Walk(k, (length,), inward, run.size)
                given = _Terms(walk, source, (reads,), view.strides[-1])
                result = _Terms(walk, target, (writes,), out.strides[-1])
                _softmax(spec.log, walk, given, result)

    return module.program(Io(src.buffer, dst.buffer, dst.buffer))


def _softmax(log_of_it: bool, walk: _Walk, given: _Terms, result: _Terms) -> None:
    """The softmax of the terms of one walk; `result` also holds the powers meanwhile."""
    k, peaks = walk.k, walk.total(_MAX, given.load)

    def power(index: Index, column: int, count: int) -> Vec:
        value = weight(given.load(index, column, count) - peaks[column])
        if not log_of_it:
            result.store(index, column, count, value)
        return value

    totals = walk.total(_PLAIN, power)
    scales = [log(t) if log_of_it else k.const(1.0, t.lanes) / t for t in totals]
    with walk.stretch() as (outer, start, tiles):
        for tile in tiles:
            with tile.loop(k) as first:
                for index, column, count in walk.vectors(outer, first + start, tile.size):
                    if log_of_it:
                        value = given.load(index, column, count) - peaks[column] - scales[column]
                    else:
                        value = result.load(index, column, count) * scales[column]
                    result.store(index, column, count, value)


@dataclass(frozen=True)
class _Walk:
    """The summed axes, of these lengths, and `count` neighbouring results.

    A column is a vector of results. If the innermost axis is summed (`inward`), vectors hold
    neighbouring terms instead, and a column is every `UNROLL`-th vector.
    """

    k: Kernel
    lengths: Ints
    inward: bool
    count: int

    @property
    def lanes(self) -> int:
        """Lanes of the vectors."""
        return self.k.cpu.lanes_for(self.lengths[-1] if self.inward else self.count)

    def first(self, column: int) -> int:
        """The first result of a column."""
        return 0 if self.inward else column * self.lanes

    def total(self, kind: _Sum, term: Term) -> list[Vec]:
        """The total of every column; if inward, the total of all in every lane.

        `term(index, column, count)` is a vector of which the first `count` lanes are terms.
        """
        k, neutral = self.k, self.k.const(kind.neutral, self.lanes)
        acc = k.tile(1, UNROLL if self.inward else -(-self.count // self.lanes), self.lanes)
        acc.fill(neutral)
        if kind.rounds and self._terms(0) > RUN:
            runs = Totals(acc)
            # The outermost axis of which a run holds whole places.
            axis = next(i for i in range(len(self.lengths)) if self._terms(i + 1) <= RUN)
            with ExitStack() as loops:
                outer = tuple(loops.enter_context(k.loop(n)) for n in self.lengths[:axis])
                for run in cut(self.lengths[axis], self._places(axis)):
                    with run.loop(k) as start:
                        self._take_in(acc, kind, term, outer, start, run.size)
                        runs.take_in()
            runs.finish()
        else:
            self._take_in(acc, kind, term)
        totals = [acc[cell] for cell in acc]
        if not self.inward:
            return totals
        value = across(functools.reduce(kind.join, totals), kind.join)
        return [k.splat(value, self.lanes)] * UNROLL

    def _take_in(
        self, acc: Tile, kind: _Sum, term: Term, outer: Index = (), start: Int = 0, count: int = 0
    ) -> None:
        """Add the terms of a stretch to the accumulators."""
        neutral = self.k.const(kind.neutral, self.lanes)
        with self.stretch(outer, start, count) as (index, begin, tiles):
            for tile in tiles:
                with tile.loop(self.k) as first:
                    for place, column, lanes in self.vectors(index, first + begin, tile.size):
                        value = term(place, column, lanes)
                        if self.inward and lanes < self.lanes:
                            value = self.k.blend(first_lanes(lanes, self.lanes), value, neutral)
                        acc[0, column] = kind.add(acc[0, column], value)

    @contextmanager
    def stretch(
        self, outer: Index = (), start: Int = 0, count: int = 0
    ) -> Iterator[tuple[Index, Int, list[Tiles]]]:
        """Loops over the terms at `outer`: `count` places of the next axis, or all, from `start`.

        Yields where along the axes a term is; and where vectors begin along the last axis, and in
        which tiles they follow each other. For neighbouring results these are one tile of results.
        """
        ranges: list[tuple[Int, int]] = [(0, n) for n in self.lengths[len(outer) :]]
        ranges[:1] = [(start, count or n) for _, n in ranges[:1]]
        vectors = ranges.pop() if self.inward else None
        with ExitStack() as loops:
            inner = (loops.enter_context(self.k.loop(a, a + n)) for a, n in ranges)
            index = (*outer, *inner)
            if vectors:
                yield index, vectors[0], rows(vectors[1], self.lanes, UNROLL)
            else:
                yield index, 0, consecutive((self.count, 1))

    def vectors(self, index: Index, start: Int, size: int) -> list[tuple[Index, int, int]]:
        """The vectors of a tile as (place along the axes, column, lanes that hold terms)."""
        found = []
        for column, first in enumerate(range(0, size, self.lanes)):
            place = (*index, start + first) if self.inward else index
            found.append((place, column, min(self.lanes, size - first)))
        return found

    def _terms(self, axis: int) -> int:
        """Terms that are added to an accumulator for one place on the axes before `axis`."""
        lengths = list(self.lengths)
        if self.inward:
            lengths[-1] = -(-lengths[-1] // (self.lanes * UNROLL))
        return math.prod(lengths[axis:])

    def _places(self, axis: int) -> int:
        """Places of an axis that make a run of terms."""
        vectors = self.lanes * UNROLL if self.inward and axis == len(self.lengths) - 1 else 1
        return RUN // self._terms(axis + 1) * vectors


@dataclass(frozen=True)
class _Terms:
    """Where the terms of a walk lie: `strides` along its axes, `step` between lanes."""

    walk: _Walk
    at: Buffer
    strides: Ints
    step: int

    def load(self, index: Index, column: int, count: int) -> Vec:
        return load_row(self._place(index, column), self.step, count, self.walk.lanes)

    def store(self, index: Index, column: int, count: int, value: Vec) -> None:
        store_row(self._place(index, column), self.step, count, value)

    def _place(self, index: Index, column: int) -> Buffer:
        return self.at.strided(*self.strides, self.step).at(*index, self.walk.first(column))


def _repeated(dst: Strided, axes: Ints, shape: Ints) -> Strided:
    """`dst` in the shape of the input: repeated along the reduced axes."""
    kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
    squeezed = tuple(n for axis, n in enumerate(shape) if axis not in axes)
    check(dst.shape in (kept, squeezed), f"{shape} reduced over {axes} is not {dst.shape}")
    strides = iter(dst.strides)
    if dst.shape == kept and len(kept) == len(dst.strides):
        strides = iter(s for axis, s in enumerate(dst.strides) if axis not in axes)
    return Strided(
        shape, tuple(0 if axis in axes else next(strides) for axis in range(len(shape))), dst.offset
    )


def _only(view: Strided, axes: Sequence[int]) -> Strided:
    """Some axes of a view."""
    shape, strides = ([a[axis] for axis in axes] for a in (view.shape, view.strides))
    return replace(view, shape=tuple(shape), strides=tuple(strides))

"""Reductions over any axes, and softmax, which is two of them and a map.

Where the innermost axis is kept, vectors are neighbouring results; where it is reduced, they are
neighbouring terms, summed across lanes at the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Module, Vec, first_lanes, fma
from fastrun.kernels.codegen.elementary import exp, log, maximum, minimum
from fastrun.kernels.codegen.strided_loops import (
    aligned,
    load_row,
    marked,
    nest,
    operand,
    rows,
    singly,
    store_row,
)
from fastrun.kernels.codegen.sums import RUN, Totals
from fastrun.kernels.codegen.tiling import Tiles, consecutive, cut, sweep
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import check

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


@dataclass(frozen=True)
class _Sum:
    """A kind of sum: `add(total, term)` takes a term in, `join` puts two totals together.

    One that `rounds` is made of runs of terms.
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


def reduce(spec: Reduce, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Reduce `src` to `dst`, whose shape has ones for the reduced axes or lacks them.

    Raises:
        ScheduleError: the function is unknown, the shapes do not fit, or an axis to be reduced
            has no element.
    """
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
    kind, module = _SUMS[spec.function], Module(cpu)

    def body(k: Kernel, places: tuple[Int, ...], sizes: Ints) -> None:
        source = operand(k, "src", _only(view, kept)).at(*places)
        target = operand(k, "dst", _only(out, kept)).at(*places)
        walk = _Walk(k, tuple(view.shape[axis] for axis in gone), inward, sizes[-1])
        read = walk.reader(source, _only(view, gone).strides, view.strides[-1])
        for column, total in enumerate(walk.total(kind, read)):
            value = total * (1 / terms) if spec.function == "mean" else total
            value = k.intrinsic("sqrt", value) if spec.function == "l2" else value
            step, first = (out.strides[kept[-1]] if kept else 1), walk.first(column)
            count = min(walk.lanes, sizes[-1] - first)
            store_row(target.strided(step).at(first), step, count, value)
            if inward:
                break

    nest(module, "reduce", tiles, body, work=terms)
    return module.program(Io(src.buffer, dst.buffer, dst.buffer), np.ravel)


def softmax(spec: Softmax, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Softmax of `src` along an axis.

    Raises:
        ScheduleError: the shapes do not fit.
    """
    check(src.shape == dst.shape, f"softmax cannot turn {src.shape} into {dst.shape}")
    # The mark keeps the axis apart from those beside it.
    out, view, mark = aligned(dst, src, marked(dst, spec.axis))
    along = next((axis for axis, step in enumerate(mark.strides) if step), None)
    length = 1 if along is None else out.shape[along]
    kept = [axis for axis in range(len(out.shape)) if axis != along]
    inward = along == len(out.shape) - 1
    tiles = singly(tuple(out.shape[axis] for axis in kept)) or [consecutive((1, 1))]
    if not inward:
        tiles[-1] = rows(out.shape[-1], cpu.lanes, UNROLL)
    module = Module(cpu)

    def body(k: Kernel, places: tuple[Int, ...], sizes: Ints) -> None:
        walk = _Walk(k, (length,), inward, sizes[-1])
        source, target = (
            operand(k, name, _only(where, kept)).at(*places)
            for name, where in (("src", view), ("dst", out))
        )
        stride = 0 if along is None else out.strides[along]
        read = walk.reader(source, (0 if along is None else view.strides[along],), view.strides[-1])
        reread = walk.reader(target, (stride,), out.strides[-1])
        write = walk.writer(target, (stride,), out.strides[-1])
        peaks = walk.total(_MAX, read)

        def power(index: tuple[Int, ...], column: int, count: int) -> Vec:
            value = exp(read(index, column, count) - peaks[column])
            if not spec.log:
                write(index, column, count, value)
            return value

        totals = walk.total(_PLAIN, power)
        scales = [log(t) if spec.log else k.const(1.0, t.lanes) / t for t in totals]

        def finish(index: tuple[Int, ...], column: int, count: int) -> None:
            if spec.log:
                value = read(index, column, count) - peaks[column] - scales[column]
            else:
                value = reread(index, column, count) * scales[column]
            write(index, column, count, value)

        walk.each(finish)

    nest(module, "softmax", tiles, body, work=length)
    return module.program(Io(src.buffer, dst.buffer, dst.buffer), np.ravel)


# A term of a sum: where along the summed axes, in which column, how many lanes are meant.
Term = Callable[[tuple[Int, ...], int, int], Vec]
Visit = Callable[[tuple[Int, ...], int, int], object]


@dataclass(frozen=True)
class _Walk:
    """A way over summed axes of these lengths, for `count` neighbouring results.

    A column is a vector of results; or, inwards along the last summed axis, one of several
    vectors of terms that take turns.
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

    def reader(self, at: Buffer, strides: Ints, step: int) -> Term:
        """Loads terms from `at` on; `step` lies between lanes."""
        return lambda index, column, count: load_row(
            self._place(at, strides, step, index, column), step, count, self.lanes
        )

    def writer(
        self, at: Buffer, strides: Ints, step: int
    ) -> Callable[[tuple[Int, ...], int, int, Vec], None]:
        """Stores a value for every term."""
        return lambda index, column, count, value: store_row(
            self._place(at, strides, step, index, column), step, count, value
        )

    def each(self, visit: Visit) -> None:
        """`visit(index, column, count)` for all terms."""
        self._descend((), visit, None)

    def total(self, kind: _Sum, term: Term) -> list[Vec]:
        """The total of every column; inwards that of all, in every lane."""
        k, neutral = self.k, self.k.const(kind.neutral, self.lanes)
        acc = k.tile(1, UNROLL if self.inward else -(-self.count // self.lanes), self.lanes)
        acc.fill(neutral)

        def take_in(index: tuple[Int, ...], column: int, count: int) -> None:
            value = term(index, column, count)
            if self.inward and count < self.lanes:
                value = k.blend(first_lanes(count, self.lanes), value, neutral)
            acc[0, column] = kind.add(acc[0, column], value)

        if kind.rounds and self._terms(0) > RUN:
            runs = Totals(acc)
            self._descend((), take_in, runs.take_in)
            runs.finish()
        else:
            self.each(take_in)
        totals = [acc[cell] for cell in acc]
        if not self.inward:
            return totals
        value = functools.reduce(kind.join, totals)
        while value.lanes > 1:
            half = value.lanes // 2
            value = kind.join(*(k.shuffle(value, value, range(i, i + half)) for i in (0, half)))
        return [k.splat(value, self.lanes)] * UNROLL

    def _terms(self, axis: int) -> int:
        """Terms that an accumulator takes in for one place on the axes before `axis`."""
        lengths = list(self.lengths)
        if self.inward:
            lengths[-1] = -(-lengths[-1] // (self.lanes * UNROLL))
        return math.prod(lengths[axis:])

    def _descend(
        self, index: tuple[Int, ...], visit: Visit, after: Callable[[], None] | None
    ) -> None:
        """Visit the terms at `index` of the outer axes, and `after()` comes behind each `RUN`."""
        axis = len(index)
        if axis == len(self.lengths):
            self._tile(index, visit, consecutive((self.count, 1))[0], 0)
            return
        places = RUN // self._terms(axis + 1) if after else 0
        if not places:
            self._stretch(index, visit, 0, self.lengths[axis], after)
            return
        if self._innermost(axis):
            places *= self.lanes * UNROLL

        def run(tile: Tiles, start: Int) -> None:
            self._stretch(index, visit, start, tile.size, None)
            assert after
            after()

        sweep(self.k, cut(self.lengths[axis], places), run)

    def _stretch(
        self,
        index: tuple[Int, ...],
        visit: Visit,
        start: Int,
        count: int,
        after: Callable[[], None] | None,
    ) -> None:
        """Visit `count` places of the next axis from `start` on."""
        if self._innermost(len(index)):
            tiles = rows(count, self.lanes, UNROLL)
            sweep(self.k, tiles, lambda run, first: self._tile(index, visit, run, first + start))
        else:
            with self.k.loop(start, start + count) as i:
                self._descend((*index, i), visit, after)

    def _innermost(self, axis: int) -> bool:
        """Whether the terms of an axis are neighbours in vectors."""
        return self.inward and axis == len(self.lengths) - 1

    def _tile(self, index: tuple[Int, ...], visit: Visit, run: Tiles, start: Int) -> None:
        for column, first in enumerate(range(0, run.size, self.lanes)):
            place = (*index, start + first) if self.inward else index
            visit(place, column, min(self.lanes, run.size - first))

    def _place(
        self, at: Buffer, strides: Ints, step: int, index: tuple[Int, ...], column: int
    ) -> Buffer:
        return at.strided(*strides, step).at(*index, self.first(column))


def _repeated(dst: Strided, axes: Ints, shape: Ints) -> Strided:
    """`dst` as every element of the input finds it: repeated along the reduced axes."""
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
    return Strided(tuple(shape), tuple(strides), view.offset)

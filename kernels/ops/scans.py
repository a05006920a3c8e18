"""Operators that walk along one axis in its order: places of extremes, and running sums.

Where the axis is not the innermost, vectors are neighbouring results. Else terms of a row are
compared in vectors, and added one by one, as the order of a running sum wants it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Tile, Vec
from fastrun.kernels.codegen.elementary import combine, compare
from fastrun.kernels.codegen.strided_loops import (
    Nest,
    aligned,
    load_row,
    operand,
    rows,
    singly,
    store_row,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import check, check_f32

UNROLL = 2
# Places of an axis up to which float32 counts exactly.
LONGEST = 2**24


@dataclass(frozen=True)
class ArgReduce:
    """The place of the `max` or `min` along an axis, as a float32 number.

    Of equal ones it is the first, or the `last`. NaN counts as the extreme, as in numpy.
    """

    function: str
    axis: int
    last: bool = False


@dataclass(frozen=True)
class CumSum:
    """Running sums along an axis, from its end if `backwards`.

    If `exclusive`, each is that of the elements before its own.
    """

    axis: int
    exclusive: bool = False
    backwards: bool = False


@identified
def arg_reduce(spec: ArgReduce, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Find places along an axis of `src`; `dst` has a one for the axis, or lacks it.

    Raises:
        ScheduleError: the function is unknown, the shapes do not fit, the axis has no element or
            too many to count, or a tensor is not of f32.
    """
    check_f32("a search along an axis", src, dst)
    check(spec.function in ("max", "min"), f"unknown extreme {spec.function!r}")
    length = src.shape[spec.axis]
    check(0 < length <= LONGEST, f"an axis of {length} cannot be searched")
    kept = (*src.shape[: spec.axis], *src.shape[spec.axis + 1 :])
    wide = (*src.shape[: spec.axis], 1, *src.shape[spec.axis + 1 :])
    check(dst.shape in (kept, wide), f"{src.shape} without axis {spec.axis} is not {dst.shape}")
    if len(dst.shape) == len(wide):
        dst = _without(dst, spec.axis, kept)
    step = src.strides[spec.axis]
    out, view = aligned(dst, _without(src, spec.axis, kept))
    # Rows of neighbouring terms are compared in vectors; results that lie together in others.
    inward = step == 1 and view.strides[-1] != 1 and length > 1
    *outer, results = out.shape
    tiles = [*singly(tuple(outer)), rows(results, 1 if inward else cpu.lanes, 1)]
    module, nest = Module(cpu), Nest(tiles, work=length)

    @nest.stage(module, "arg_reduce")
    def write_arg_reduce(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                source = operand(k, "src", view).at(*places, x)
                target = operand(k, "dst", out).at(*places, x).strided(out.strides[-1])
                if inward:
                    lanes = min(cpu.lanes, 1 << (length.bit_length() - 1))
                    found = _Search(k, spec, lanes).of_row(source.strided(1), length)
                    store_row(target, out.strides[-1], 1, found)
                    continue
                search = _Search(k, spec, cpu.lanes_for(run.size))
                first = load_row(source, view.strides[-1], run.size, search.lanes)
                search.begin(first, k.const(0.0, search.lanes))
                if length > 1:
                    with k.loop(1, length) as i:
                        at = source.strided(step).at(i)
                        term = load_row(at, view.strides[-1], run.size, search.lanes)
                        search.take(term, k.splat(_number(i), search.lanes))
                store_row(target, out.strides[-1], run.size, search.place[0, 0])

    return module.program(Io(src.buffer, dst.buffer, dst.buffer))


def _number(i: Index) -> Vec:
    """An index as a number of float32."""
    return Vec(i.k, i.k.emit(f"sitofp i64 {i.value} to float"), 1)


class _Search:
    """The best term so far and its place, in every lane."""

    def __init__(self, k: Kernel, spec: ArgReduce, lanes: int) -> None:
        self._k, self._spec, self.lanes = k, spec, lanes
        self.best: Tile = k.tile(1, 1, lanes)
        self.place: Tile = k.tile(1, 1, lanes)

    def begin(self, term: Vec, place: Vec) -> None:
        """The first term."""
        self.best[0, 0], self.place[0, 0] = term, place

    def take(self, term: Vec, place: Vec) -> None:
        """A term behind those so far."""
        k, best = self._k, self.best[0, 0]
        wins = self._wins(term, best, self._spec.last)
        self.best[0, 0] = k.blend(wins, term, best)
        self.place[0, 0] = k.blend(wins, place, self.place[0, 0])

    def of_row(self, row: Buffer, length: int) -> Vec:
        """The place in a row of neighbouring terms."""
        k, lanes = self._k, self.lanes
        counted = k.literal([float(i) for i in range(lanes)]) if lanes > 1 else k.const(0.0, 1)
        self.begin(row.load(0, lanes=lanes), counted)
        whole = length // lanes * lanes
        if whole > lanes:
            with k.loop(lanes, whole, step=lanes) as i:
                self.take(row.load(i, lanes=lanes), k.splat(_number(i), lanes) + counted)
        if length > whole:  # the last vector begins among terms that were compared already
            rest = length - lanes
            self.take(row.load(rest, lanes=lanes), counted + float(rest))
        best, place = self.best[0, 0], self.place[0, 0]
        while best.lanes > 1:
            half = best.lanes // 2
            a, b = ([k.shuffle(v, v, range(at, at + half)) for v in (best, place)]
                    for at in (0, half))  # fmt: skip
            best, place = self._better(a, b)
        return place

    def _better(self, a: Sequence[Vec], b: Sequence[Vec]) -> tuple[Vec, Vec]:
        """The better of two terms with their places, which may lie in any order."""
        k, (best, mine), (term, place) = self._k, a, b
        alike, unknown = compare("oeq", term, best), combine("and", best, _nan(term), _nan(best))
        equal = combine("or", best, alike, unknown)
        nearer = compare("ogt" if self._spec.last else "olt", place, mine)
        wins = combine(
            "or", best, self._wins(term, best, False), combine("and", best, equal, nearer)
        )
        return k.blend(wins, term, best), k.blend(wins, place, mine)

    def _wins(self, term: Vec, best: Vec, last: bool) -> str:
        """Whether a later term takes the place of the best so far; an equal one only if `last`."""
        order = {"max": "g", "min": "l"}[self._spec.function] + ("e" if last else "t")
        # It holds for a NaN on either side, but a number does not win against one.
        beats, number = compare(f"u{order}", term, best), compare("ord", best, best)
        if last:
            number = combine("or", best, number, _nan(term))
        return combine("and", best, beats, number)


def _nan(x: Vec) -> str:
    return compare("uno", x, x)


@identified
def cum_sum(spec: CumSum, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Running sums of `src` along an axis.

    Raises:
        ScheduleError: the shapes do not fit, or a tensor is not of f32.
    """
    check_f32("a running sum", src, dst)
    check(src.shape == dst.shape, f"running sums of {src.shape} are not {dst.shape}")
    length = src.shape[spec.axis]
    if spec.backwards:
        src, dst = (_reversed(view, spec.axis) for view in (src, dst))
    kept = (*src.shape[: spec.axis], *src.shape[spec.axis + 1 :])
    reads, writes = src.strides[spec.axis], dst.strides[spec.axis]
    out, view = aligned(*(_without(v, spec.axis, kept) for v in (dst, src)))
    *outer, results = out.shape
    tiles = [*singly(tuple(outer)), rows(results, cpu.lanes, 1)]
    module, nest = Module(cpu), Nest(tiles, work=length)

    @nest.stage(module, "cum_sum")
    def write_cum_sum(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                source = operand(k, "src", view).at(*places, x)
                target = operand(k, "dst", out).at(*places, x)
                step, lanes = out.strides[-1], cpu.lanes_for(run.size)
                total = k.tile(1, 1, lanes)
                total.fill(k.const(0.0, lanes))
                with k.times(length) as i:
                    at = source.strided(reads).at(i)
                    term = load_row(at, view.strides[-1], run.size, lanes)
                    before = total[0, 0]
                    after = total[0, 0] = before + term
                    goal = target.strided(writes).at(i).strided(step)
                    store_row(goal, step, run.size, before if spec.exclusive else after)

    return module.program(Io(src.buffer, dst.buffer, dst.buffer))


def _reversed(view: Strided, axis: int) -> Strided:
    """The view with one axis backwards."""
    last = view.offset + (view.shape[axis] - 1) * view.strides[axis]
    strides = (*view.strides[:axis], -view.strides[axis], *view.strides[axis + 1 :])
    return replace(view, strides=strides, offset=last)


def _without(view: Strided, axis: int, shape: Ints) -> Strided:
    """The first entry of a view along an axis."""
    return replace(view, shape=shape, strides=(*view.strides[:axis], *view.strides[axis + 1 :]))

"""The first elements along an axis in the order of their size: their places.

Elements come one after another. Those that count so far are kept in order; a vector of elements of
which none is better than the last of them costs one comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import Condition, Index, Int, Kernel, Module, Vec, first_lanes
from fastrun.kernels.codegen.elementary import compare
from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.strided_loops import Nest, aligned, load_row, operand, rows, singly
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, I32, I64
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check, check_f32

# Elements that are kept in order at most: another one goes by all of them.
MOST = 1024
# Places of an axis up to which float32 counts exactly.
LONGEST = 2**24
# A number that is larger than that of any float, as which all NaN count; its complement is smaller.
_NAN = 0x7FFFFFFE


@dataclass(frozen=True)
class TopK:
    """The places of the first `count` elements along an axis, as float32 numbers.

    The largest come first, or the smallest unless `largest`. Of equal ones the first come first.
    NaN counts as larger than all numbers.
    """

    axis: int
    count: int
    largest: bool = True


@identified
def top_k(spec: TopK, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Find places along an axis of `src`; `dst` has `count` of them along it.

    Raises:
        ScheduleError: the axis is too short or too long, too many are wanted, the shapes do not
            fit, or a tensor is not of f32.
    """
    check_f32("an order", src, dst)
    axis, length = spec.axis, src.shape[spec.axis]
    check(0 < spec.count <= min(length, MOST), f"no first {spec.count} of {length} are found")
    check(length <= LONGEST, f"an axis of {length} cannot be searched")
    shape = (*src.shape[:axis], spec.count, *src.shape[axis + 1 :])
    check(dst.shape == shape, f"{dst.shape} are not the first {spec.count} of {src.shape}")
    step, written = src.strides[axis], dst.strides[axis]
    out, view = aligned(*(_first(x, axis) for x in (dst, src)))
    module, nest = Module(cpu), Nest(singly(out.shape), work=length)

    @nest.stage(module, "top_k")
    def write_top_k(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                source = operand(k, "src", view).at(*places, x).strided(step)
                best = _Best(k, spec)
                for tiles in rows(length, cpu.lanes, 1):
                    with tiles.loop(k) as i:
                        lanes = cpu.lanes_for(tiles.size)
                        row = load_row(source.at(i), step, tiles.size, lanes)
                        best.take(row, k.index(i), tiles.size)
                target = operand(k, "dst", out).at(*places, x).strided(written)
                with k.times(spec.count) as i:
                    target.store(best.place(i), i)

    return module.program(Io(src.buffer, dst.buffer, dst.buffer))


def _first(view: Strided, axis: int) -> Strided:
    """The first entry of a view along an axis."""
    shape, strides = ((*x[:axis], *x[axis + 1 :]) for x in (view.shape, view.strides))
    return replace(view, shape=shape, strides=strides)


class _Best:
    """The first elements so far, in order, each as one number of 64 bits.

    Its upper half orders the elements as integers. The lower half is the complement of the place,
    so that of equal elements the first is the largest.
    """

    def __init__(self, k: Kernel, spec: TopK) -> None:
        self._k, self._spec = k, spec
        self._lanes = max(1, k.lanes // 2)
        self._blocks = -(-spec.count // self._lanes)
        # The number in front is larger than all.
        self._kept = k.scratch(1 + self._blocks * self._lanes, 1, dtype=I64)
        self._kept.store(k.const(I64.range[1], 1, I64), 0)
        with k.times(self._blocks * self._lanes) as i:
            self._kept.store(k.const(I64.range[0], 1, I64), i + 1)
        self._last = k.tile(1, 1, 1, I32)
        self._last[0, 0] = k.const(I32.range[0], 1, I32)
        self._row = k.scratch(k.lanes, 1, dtype=I32)

    def take(self, row: Vec, place: Index, count: int) -> None:
        """The first `count` of a vector of elements, of which the first is at `place`."""
        k = self._k
        keys = self._keys(row)
        with self._when_any(keys, count):
            self._row.store(keys, 0)
            with k.times(count) as i:
                key = self._row.load(i, lanes=1)
                better = k.emit(f"icmp sgt i32 {key.ssa}, {self._last[0, 0].ssa}")
                with k.when(Condition(k, better)):
                    self._insert(key, place + i)

    @contextmanager
    def _when_any(self, keys: Vec, count: int) -> Iterator[None]:
        """Where any of the first `count` keys is better than the last one that is kept."""
        k, bits = self._k, vector_type(keys.lanes, "i1")
        last = k.splat(self._last[0, 0], keys.lanes)
        better = k.emit(f"icmp sgt {keys.type} {keys.ssa}, {last.ssa}")
        if keys.lanes > 1:
            if count < keys.lanes:
                better = k.emit(f"and {bits} {better}, {first_lanes(count, keys.lanes)}")
            name = f"llvm.vector.reduce.or.v{keys.lanes}i1"
            k.declare(f"declare i1 @{name}({bits})")
            better = k.emit(f"call i1 @{name}({bits} {better})")
        with k.when(Condition(k, better)):
            yield

    def _keys(self, row: Vec) -> Vec:
        """Elements as integers of the same order; the larger, the earlier an element comes."""
        k = row.k
        bits = (row + 0.0).bits_as(I32)  # -0 is 0
        flips = k.shifted(k.shifted(bits, "ashr", 31), "lshr", 1)  # all but the sign, if negative
        ordered = Vec(k, k.emit(f"xor {bits.type} {bits.ssa}, {flips.ssa}"), bits.lanes, I32)
        ordered = k.blend(compare("uno", row, row), k.const(_NAN, bits.lanes, I32), ordered)
        if self._spec.largest:
            return ordered
        return ordered * -1 + -1

    def _insert(self, key: Vec, place: Index) -> None:
        """Put an element where it belongs; the last one goes."""
        k, lanes = self._k, self._lanes
        high = k.emit(f"shl i64 {key.to(I64).ssa}, 32")
        low = k.emit(f"sub i64 4294967295, {place.value}")
        one = Vec(k, k.emit(f"or i64 {high}, {low}"), 1, I64)
        element, begin = k.splat(one, lanes), self._block(one)
        # What is smaller moves one place back; from the end, so that nothing is lost.
        with k.loop(begin, self._blocks) as i:
            at = self._kept.at((begin - i + (self._blocks - 1)) * lanes)
            own, before = at.load(1, lanes=lanes), at.load(0, lanes=lanes)
            at.store(own.max(before.min(element)), 1)
        last = self._kept.load(self._spec.count, lanes=1)
        self._last[0, 0] = k.shifted(last, "ashr", 32).to(I32)

    def _block(self, element: Vec) -> Index:
        """The block in which an element belongs: the last of which the first element is larger."""
        k, begin = self._k, self._k.index(0)
        for power in reversed(range((self._blocks - 1).bit_length())):
            later = (begin + (1 << power)).min(self._blocks - 1)
            head = self._kept.load(later * self._lanes + 1, lanes=1)
            larger = k.emit(f"icmp sgt i64 {head.ssa}, {element.ssa}")
            text = f"select i1 {larger}, i64 {later.value}, i64 {begin.value}"
            begin = Index(k, k.emit(text))
        return begin

    def place(self, i: Int) -> Vec:
        """The place of an element, by its number in the order."""
        low = self._kept.load(i + 1, lanes=1).to(I32)
        return (low * -1 + -1).to(F32)

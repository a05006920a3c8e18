"""Operators that only move values: they copy a view of the input into a view of the output.

Slices, transposes, expansions, channel shuffles and depth-to-space are views of their input, and
a concatenation is one copy per input into its part of the output, so `copy` does them all
(`kernels.core.strided`). Elements of any type are moved as they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Module
from fastrun.kernels.codegen.strided_loops import (
    Nest,
    aligned,
    fitted,
    load_row,
    operand,
    rows,
    singly,
    store_row,
)
from fastrun.kernels.codegen.tiling import cut
from fastrun.kernels.codegen.transpose import PART, cell_side, transpose
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import check

UNROLL = 4

MODES = ("constant", "edge", "reflect")


@dataclass(frozen=True)
class Pad:
    """Padding per axis, all begins, then all ends; a negative amount crops.

    `mode` is constant, edge or reflect. `value` is what is stored, an integer for integers.
    """

    padding: Ints
    mode: str = "constant"
    value: float = 0.0


@identified
def copy(cpu: Cpu, src: Strided, dst: Strided, constant: bool = False) -> Program:
    """Copy `src`, broadcast to `dst`. A constant is read from the weights, in row-major order.

    Raises:
        ScheduleError: the shapes do not fit, or the types differ.
    """
    module = Module(cpu)
    stage(module, "copy", "weights" if constant else "src", src, "dst", dst)
    return module.program(_io(dst if constant else src, dst))


@identified
def pad(spec: Pad, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Extend or crop `src` to `dst`.

    Raises:
        ScheduleError: the mode is unknown, the shapes do not fit, an axis is too short to be
            reflected, or no element of the type has this value.
    """
    check(spec.mode in MODES, f"unknown padding mode {spec.mode!r}: use one of {MODES}")
    rank = len(src.shape)
    begins, ends = spec.padding[:rank], spec.padding[rank:]
    sizes = zip(src.shape, begins, ends, strict=True)
    fits = dst.shape == tuple(n + b + e for n, b, e in sizes)
    check(fits, f"{src.shape} padded by {spec.padding} is not {dst.shape}")
    module = Module(cpu)
    pad_stages(module, "src", src, "dst", dst, begins, spec.mode, spec.value)
    return module.program(_io(src, dst))


def pad_stages(
    module: Module,
    source: str,
    src: Strided,
    target: str,
    dst: Strided,
    begins: Ints,
    mode: str = "constant",
    value: float = 0.0,
) -> None:
    """Stages that write `dst`, in which `src` begins at `begins` of every axis.

    Each writes one box of `dst`: along every axis a stretch of the input, or of the padding.
    """
    axes = [
        _stretches(n, begin, whole, mode)
        for n, begin, whole in zip(src.shape, begins, dst.shape, strict=True)
    ]
    for number, box in enumerate(_boxes(axes)):
        starts, froms, sizes, steps = (
            tuple(getattr(part, name) for part in box)
            for name in ("start", "source", "size", "step")
        )
        inside = dst.slice(starts, sizes, (1,) * len(sizes))
        if any(part.outside for part in box):
            fill(module, f"pad{number}", target, inside, value)
        else:
            stage(module, f"pad{number}", source, src.slice(froms, sizes, steps), target, inside)


@dataclass(frozen=True)
class _Stretch:
    """`size` elements of the output's axis, and the input's elements for them, `step` apart."""

    start: int
    size: int
    source: int = 0
    step: int = 0
    outside: bool = False


def _stretches(n: int, begin: int, whole: int, mode: str) -> list[_Stretch]:
    """An axis of `n` elements, the first at `begin` of the `whole` output."""
    first, end = max(begin, 0), min(begin + n, whole)
    before, after = first, whole - end
    middle = _Stretch(first, end - first, first - begin, 1)
    left, right = _Stretch(0, before, outside=True), _Stretch(end, after, outside=True)
    if mode == "edge":
        left, right = _Stretch(0, before, 0), _Stretch(end, after, n - 1)
    if mode == "reflect":
        check(max(before, after) < end - first, f"{n} elements cannot be reflected {whole} wide")
        left = _Stretch(0, before, before, -1)
        right = _Stretch(end, after, n - 2, -1)
    return [part for part in (left, middle, right) if part.size]


def _boxes(axes: Sequence[list[_Stretch]]) -> list[tuple[_Stretch, ...]]:
    """All combinations of stretches; padding along one axis is one box across the other axes."""
    if not axes:
        return [()]
    boxes = []
    for part in axes[0]:
        if part.outside:
            across = [_Stretch(0, sum(p.size for p in axis), outside=True) for axis in axes[1:]]
            boxes.append((part, *across))
        else:
            boxes += [(part, *rest) for rest in _boxes(axes[1:])]
    return boxes


def fill(module: Module, symbol: str, target: str, dst: Strided, value: float) -> None:
    """A stage that writes one value everywhere in `dst`, a view of the stage's argument.

    Raises:
        ScheduleError: no element of the type has this value.
    """
    dtype = dst.dtype
    if not dtype.is_float:
        low, high = dtype.range
        check(float(value).is_integer() and low <= value <= high, f"{value} is no {dtype.name}")
    (view,) = aligned(dst)
    *outer, length = view.shape
    step = view.strides[-1]
    lanes = module.cpu.wide(dtype) if step == 1 else module.cpu.lanes
    nest = Nest([*singly(tuple(outer)), rows(length, lanes, UNROLL)])

    @nest.stage(module, symbol)
    def write(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                at = operand(k, target, view).at(*places, x).strided(1)
                for start in range(0, run.size, lanes):
                    count = min(lanes, run.size - start)
                    filled = k.const(value, min(lanes, 1 << (count - 1).bit_length()), dtype)
                    store_row(at.at(start * step), step, count, filled)


def stage(
    module: Module, symbol: str, source: str, src: Strided, target: str, dst: Strided
) -> None:
    """A stage that copies `src`, broadcast, into `dst`, views of the stage's arguments.

    Raises:
        ScheduleError: the shapes do not fit, or the types differ.
    """
    before, after = src.dtype, dst.dtype
    check(before == after, f"a copy cannot make {after.name} of {before.name}")
    out, view = aligned(dst, fitted(src, dst.shape))
    across = _other_axis(out, view)
    if across is not None:
        _transposing(module, symbol, source, view, target, out, across)
        return
    *outer, length = out.shape
    read, written = view.strides[-1], out.strides[-1]
    near = read in (0, 1) and written == 1
    lanes = module.cpu.wide(after) if near else module.cpu.lanes
    nest = Nest([*singly(tuple(outer)), rows(length, lanes, UNROLL)])

    @nest.stage(module, symbol)
    def write(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                a = operand(k, source, view).at(*places, x).strided(1)
                b = operand(k, target, out).at(*places, x).strided(1)
                wide = min(lanes, 1 << (run.size - 1).bit_length())
                for start in range(0, run.size, wide):
                    count = min(wide, run.size - start)
                    value = load_row(a.at(start * read), read, count, wide)
                    store_row(b.at(start * written), written, count, value)


def _other_axis(out: Strided, view: Strided) -> int | None:
    """The axis along which the input is contiguous, if it is not the output's."""
    if out.strides[-1] != 1 or view.strides[-1] in (0, 1) or out.shape[-1] < PART:
        return None
    found = (
        axis
        for axis, (n, step) in enumerate(zip(view.shape, view.strides, strict=True))
        if step == 1 and n >= PART
    )
    return next(found, None)


def _transposing(
    module: Module, symbol: str, source: str, src: Strided, target: str, dst: Strided, across: int
) -> None:
    """Copy in squares of the input's contiguous axis, `across`, and the output's, the last."""
    lanes = module.cpu.wide(dst.dtype)
    # Small elements are squares of 128 bits, several side by side.
    height = lanes if dst.dtype is F32 else cell_side(dst.dtype)
    last = len(dst.shape) - 1
    tiles = singly(dst.shape)
    tiles[across], tiles[last] = cut(dst.shape[across], lanes), cut(dst.shape[last], height)
    nest = Nest(tiles)

    @nest.stage(module, symbol, across)
    def write(k: Kernel, *before: Int) -> None:
        for columns in nest.tiles[across]:
            with nest.loop(columns) as x, nest.outer(last) as between:
                for run in nest.inner:
                    with nest.loop(run) as y:
                        place = (*before, x, *between, y)
                        a = operand(k, source, src).at(*place).strided(src.strides[last], 1)
                        b = operand(k, target, dst).at(*place).strided(dst.strides[across], 1)
                        _square(k, a, b, run.size, columns.size)


def _square(k: Kernel, src: Buffer, dst: Buffer, rows_in: int, columns: int) -> None:
    """dst[j, i] = src[i, j] for at most as many columns as lanes."""
    side = cell_side(src.dtype)
    longest = max(rows_in, columns) if src.dtype is F32 else columns
    lanes = min(k.cpu.wide(src.dtype), max(side, 1 << (longest - 1).bit_length()))
    height = lanes if src.dtype is F32 else side
    found = [src.load(i, lanes=lanes) for i in range(rows_in)]
    found += [k.const(0, lanes, src.dtype)] * (height - rows_in)
    for j, row in enumerate(transpose(k, found)[:columns]):
        dst.store_first(row, rows_in, j)


def _io(src: Strided, dst: Strided) -> Io:
    return Io(src.buffer, dst.buffer, dst.buffer)

"""Operators that read an axis through a table: gathering at constant indices, resizing.

The tables lie in the weights. For every sampled axis they hold the offsets to read at, as 32-bit
integers, and for interpolation the weight of the upper of two neighbours. Elements of any type are
taken as they are stored. u8 is interpolated as stored, too; scales and zero points are an operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Module, Vec, first_lanes, fma
from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.quantise import elements, in_steps, scale_of, zero_point
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
from fastrun.kernels.codegen.tiling import consecutive
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, U8, DType
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import READ_SLACK, Array
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import check

# Vectors of a sampled row up to which it is straight code, in which lookups become shuffles.
STRAIGHT = 32

COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


@dataclass(frozen=True)
class Gather:
    """Entry `indices[i]` along `axis` becomes entry i. Negative indices count from the end."""

    axis: int
    indices: Ints


@dataclass(frozen=True)
class Resize:
    """Nearest or linear interpolation; `scales` (output / input) has one entry per axis.

    `mode` is nearest or linear. `coordinates`, one of `COORDINATES`, maps an output pixel to the
    input, and `rounding`, one of `ROUNDINGS`, chooses the nearest pixel, as ONNX's Resize does.
    """

    mode: str
    scales: tuple[float, ...]
    coordinates: str = "half_pixel"
    rounding: str = "round_prefer_floor"


@dataclass(frozen=True)
class _Sampled:
    """An axis whose output i is input `low[i]`, or lies `weight[i]` of the way to `high[i]`."""

    axis: int
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    weight: NDArray[np.float64] | None


@identified
def gather(spec: Gather, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Take entries of `src` along an axis; `dst` has one for each index.

    Raises:
        ScheduleError: an index is outside, the shapes do not fit, or the types differ.
    """
    n, index = src.shape[spec.axis], np.array(spec.indices, np.int64)
    check(bool(((-n <= index) & (index < n)).all()), f"an index is outside an axis of {n}")
    check(dst.shape[spec.axis] == len(index), f"{len(index)} indices cannot fill {dst.shape}")
    index = np.where(index < 0, index + n, index)
    return _sample(cpu, src, dst, [_Sampled(spec.axis, index, index, None)])


@identified
def resize(spec: Resize, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Interpolate `src` at the elements of `dst`.

    Raises:
        ScheduleError: a name is unknown, or the types differ and are not interpolated.
    """
    check(spec.mode in ("nearest", "linear"), f"unknown interpolation {spec.mode!r}")
    check(spec.coordinates in COORDINATES, f"unknown coordinates {spec.coordinates!r}")
    check(spec.rounding in ROUNDINGS or spec.mode == "linear", f"unknown {spec.rounding!r}")
    sampled = []
    for axis, (n, out, scale) in enumerate(zip(src.shape, dst.shape, spec.scales, strict=True)):
        if (scale, out) == (1, n):
            continue
        at = _coordinates(spec.coordinates, n, out, scale)
        if spec.mode == "nearest":
            index = _rounded(spec.rounding, at).astype(np.int64).clip(0, n - 1)
            sampled.append(_Sampled(axis, index, index, None))
        else:
            low = np.floor(at).astype(np.int64)
            sampled.append(_Sampled(axis, low.clip(0, n - 1), (low + 1).clip(0, n - 1), at - low))
    return _sample(cpu, src, dst, sampled)


def _coordinates(name: str, n: int, out: int, scale: float) -> NDArray[np.float64]:
    """Where in the input's axis of `n` each of `out` elements lies.

    It is computed in float32 as in ONNX, since rounding decides which pixel is the nearest.
    """
    x, by, half = np.arange(out, dtype=np.float32), np.float32(scale), np.float32(0.5)
    if name == "align_corners":
        at = x * np.float32(n - 1) / np.float32(max(out - 1, 1))
    elif name == "asymmetric":
        at = x / by
    elif name == "pytorch_half_pixel" and out == 1:
        at = x
    else:
        at = (x + half) / by - half
    if name == "half_pixel_symmetric":
        # Output and input have the same centre, however the size was rounded.
        at += np.float32(n) / 2 * (1 - np.float32(out) / (by * np.float32(n)))
    return at.astype(np.float64)


def _rounded(name: str, at: NDArray[np.float64]) -> NDArray[np.float64]:
    if name == "round_prefer_floor":
        return np.ceil(at - 0.5)
    if name == "round_prefer_ceil":
        return np.floor(at + 0.5)
    return np.floor(at) if name == "floor" else np.ceil(at)


def _sample(cpu: Cpu, src: Strided, dst: Strided, sampled: Sequence[_Sampled]) -> Program:
    axes = {s.axis for s in sampled}
    fits = len(src.shape) == len(dst.shape) and all(
        a == b or axis in axes for axis, (a, b) in enumerate(zip(src.shape, dst.shape, strict=True))
    )
    check(fits, f"{src.shape} cannot be sampled as {dst.shape}")
    linear = any(s.weight is not None for s in sampled)
    before, after = src.dtype, dst.dtype
    check(linear or before == after, f"sampling cannot make {after.name} of {before.name}")
    tables: list[Array] = []
    views: list[Strided] = []
    for s in sampled:
        stride = src.strides[s.axis]
        parts = [(index * stride).astype(np.int32).view(np.float32) for index in (s.low, s.high)]
        parts.append((np.zeros(s.low.size) if s.weight is None else s.weight).astype(np.float32))
        views.append(replace(marked(dst, s.axis), offset=sum(t.size for t in tables)))
        tables += parts
    strides = tuple(0 if axis in axes else step for axis, step in enumerate(src.strides))
    # Tables are views like the tensors, so that axes beside the sampled ones can be merged.
    out, frame, *found = aligned(dst, Strided(dst.shape, strides, src.offset, before), *views)
    *outer, length = out.shape
    along = any(view.strides[-1] for view in found)
    near = not along and out.strides[-1] == frame.strides[-1] == 1
    wide = max(cpu.wide(before), cpu.wide(after)) if near else cpu.lanes
    tiles = rows(length, wide, 1)
    whole = bool(found) and found[-1].strides[-1] == 1 and length <= STRAIGHT * cpu.lanes
    if whole:
        tiles = consecutive((length, 1))
    module, nest = Module(cpu), Nest([*singly(tuple(outer)), tiles])
    step, written = frame.strides[-1], out.strides[-1]

    @nest.stage(module, "sample")
    def write_sample(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                looked_up = [
                    _Table(
                        operand(k, "weights", view).at(*places, x).strided(1),
                        view.strides[-1],
                        s,
                        src.strides[s.axis],
                        whole and view is found[-1],
                    )
                    for view, s in zip(found, sampled, strict=True)
                ]
                a = operand(k, "src", frame).at(*places, x).strided(1)
                b = operand(k, "dst", out).at(*places, x).strided(1)
                lanes = min(wide, 1 << (run.size - 1).bit_length())
                for start in range(0, run.size, lanes):
                    count = min(lanes, run.size - start)
                    point = _Point(k, start, count, lanes, step, linear)
                    value = point.value(a.at(start * step), None, looked_up)
                    if linear:
                        value = _stored(value, before, after)
                    store_row(b.at(start * written), written, count, value)

    table = np.concatenate([*tables, np.zeros(READ_SLACK, np.float32)])
    return module.program(Io(src.buffer, dst.buffer, dst.buffer), lambda w: table)


def _stored(value: Vec, before: DType, after: DType) -> Vec:
    """Elements as they are stored, interpolated in float32, as elements of the output."""
    k, lanes = value.k, value.lanes
    if before is not U8:
        return elements(value, after)
    value = value - zero_point(k, "src", lanes)
    factor = scale_of(k, "src", lanes)
    if after is not U8:
        return elements(value * factor, after)
    return in_steps(value * (factor / scale_of(k, "dst", lanes)), zero_point(k, "dst", lanes))


@dataclass(frozen=True)
class _Table:
    """The table of a sampled axis at the first element of a row."""

    at: Buffer
    step: int  # 1 where the row runs along the axis, else 0
    axis: _Sampled
    stride: int  # of the input along the axis
    whole: bool  # the row is the whole axis, so what it reads is known when it is built

    def window(self, start: int, count: int) -> tuple[int, int]:
        """The first input that these outputs read, and the floats from there past the last."""
        part = slice(start, start + count)
        read = np.concatenate([self.axis.low[part], self.axis.high[part]])
        return int(read.min()), int(np.ptp(read)) * self.stride + 1

    @property
    def size(self) -> int:
        """Entries."""
        return self.axis.low.size


@dataclass(frozen=True)
class _Point:
    """`count` elements of a row from `start` on, `step` apart on an axis without a table."""

    k: Kernel
    start: int
    count: int
    lanes: int
    step: int
    linear: bool

    def value(self, base: Buffer, offsets: str | None, tables: Sequence[_Table]) -> Vec:
        """Interpolate over the axes of `tables`; `offsets` are the lanes', if they differ."""
        if not tables:
            if offsets is None:
                return self._known(load_row(base, self.step, self.count, self.lanes))
            return self._known(self._gathered(base, offsets))
        table, *rest = tables
        low = self._at(base, offsets, table, 0, rest)
        if table.axis.weight is None:
            return low
        high = self._at(base, offsets, table, 1, rest)
        place = table.at.at(2 * table.size + self.start * table.step)
        weight = load_row(place, table.step, self.count, self.lanes)
        return fma(high, weight, low * (weight * -1.0 + 1.0))

    def _known(self, x: Vec) -> Vec:
        """What was loaded, as it is interpolated."""
        return x.to(F32) if self.linear else x

    def _at(
        self, base: Buffer, offsets: str | None, table: _Table, row: int, rest: Sequence[_Table]
    ) -> Vec:
        """The value at the offsets in one row of this axis's table."""
        if table.whole and not rest and self.lanes > 1 and table.stride > 0:
            first, floats = table.window(self.start, self.count)
            if floats <= 2 * self.lanes:
                return self._shuffled(base.at(first * table.stride), table, row, first)
        entry = row * table.size + self.start * table.step
        if table.step and self.lanes > 1:
            assert offsets is None
            kind, address = vector_type(self.lanes, "i32"), table.at.address(entry)
            found = self.k.emit(f"load {kind}, ptr {address}, align 4")
            return self.value(base, found, rest)
        return self.value(base.at(table.at.index(entry)), offsets, rest)

    def _shuffled(self, base: Buffer, table: _Table, row: int, first: int) -> Vec:
        """As `_at`, if all lanes read within two vectors from input `first` on."""
        index = (table.axis.low, table.axis.high)[row][self.start : self.start + self.count]
        order = [int(i - first) * table.stride for i in index]
        a, b = (base.load(i, lanes=self.lanes) for i in (0, self.lanes))
        return self._known(self.k.shuffle(a, b, order + [0] * (self.lanes - self.count)))

    def _gathered(self, base: Buffer, offsets: str) -> Vec:
        k, n = self.k, self.lanes
        floats, bits = vector_type(n, base.dtype.llvm_name), vector_type(n, "i1")
        places = k.emit(
            f"getelementptr {base.dtype.llvm_name}, ptr {base.base}, <{n} x i32> {offsets}"
        )
        name = f"llvm.masked.gather.v{n}{base.dtype.suffix}.v{n}p0"
        k.declare(f"declare {floats} @{name}(<{n} x ptr>, {bits}, {floats})")
        text = (
            f"call {floats} @{name}(<{n} x ptr> align {base.dtype.bytes()} {places}, "
            f"{bits} {first_lanes(self.count, n)}, {floats} zeroinitializer)"
        )
        return Vec(k, k.emit(text), n, base.dtype)

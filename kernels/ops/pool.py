"""Maximum and average over windows; global pooling is a window as large as the plane.

A vector holds neighbouring channels, or in NCHW neighbouring output pixels. Outputs whose windows
have the same taps inside the image share their code. Nothing reads the halo: its zeros could be
larger than the maximum.

The maximum of u8 is that of the stored numbers. Sums of u8 are integers, and one multiplication and
one division turn each into a step of the output, so that ties are found to be ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fastrun.kernels.codegen import elementary as functions
from fastrun.kernels.codegen.builder import (
    Buffer,
    Index,
    Int,
    Kernel,
    Module,
    Tile,
    Vec,
    at_channel,
    least,
    most,
)
from fastrun.kernels.codegen.quantise import elements, in_steps, numbers, scale_of, zero_point
from fastrun.kernels.codegen.sums import RUN, Totals
from fastrun.kernels.codegen.tiling import Tiles, consecutive, cover, cut
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, I16, I32, U8, DType
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import Array, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check

# Output pixels of a tile where a vector holds channels.
TILE = 4
# Loads of a tile up to which its whole window is straight code.
STRAIGHT = 256
# Tasks to aim at: enough to divide evenly among any number of threads.
TASKS = 32
# Longest stride at which the pixels of a row are put together into a vector.
GATHERED = 4


@dataclass(frozen=True)
class Pool:
    """`function` is max or average; padding is (top, left, bottom, right).

    An average is taken over the pixels inside the image; with `count_padding`, the padding
    counts as zeros. Scales and zero points of u8 are an operand; the maximum needs none if input
    and output are u8, which then have the same.
    """

    function: str
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    count_padding: bool = False


@dataclass(frozen=True)
class Zone:
    """`count` outputs along one axis, from `start`, whose windows have the same taps in the image.

    An average divides by the number of `counted` taps.
    """

    start: int
    count: int
    taps: range
    counted: int


def zones(spec: Pool, axis: int, pixels: int, windows: int) -> list[Zone]:
    """The zones along an axis (0 is vertical) of `pixels` inputs and `windows` outputs."""
    kernel, step, apart = spec.kernel[axis], spec.stride[axis], spec.dilation[axis]
    before, after = spec.padding[axis], spec.padding[axis + 2]
    # Where on the padded axis the image begins and ends, and what counts in an average.
    borders = (before, before + pixels, before + pixels + spec.count_padding * after)
    found, start = list[Zone](), 0
    while start < windows:
        # A window's taps in front of each border, and the window from which on they are less.
        taps = [min(kernel, max(0, -((start * step - x) // apart))) for x in borders]
        ends = [-(((n - 1) * apart - x) // step) for x, n in zip(borders, taps, strict=True) if n]
        first, end, counted = taps
        check(first < end, f"window {start} has no pixel inside the image")
        behind = min(*ends, windows)
        counted = counted if spec.count_padding else end - first
        found.append(Zone(start, behind - start, range(first, end), counted))
        start = behind
    return found


@identified
def build(spec: Pool, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Pool `src` into the dst.h x dst.w windows of `dst`.

    The last window may exceed the padded image (ONNX's ceil mode); its taps there are ignored.

    Raises:
        ScheduleError: the function is unknown, the tensors differ in images or channels, only one
            of them is NCHW, or a window has no pixel inside the image.
    """
    check(spec.function in ("max", "average"), f"unknown pooling function {spec.function!r}")
    check((src.n, src.c) == (dst.n, dst.c), f"pooling cannot turn {src} into {dst}")
    planar = src.layout.name == "NCHW"
    check(planar == (dst.layout.name == "NCHW"), "pooling reads and writes NCHW, or neither")
    sums = _sums(spec, src.dtype)
    wide = cpu.wide(sums)
    widest = min(wide, src.layout.blocked or wide, dst.layout.blocked or wide)
    unit = 1 if planar else widest
    rows, columns = zones(spec, 0, src.h, dst.h), zones(spec, 1, src.w, dst.w)
    # Where channels lie together, a task does all of them; else a block or plane is a task.
    together = "NHWC" in (src.layout.name, dst.layout.name)
    units = cut(src.c, unit) if together else consecutive((unit, 1))
    unit_tasks = 1 if together else -(-src.c // unit)
    per_task = max(1, src.n * unit_tasks * dst.h // TASKS)
    row_tasks = -(-dst.h // per_task)

    module = Module(cpu)

    @module.stage("pool", src.n * unit_tasks * row_tasks)
    def write_pool(k: Kernel, task: Index) -> None:
        first, rest = task % row_tasks * per_task, task // row_tasks
        number, image = rest % unit_tasks, rest // unit_tasks
        windows = _Windows(k, spec, src, dst, image, unit, sums, wide)
        with k.loop(first, least(first + per_task, dst.h)) as top:
            for x in columns:
                for run in _tiles(x, spec, wide if planar else 0):
                    with run.loop(k) as left:
                        for channels in units:
                            with channels.loop(k) as c:
                                channel = c + number * unit
                                windows.tile(rows, top, x, run.size, left, channels.size, channel)

    return module.program(Io(src, dst, dst), lambda w: shares(rows, src.dtype))


def _sums(spec: Pool, src: DType) -> DType:
    """The type in which windows are taken in: bytes for the maximum, else the narrowest."""
    if src is not U8:
        return F32
    if spec.function == "max":
        return U8
    taps = math.prod(spec.kernel)
    check(taps * 255 <= I32.range[1], f"the sum of {taps} numbers of u8 could exceed int32")
    return I16 if taps * 255 <= I16.range[1] else I32


def per_row(dtype: DType) -> int:
    """Packed weights of an output row."""
    return 2 if dtype is U8 else 1


def shares(rows: list[Zone], dtype: DType) -> Array:
    """The packed weights: the factor of each output row's sums, 1 / the taps that count.

    For u8 they are two numbers a row: the taps that count, and those inside the image.
    """
    if dtype is U8:
        known = [np.full((z.count, 2), (z.counted, len(z.taps)), np.float32) for z in rows]
        return np.concatenate(known).reshape(-1)
    return np.concatenate([np.full(z.count, 1 / z.counted, np.float32) for z in rows])


@dataclass(frozen=True)
class _Windows:
    """The windows of one image."""

    k: Kernel
    spec: Pool
    src: Placement
    dst: Placement
    image: Int
    unit: int
    sums: DType
    wide: int  # elements of a register in the type of the sums

    def tile(
        self, rows: list[Zone], top: Int, x: Zone, size: int, left: Int, channels: int, channel: Int
    ) -> None:
        """`size` windows side by side: as many vectors, or in NCHW one vector."""
        k, spec, (sy, sx), dy = self.k, self.spec, self.spec.stride, self.spec.dilation[0]
        planar, maximum = self.src.layout.name == "NCHW", spec.function == "max"
        kept, cells = (size, 1) if planar else (channels, size)
        lanes = min(self.wide, 1 << (kept - 1).bit_length())
        y0, x0 = top * sy - spec.padding[0], left * sx - spec.padding[1]
        corner = self._at("src", self.src, channel).at(0, 0, y0, x0)
        acc = k.tile(1, cells, lanes, self.sums)
        lowest = -math.inf if maximum and self.sums is F32 else 0
        acc.fill(k.const(lowest, lanes, self.sums))
        many = self.sums is F32 and not maximum and math.prod(spec.kernel) > RUN
        totals = Totals(acc) if many else None
        taps = rows[0].taps
        if len(rows) == 1 and totals and 2 * len(x.taps) <= RUN:
            for run in cut(len(taps), RUN // len(x.taps)):
                with run.loop(k) as start:
                    with k.times(run.size) as i:
                        self._row(acc, corner, x, i + start + taps.start, None)
                    totals.take_in()
        elif len(rows) == 1:
            straight = _is_straight(spec, x, cells)
            for part in cut(len(taps), len(taps) if straight else 1):
                with part.unrolled(k) as some:
                    for i in some:
                        self._row(acc, corner, x, i + taps.start, totals)
        else:
            above = most(dy - 1 - y0, 0) // dy
            inside = least((self.src.h + dy - 1 - y0) // dy, spec.kernel[0])
            with k.loop(above, inside) as ky:
                self._row(acc, corner, x, ky, totals)
        if totals:
            totals.finish()
        target = self._at("dst", self.dst, channel).at(0, 0, top, left)
        for i in range(cells):
            target.store_first(self._result(acc[0, i], top, x), kept, 0, 0, 0, i)

    def _result(self, value: Vec, top: Int, x: Zone) -> Vec:
        """A maximum or a sum as an element of the output."""
        k, after, lanes = self.k, self.dst.dtype, value.lanes
        if self.spec.function == "max":
            return value if value.dtype == after else elements(numbers(value), after)
        if self.sums is F32:
            weights = k.argument("weights", 1)
            return elements(value * weights.splat(top, lanes=lanes) * (1 / x.counted), after)
        row = k.argument("weights", 2, 1)
        inside = row.splat(top, 1, lanes=lanes) * float(len(x.taps))
        zeros = (inside * zero_point(k, "src", lanes)).to(I32)
        total, counted = (value.to(I32) - zeros).to(F32), row.splat(top, lanes=lanes) * x.counted
        factor = scale_of(k, "src", lanes)
        if after is not U8:
            return elements(total * factor / counted, after)
        factor = factor / scale_of(k, "dst", lanes)
        return in_steps(total * factor / counted, zero_point(k, "dst", lanes))

    def _row(self, acc: Tile, corner: Buffer, x: Zone, ky: Int, totals: Totals | None) -> None:
        """Take in the taps of one row of the window; long rows are summed in runs."""
        k, (_, sx), (dy, dx) = self.k, self.spec.stride, self.spec.dilation
        step = sx if self.src.layout.name == "NCHW" and acc.lanes > 1 else 1
        # Keeping every NaN costs time, which matters less for one window of all pixels.
        whole = (self.dst.h, self.dst.w) == (1, 1) and self.sums is F32
        larger = functions.maximum if whole else Vec.max
        across = len(x.taps) if _is_straight(self.spec, x, acc.cols) else 8
        for run in cut(len(x.taps), RUN if totals else len(x.taps)):
            with run.loop(k) as start:
                for part in cut(run.size, across):
                    with part.unrolled(k) as taps:
                        for tap in taps:
                            kx = tap + start + x.taps.start
                            pixels = corner.at(0, 0, ky * dy, kx * dx)
                            for i in range(acc.cols):
                                place = (0, 0, 0, i * sx)
                                value = pixels.load_strided(*place, step=step, lanes=acc.lanes)
                                value = value.to(acc.dtype)
                                if self.spec.function == "max":
                                    acc[0, i] = larger(value, acc[0, i])
                                else:
                                    acc[0, i] = value + acc[0, i]
                if totals:
                    totals.take_in()

    def _at(self, name: str, where: Placement, channel: Int) -> Buffer:
        tensor = self.k.tensor(name, where).at(self.image)
        return at_channel(tensor, where, channel // self.unit, self.unit)


def _is_straight(spec: Pool, x: Zone, cells: int) -> bool:
    """Whether the whole window of a tile is straight code."""
    return spec.kernel[0] * len(x.taps) * cells <= STRAIGHT


def _tiles(x: Zone, spec: Pool, lanes: int) -> list[Tiles]:
    """The windows of a zone in tiles; with `lanes`, in whole vectors of powers of two."""
    if not lanes:
        return [replace(run, start=run.start + x.start) for run in cover(x.count, TILE)]
    if spec.stride[1] > GATHERED:
        return consecutive((1, x.count), start=x.start)
    pieces, left = [], x.count
    while left:
        pieces.append((lanes, left // lanes))
        left, lanes = left % lanes, lanes // 2
    return consecutive(*pieces, start=x.start)

"""Maximum and average over windows; global pooling is a window as large as the plane.

A vector is a run of channels, or in NCHW a run of output pixels. Outputs whose windows lie
alike, wholly inside or cut off at the same taps by an edge, share their code; nothing reads the
halo, whose zeros are no neutral element of a maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import numpy as np

from fastrun.kernels.codegen import elementary as functions
from fastrun.kernels.codegen.builder import (
    Buffer,
    Int,
    Kernel,
    Module,
    Vec,
    at_channel,
    least,
    most,
)
from fastrun.kernels.codegen.sums import RUN, Totals
from fastrun.kernels.codegen.tiling import Tiles, consecutive, cover, cut, each, sweep
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Array, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check

# Output pixels of a tile where a vector is a run of channels.
TILE = 4
# Loads of a tile up to which its whole window is straight code.
STRAIGHT = 256
# Tasks aimed at: enough for any number of threads to share evenly.
TASKS = 32
# Longest stride at which the pixels of a row are gathered into a vector.
GATHERED = 4


@dataclass(frozen=True)
class Pool:
    """`function` is max or average; padding is (top, left, bottom, right).

    An average is taken over the pixels inside the image; with `count_padding`, the padding
    counts as zeros.
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

    `counted` taps go into an average.
    """

    start: int
    count: int
    taps: range
    counted: int


def zones(spec: Pool, axis: int, pixels: int, windows: int) -> list[Zone]:
    """The zones along an axis (0 is vertical) of `pixels` inputs and `windows` outputs."""
    step, before, after = spec.stride[axis], spec.padding[axis], spec.padding[axis + 2]
    offsets = [t * spec.dilation[axis] - before for t in range(spec.kernel[axis])]

    def window(o: int) -> tuple[range, int]:
        taps = [t for t, x in enumerate(offsets) if 0 <= o * step + x < pixels]
        check(bool(taps), f"window {o} has no pixel inside the image")
        padded = sum(o * step + x < pixels + after for x in offsets)
        return range(taps[0], taps[-1] + 1), padded if spec.count_padding else len(taps)

    found = []
    for (taps, counted), group in groupby(range(windows), key=window):
        members = list(group)
        found.append(Zone(members[0], len(members), taps, counted))
    return found


def build(spec: Pool, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Pool `src` into the dst.h x dst.w windows of `dst`.

    The last window may stick out of the padded image (ONNX's ceil mode): what it has there
    counts for nothing.

    Raises:
        ScheduleError: the function is unknown, the tensors differ in images or channels, only one
            of them is NCHW, or a window has no pixel inside the image.
    """
    check(spec.function in ("max", "average"), f"unknown pooling function {spec.function!r}")
    check((src.n, src.c) == (dst.n, dst.c), f"pooling cannot turn {src} into {dst}")
    planar = src.layout == NCHW
    check(planar == (dst.layout == NCHW), "pooling reads and writes NCHW, or neither")
    widest = min(cpu.lanes, src.layout.blocked or cpu.lanes, dst.layout.blocked or cpu.lanes)
    unit = 1 if planar else widest
    rows, columns = zones(spec, 0, src.h, dst.h), zones(spec, 1, src.w, dst.w)
    units = cut(src.c, unit)
    # Where channels lie together all of them go by; else each block or plane is a task.
    together = NHWC in (src.layout, dst.layout)
    unit_tasks = 1 if together else -(-src.c // unit)
    per_task = max(1, src.n * unit_tasks * dst.h // TASKS)
    row_tasks = -(-dst.h // per_task)

    module = Module(cpu)
    with module.stage("pool", src.n * unit_tasks * row_tasks) as (k, task):
        first, rest = task % row_tasks * per_task, task // row_tasks
        number, image = rest % unit_tasks, rest // unit_tasks
        windows = _Windows(k, spec, src, dst, image, unit)

        def tile(top: Int, x: Zone, run: Tiles, left: Int) -> None:
            body = partial(windows.tile, rows, top, x, run, left)
            if together:
                sweep(k, units, body)
            else:
                body(consecutive((unit, 1))[0], number * unit)

        with k.loop(first, least(first + per_task, dst.h)) as top:
            for x in columns:
                for run in _tiles(x, spec, cpu.lanes if planar else 0):
                    sweep(k, [run], partial(tile, top, x))
    return module.program(Io(src, dst, dst), lambda w: shares(rows))


def shares(rows: list[Zone]) -> Array:
    """The packed weights: what each output row's average multiplies its sums with."""
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

    def tile(
        self,
        rows: list[Zone],
        top: Int,
        x: Zone,
        run: Tiles,
        left: Int,
        channels: Tiles,
        channel: Int,
    ) -> None:
        """`run.size` windows side by side: as many vectors, or in NCHW one vector."""
        k, spec, (sy, sx), (dy, dx) = self.k, self.spec, self.spec.stride, self.spec.dilation
        planar, maximum = self.src.layout == NCHW, spec.function == "max"
        whole = (self.dst.h, self.dst.w) == (1, 1)
        kept, cells = (run.size, 1) if planar else (channels.size, run.size)
        lanes = k.cpu.lanes_for(kept)
        step = sx if planar and lanes > 1 else 1
        y0, x0 = top * sy - spec.padding[0], left * sx - spec.padding[1]
        corner = self._at("src", self.src, channel).at(0, 0, y0, x0)
        acc = k.tile(1, cells, lanes)
        acc.fill(k.const(-math.inf if maximum else 0.0, lanes))

        # To keep every NaN costs time, which one window of all pixels has.
        larger = functions.maximum if whole else Vec.max
        totals = Totals(acc) if not maximum and math.prod(spec.kernel) > RUN else None

        def tap(ky: Int, kx: Int) -> None:
            pixels = corner.at(0, 0, ky * dy, (kx + x.taps.start) * dx)
            for i in range(cells):
                value = pixels.load_strided(0, 0, 0, i * sx, step=step, lanes=lanes)
                acc[0, i] = larger(value, acc[0, i]) if maximum else value + acc[0, i]

        straight = spec.kernel[0] * len(x.taps) * cells <= STRAIGHT
        across = len(x.taps) if straight else 8

        def tap_row(ky: Int) -> None:
            each(k, len(x.taps), across, partial(tap, ky))

        def run_of_row(ky: Int, run: Tiles, start: Int) -> None:
            each(k, run.size, across, lambda i: tap(ky, i + start))
            assert totals
            totals.take_in()

        def long_row(ky: Int) -> None:
            sweep(k, cut(len(x.taps), RUN), partial(run_of_row, ky))

        def some_rows(run: Tiles, start: Int) -> None:
            each(k, run.size, 1, lambda i: tap_row(i + start + taps.start))
            assert totals
            totals.take_in()

        taps = rows[0].taps
        if len(rows) == 1 and totals and 2 * len(x.taps) <= RUN:
            sweep(k, cut(len(taps), RUN // len(x.taps)), some_rows)
        elif len(rows) == 1:
            row = long_row if totals else tap_row
            each(k, len(taps), len(taps) if straight else 1, lambda i: row(i + taps.start))
        else:
            above = most(dy - 1 - y0, 0) // dy
            inside = least((self.src.h + dy - 1 - y0) // dy, spec.kernel[0])
            with k.loop(above, inside) as ky:
                (long_row if totals else tap_row)(ky)
        if totals:
            totals.finish()
        target = self._at("dst", self.dst, channel).at(0, 0, top, left)
        for i in range(cells):
            value = acc[0, i]
            if not maximum:
                value = value * k.argument("weights", 1).splat(top, lanes=lanes) * (1 / x.counted)
            target.store_first(value, kept, 0, 0, 0, i)

    def _at(self, name: str, where: Placement, channel: Int) -> Buffer:
        tensor = self.k.tensor(name, where).at(self.image)
        return at_channel(tensor, where, channel // self.unit, self.unit)


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

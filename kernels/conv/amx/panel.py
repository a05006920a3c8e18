"""A panel of output channels of one strip of the image: its products, and what follows them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import (
    Buffer,
    Index,
    Int,
    Kernel,
    Vec,
    at_channel,
    least,
    most,
)
from fastrun.kernels.codegen.epilogue import finish_run, longest_run
from fastrun.kernels.codegen.matrix_tiles import ROW_BYTES
from fastrun.kernels.codegen.reduction import Taps, met_taps
from fastrun.kernels.codegen.tiling import Tiles, consecutive, cut
from fastrun.kernels.conv.amx.copy import Copy
from fastrun.kernels.conv.amx.schedule import PAIRS, Lines, Schedule, Window, width_of
from fastrun.kernels.conv.amx.sums import CHANNELS, Sums
from fastrun.kernels.core.dtype import U8
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io


@dataclass(frozen=True)
class Panel:
    """A panel of output channels of one strip of the image."""

    k: Kernel
    p: ConvProblem
    s: Schedule
    io: Io
    window: Window
    vectors: int  # tiles of output channels of a group
    image: Int
    group: Int
    first: Int  # tile of output channels
    cols: int
    tail: int  # channels of the last tile, 0 where it is full
    copy: Copy  # of the image or the strip, where pixels are not read in place
    room: int  # bytes of sums in the workspace

    def compute(self, top: Int, rows: int) -> None:
        """All outputs of the strip that begins at row `top`.

        In the last block of K vectors finish a block of sums while tiles multiply for the next one.
        """
        k, most = self.k, self.s.tiles
        lines = Lines.of(self.p, self.s, width_of(self.io.src), rows)
        tiles = Sums(k, most, self.cols, lines.height, self.window.width, self.window.dtype)
        blocks, parts = cut(lines.total, most), self._parts()
        with tiles.configured():
            for part in parts:
                with part.loop(k) as chunk:
                    for some in blocks:
                        with (
                            some.loop(k) as first,
                            self._products(
                                tiles, lines, first, some.size, chunk, part.size, top
                            ) as step,
                        ):
                            if part is parts[-1] and (isinstance(first, Index) or first):
                                self._finish_share(lines, first - most, step, top)
        last = blocks[-1]
        with k.times(lines.height) as row:
            self._finish_row(lines, last.end - last.size, last.size, row, top)

    def _parts(self) -> list[Tiles]:
        """The blocks of K: the first and the last have code of their own."""
        whole, most = self.window.chunks, self.s.chunks
        before = (whole - 1) // most
        return consecutive(
            (most, min(before, 1)), (most, max(0, before - 1)), (whole - before * most, 1)
        )

    @contextmanager
    def _products(
        self, tiles: Sums, lines: Lines, first: Int, count: int, start: Int, chunks: int, top: Int
    ) -> Iterator[Int]:
        """A block of sums, of `count` tiles of pixels from number `first` on: adds products.

        They are those of `chunks` chunks from number `start` on. Yields each step, or each chunk if
        taps are left out.
        """
        k, p, window = self.k, self.p, self.window
        (sy, sx), (dy, dx) = p.stride, p.dilation
        src, pixel = self._source(top)
        pitch = width_of(self.io.src)
        apart = window.width if window.in_place else self.copy.chunk
        pixels = list[Buffer]()
        for number in range(count):
            line, place = lines.place(first + number)
            at = line * (sy * pitch) + place * sx
            pixels.append(src.strided(pixel, apart).at(at, start).strided(1))
        (kh, kw), whole = window.kernel, window.weight_bytes
        step_bytes = window.tile * window.terms * self.cols
        weights = k.argument("weights", self.vectors * whole, whole, dtype=U8)
        weights = weights.at(self.group, self.first).strided(step_bytes).at(start * (kh * kw))
        sums = self._sums(lines, first).strided(1)
        bias = k.argument("bias", p.group_oc, CHANNELS, dtype=p.precision.sums)
        if isinstance(start, Index) or start:
            tiles.load(count, sums, self._width)
        else:
            tiles.clear(count, bias.at(self.group, self.first).strided(CHANNELS))
        rows, columns = self._taps(lines, first, count, top)
        with k.times(chunks) as chunk:
            with _over(k, rows) as ky, _over(k, columns) as kx:
                offset = (ky * (dy * pitch) + kx * dx) * pixel + chunk * apart
                step = chunk * (kh * kw) + ky * kw + kx
                tiles.multiply(
                    [x.at(offset) for x in pixels],
                    sx * pixel,
                    self.copy.term,
                    weights.at(step).strided(1),
                    PAIRS[self.s.terms],
                    self.s.stream,
                )
                if lines.met == 1:
                    yield step
            if lines.met < 1:
                yield chunk
        tiles.store(count, sums, self._width)

    def _taps(
        self, lines: Lines, first: Int, count: int, top: Int
    ) -> tuple[tuple[Int, Int], tuple[Int, Int]]:
        """Rows and columns of the filter, as (first, end), that `count` tiles must multiply."""
        kernel = self.window.kernel
        if lines.met == 1:
            return (0, kernel[0]), (0, kernel[1])
        places = [lines.place(first + number) for number in range(count)]
        down = [met_taps(self.p, 0, top + line, 1) for line, _ in places]
        across = [met_taps(self.p, 1, x, lines.height) for _, x in places]
        return _union(down, kernel[0]), _union(across, kernel[1])

    @property
    def _width(self) -> int:
        """Bytes from one pixel's sums to the next's."""
        return self.cols * ROW_BYTES

    def _sums(self, lines: Lines, first: Int) -> Buffer:
        """Those of the block of tiles from number `first` on: its own, if they are kept."""
        whole = Buffer(self.k, "%local", (self._width,), U8)
        return whole.at(first * lines.height) if self.s.chunks < self.window.chunks else whole

    def _source(self, top: Int) -> tuple[Buffer, int]:
        """Bytes of the first pixel under the filter of output row `top`, and those of a pixel."""
        p, src, window = self.p, self.io.src, self.window
        y, copy, left = top * p.stride[0], self.copy, (src.halo[1] - p.padding[1]) * ROW_BYTES
        if self.s.strips:
            return self.k.argument("local", 1, offset=self.room + left, dtype=U8), ROW_BYTES
        if not window.in_place:
            strides = copy.size, copy.group, copy.row
            whole = self.k.argument("shared", *strides, offset=left, dtype=U8)
            return whole.at(self.image, self.group, y), ROW_BYTES
        tensor = self.k.tensor("src", src, y=-p.padding[0], x=-p.padding[1])
        tensor = at_channel(tensor.at(self.image, 0, y), src, self.group, p.group_c)
        return replace(tensor, strides=(1,), dtype=U8), src.dtype.bytes(src.x_stride)

    def _finish_share(self, lines: Lines, first: Int, step: Int, top: Int) -> None:
        """In a step or chunk of K: a share of the rows of the block from tile `first` on.

        A negative number of a tile is that of no block.
        """
        steps = self._parts()[-1].size
        if lines.met == 1:
            steps *= math.prod(self.window.kernel)
        begin, end = lines.share(step, steps)
        begin, end = self.k.index(begin), least(end, (first + 1) * lines.height)
        with self.k.loop(begin, end) as row:
            self._finish_row(lines, first, self.s.tiles, row, top)

    def _finish_row(self, lines: Lines, first: Int, count: int, row: Int, top: Int) -> None:
        """Finish the sums in a row of each of `count` tiles from number `first` on."""
        pitch = width_of(self.io.src)
        for number in range(count):
            line, start = lines.place(first + number)
            x = start + row
            sums = self._sums(lines, first).at(row + number * lines.height)
            if not lines.joined:
                self._finish_pixel(sums, top + line, x)
                continue
            y, x = x // pitch, x % pitch
            with self.k.when(x < self.p.ow):  # else it is a pixel of the padding
                self._finish_pixel(sums, top + y, x)

    def _finish_pixel(self, sums: Buffer, y: Int, x: Int) -> None:
        """Add the residual, apply the activation, store."""
        k, p, io = self.k, self.p, self.io
        sums = replace(sums, dtype=p.precision.sums, strides=(1,))
        dst, add = k.tensor("dst", io.dst), k.tensor("add", io.add) if p.add else None
        longest = longest_run(p) if io.dst.blocks == 1 else 1
        for start in range(0, self.cols, longest):
            run = range(start, min(start + longest, self.cols))
            totals = [self._total(sums, j) for j in run]
            adds = [self._at(add, io.add, j).load(0, 0, y, x, lanes=CHANNELS) if add else None
                    for j in run]  # fmt: skip
            value = finish_run(p, totals, adds, [self._channel(j) for j in run])
            kept = len(run) * CHANNELS
            if self.tail and run[-1] == self.cols - 1:
                kept += self.tail - CHANNELS
            self._at(dst, io.dst, start).store_first(value, kept, 0, 0, y, x)

    def _total(self, sums: Buffer, j: int) -> Vec:
        total = sums.load(j * CHANNELS, lanes=CHANNELS)
        if self.window.dtype is U8:  # which began with the bias
            return total
        bias = self.k.argument("bias", self.p.group_oc, CHANNELS, dtype=sums.dtype)
        return total + bias.load(self.group, self.first + j, lanes=CHANNELS)

    def _channel(self, j: int) -> Int:
        if not self.p.precision.integer:
            return 0
        return (self.first + j) * CHANNELS + self.group * self.p.group_oc

    def _at(self, tensor: Buffer, where: Placement, j: int) -> Buffer:
        tensor = at_channel(tensor.at(self.image), where, self.group, self.p.group_oc)
        return at_channel(tensor, where, self.first + j, CHANNELS)


def _union(taps: Sequence[Taps], every: int) -> tuple[Int, Int]:
    """From the first tap to the end of those of several tiles."""
    known = [each or (0, every) for each in taps]
    first, end = known[0]
    for other in known[1:]:
        first, end = least(first, other[0]), most(end, other[1])
    if isinstance(first, int) and isinstance(end, int) and first >= end:
        return 0, 1  # nothing but padding, and no loop without turns
    return first, end


def _over(k: Kernel, taps: tuple[Int, Int]) -> AbstractContextManager[Int]:
    first, end = taps
    return k.times(end) if isinstance(end, int) and first == 0 else k.loop(first, end)

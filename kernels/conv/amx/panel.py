"""A panel of output channels of one strip of the image: its products, and what follows them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Vec, at_channel
from fastrun.kernels.codegen.epilogue import finish_run, longest_run
from fastrun.kernels.codegen.matrix_tiles import ROW_BYTES
from fastrun.kernels.codegen.tiling import cut
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
        """All outputs of the strip that begins at row `top`."""
        p, io = self.p, self.io
        lines = Lines.of(p, rows, width_of(io.src))
        tiles = Sums(
            self.k, self.s.tiles, self.cols, lines.height, self.window.width, self.window.dtype
        )
        with tiles.configured():
            for some in cut(lines.total, self.s.tiles):
                with some.loop(self.k) as first:
                    self._block(tiles, lines, first, some.size, top)
        self._finish(lines, top, rows)

    def _block(self, tiles: Sums, lines: Lines, first: Int, count: int, top: Int) -> None:
        """The sums of `count` tiles of pixels from number `first` on."""
        k, p, window = self.k, self.p, self.window
        (sy, sx), (dy, dx) = p.stride, p.dilation
        src, pixel = self._source(top)
        pitch = width_of(self.io.src)
        pixels = list[Buffer]()
        for number in range(count):
            tile = first + number
            line, part = (tile // lines.tiles, tile % lines.tiles) if lines.count > 1 else (0, tile)
            start = part * lines.height
            if lines.overlap:
                most = lines.length - lines.height
                start = start.min(most) if isinstance(start, Index) else min(start, most)
            at = line * (sy * pitch) + start * sx
            pixels.append(src.strided(pixel).at(at).strided(1))
        step_bytes, whole = window.tile * window.terms * self.cols, window.weight_bytes
        weights = k.argument("weights", self.vectors * whole, whole, dtype=U8)
        weights = weights.at(self.group, self.first).strided(step_bytes)
        tiles.clear(count)
        kh, kw = window.kernel
        apart = window.width if window.in_place else self.copy.chunk
        with k.times(window.chunks) as chunk, k.times(kh) as ky, k.times(kw) as kx:
            offset = (ky * (dy * pitch) + kx * dx) * pixel + chunk * apart
            position = chunk * (kh * kw) + ky * kw + kx
            here = [x.at(offset) for x in pixels]
            tiles.multiply(
                here,
                sx * pixel,
                self.copy.term,
                weights.at(position).strided(1),
                PAIRS[self.s.terms],
            )
        tiles.store(count, self._sums().at(first * lines.height).strided(1), self._width)

    @property
    def _width(self) -> int:
        """Bytes from one pixel's sums to the next's."""
        return self.cols * ROW_BYTES

    def _sums(self) -> Buffer:
        return Buffer(self.k, "%local", (self._width,), U8)

    def _source(self, top: Int) -> tuple[Buffer, int]:
        """Bytes of the first pixel under the filter of output row `top`, and those of a pixel."""
        p, src, window = self.p, self.io.src, self.window
        above, before = src.halo[0] - p.padding[0], src.halo[1] - p.padding[1]
        y, copy = top * p.stride[0], self.copy
        if self.s.strips:
            start = self.room + before * ROW_BYTES
            return self.k.argument("local", 1, offset=start, dtype=U8), ROW_BYTES
        if not window.in_place:
            start, strides = (
                above * copy.row + before * ROW_BYTES,
                (copy.size, copy.group, copy.row),
            )
            whole = self.k.argument("shared", *strides, offset=start, dtype=U8)
            return whole.at(self.image, self.group, y), ROW_BYTES
        tensor = self.k.tensor("src", src, y=-p.padding[0], x=-p.padding[1])
        tensor = at_channel(tensor.at(self.image, 0, y), src, self.group, p.group_c)
        return replace(tensor, strides=(1,), dtype=U8), src.dtype.bytes(src.x_stride)

    def _finish(self, lines: Lines, top: Int, rows: int) -> None:
        """Add bias and residual, apply the activation, store."""
        k, p, io = self.k, self.p, self.io
        dst, add = k.tensor("dst", io.dst), k.tensor("add", io.add) if p.add else None
        pitch = width_of(io.src)
        edge = (lines.tiles - 1) * lines.height
        longest = longest_run(p) if io.dst.blocks == 1 else 1
        with k.loop(rows) as y, k.loop(p.ow) as x:
            place: Int = y * pitch + x if lines.joined else x
            if lines.overlap:
                place = _moved(k.index(place), edge, lines.overlap)
            if not lines.joined:
                place = y * (lines.tiles * lines.height) + place
            sums = replace(self._sums().at(place), dtype=p.precision.sums, strides=(1,))
            for start in range(0, self.cols, longest):
                run = range(start, min(start + longest, self.cols))
                pixel = (0, 0, top + y, x)
                totals = [self._total(sums, j) for j in run]
                adds = [self._at(add, io.add, j).load(*pixel, lanes=CHANNELS) if add else None
                        for j in run]  # fmt: skip
                value = finish_run(p, totals, adds, [self._channel(j) for j in run])
                kept = len(run) * CHANNELS
                if self.tail and run[-1] == self.cols - 1:
                    kept += self.tail - CHANNELS
                self._at(dst, io.dst, start).store_first(value, kept, *pixel)

    def _total(self, sums: Buffer, j: int) -> Vec:
        bias = self.k.argument("bias", self.p.group_oc, CHANNELS, dtype=sums.dtype)
        return sums.load(j * CHANNELS, lanes=CHANNELS) + bias.load(
            self.group, self.first + j, lanes=CHANNELS
        )

    def _channel(self, j: int) -> Int:
        if not self.p.precision.integer:
            return 0
        return (self.first + j) * CHANNELS + self.group * self.p.group_oc

    def _at(self, tensor: Buffer, where: Placement, j: int) -> Buffer:
        tensor = at_channel(tensor.at(self.image), where, self.group, self.p.group_oc)
        return at_channel(tensor, where, self.first + j, CHANNELS)


def _moved(place: Index, edge: int, by: int) -> Index:
    """The place of a pixel's sums: the last tile of a line has its own, which begin earlier."""
    k, moved = place.k, place + by
    last = place >= edge
    return Index(k, k.emit(f"select i1 {last.ssa}, i64 {moved.value}, i64 {place.value}"))

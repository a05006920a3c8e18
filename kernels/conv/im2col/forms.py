"""The two forms of im2col's product: vectors of pixels in NCHW, of output channels elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from fastrun.kernels.codegen.builder import Buffer, Int, Vec
from fastrun.kernels.codegen.micro_kernel import outer_product
from fastrun.kernels.codegen.packing import pack_panels
from fastrun.kernels.codegen.tiling import (
    Tiles,
    channel_lanes,
    channel_panels,
    check_groups,
    cover,
    cut,
    each,
    last_apart,
)
from fastrun.kernels.conv.im2col.product import Blocking, Chunk, Form
from fastrun.kernels.conv.im2col.unfold import pieces
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import READ_SLACK, Array
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.template import check


def pixel_lanes(p: ConvProblem, cpu: Cpu) -> int:
    """Lanes of vectors of pixels: no more than there are, and strided loads stay in the slack."""
    return min(cpu.lanes_for(p.oh * p.ow), READ_SLACK // p.stride[1])


class Planar(Form):
    """NCHW: a panel is [K][pixels], weights are broadcast."""

    def __init__(self, p: ConvProblem, s: Blocking, cpu: Cpu, io: Io) -> None:
        super().__init__(p, s, io, pixel_lanes(p, cpu))
        check(self.lanes >= 1, "the stride is wider than the read slack")
        pixels = p.oh * p.ow
        tiles = cut(-(-pixels // self.lanes), s.cols)
        self.tiles = last_apart(tiles) if pixels % self.lanes else tiles
        self.panels = cover(p.group_oc, s.rows)
        self.tile_pixels = self.tiles[0].size * self.lanes

    def pack_weights(self, w: Array) -> Array:
        return pack_panels(w, self.p.groups, 1, 1, self.panels)

    def shape(self, tile: Tiles, panel: Tiles) -> tuple[int, int]:
        return panel.size, tile.size

    def unfold(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> None:
        to = self._panel(chunk, tile, at, first) if self.s.fused else self._columns(at, first)

        def put(term: Int, j: int, value: Vec) -> None:
            to.store(value, term, j * self.lanes)

        self.window(chunk).vectors(at * self.lanes, tile.size, chunk.channels, put)

    def pack(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> None:
        to, matrix = self._panel(chunk, tile, at, first), self._columns(at, first)

        def term(t: Int) -> None:
            for j in range(tile.size):
                to.store(matrix.load(t, j * self.lanes, lanes=self.lanes), t, j * self.lanes)

        each(self.k, chunk.channels * self.taps, 1, term)

    def product(
        self, chunk: Chunk, panel: Tiles, channel: Int, tile: Tiles, at: Int, first: Int
    ) -> None:
        acc = self.k.tile(panel.size, tile.size, self.lanes)
        tail = self.p.oh * self.p.ow % self.lanes
        pixel = at * self.lanes

        def from_bias() -> None:
            for i, j in acc:
                acc[i, j] = self.bias.splat(0, channel + i, lanes=self.lanes)

        def from_partial_sums() -> None:
            for i, j in acc:
                partial = self.output(self.dst, self.io.dst, channel + i, pixel + j * self.lanes)
                acc[i, j] = partial.load(lanes=self.lanes)

        self.k.choose(chunk.first, from_bias, from_partial_sums)
        pixels = self._panel(chunk, tile, at, first)
        start = channel * self.p.depth + chunk.number * (self.s.kc * self.taps * panel.size)
        weights = self.weights.at(start + self.group * (self.p.group_oc * self.p.depth))
        weights = weights.strided(panel.size, 1)

        def step(t: Int) -> None:
            outer_product(
                acc,
                lambda i: weights.splat(t, i, lanes=self.lanes),
                lambda j: pixels.load(t, j * self.lanes, lanes=self.lanes),
            )

        each(self.k, chunk.channels * self.taps, self.s.unroll, step)
        last = tail if tail and tile.end == self.tiles[-1].end else self.lanes

        def place(i: int, j: int) -> tuple[Int, Int, int]:
            return channel + i, pixel + j * self.lanes, last if j == tile.size - 1 else self.lanes

        self.store(chunk, acc, place)

    def _panel(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> Buffer:
        floats = self.lanes * chunk.channels * self.taps
        return self.packed.at(self.within(at, first) * floats).strided(tile.size * self.lanes, 1)

    def _columns(self, at: Int, first: Int) -> Buffer:
        """The unfolded matrix, [K][pixels of the block]."""
        across = self.block_tiles * self.tile_pixels
        return self.matrix.at(self.within(at, first) * self.lanes).strided(across, 1)


class Channels(Form):
    """NHWC and NCHWc: a panel is [window][pixels][channels of the window], pixels are broadcast."""

    def __init__(self, p: ConvProblem, s: Blocking, cpu: Cpu, io: Io) -> None:
        super().__init__(p, s, io, channel_lanes(p.group_oc, io.dst.layout, cpu))
        check_groups(p, io)
        self.block = io.src.layout.blocked or s.kc
        check(s.kc % self.block == 0 or s.kc == p.group_c, "kc is not whole channel blocks")
        self.plain = not io.dst.layout.blocked
        self.tiles = cut(p.oh * p.ow, s.rows)
        self.panels = channel_panels(p.group_oc, self.lanes, s.cols, split_tail=self.plain)
        self.tile_pixels = self.tiles[0].size

    def pack_weights(self, w: Array) -> Array:
        return pack_panels(w, self.p.groups, self.block, self.lanes, self.panels)

    def shape(self, tile: Tiles, panel: Tiles) -> tuple[int, int]:
        return tile.size, panel.size

    def unfold(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> None:
        panel, matrix = self._panel(chunk, at, first), self._matrix(chunk, at, first)

        def put(term: Int, size: int, r: int, c: int, value: Vec) -> None:
            if self.s.fused:
                panel.store(value, term * tile.size + (r * size + c))
            else:
                matrix.store(value, r, term + c)

        window = self.window(chunk)
        window.rows(at, tile.size, chunk.channels, min(self.block, chunk.channels), put)

    def pack(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> None:
        panel, matrix = self._panel(chunk, at, first), self._matrix(chunk, at, first)

        def window(term: Int, size: int) -> None:
            for r in range(tile.size):
                for c, lanes in pieces(size, self.lanes):
                    value = matrix.load(r, term + c, lanes=lanes)
                    panel.store(value, term * tile.size + (r * size + c))

        self._windows(chunk, window)

    def product(
        self, chunk: Chunk, panel: Tiles, channel: Int, tile: Tiles, at: Int, first: Int
    ) -> None:
        acc = self.k.tile(tile.size, panel.size, self.lanes)
        masked = self.plain and panel.end == self.panels[-1].end
        tail = self.p.group_oc % self.lanes if masked else 0

        def from_bias() -> None:
            for i, j in acc:
                acc[i, j] = self.bias.load(0, (channel + j) * self.lanes, lanes=self.lanes)

        def from_partial_sums() -> None:
            for i, j in acc:
                partial = self.output(self.dst, self.io.dst, channel + j, at + i)
                acc[i, j] = partial.load(lanes=self.lanes)

        self.k.choose(chunk.first, from_bias, from_partial_sums)
        panel_floats = self.lanes * self.p.depth
        start = channel * panel_floats + self.group * (self.panels[-1].end * panel_floats)
        start += chunk.number * (self.s.kc * self.taps * panel.size * self.lanes)
        weights = self.weights.at(start).strided(panel.size * self.lanes, 1)
        pixels = self._panel(chunk, at, first)

        def window(term: Int, size: int) -> None:
            def step(c: Int) -> None:
                outer_product(
                    acc,
                    lambda i: pixels.splat(term * tile.size + i * size + c, lanes=self.lanes),
                    lambda j: weights.load(term + c, j * self.lanes, lanes=self.lanes),
                )

            each(self.k, size, min(self.s.unroll, size), step)

        self._windows(chunk, window)

        def place(i: int, j: int) -> tuple[Int, Int, int]:
            return channel + j, at + i, tail if tail and j == acc.cols - 1 else self.lanes

        self.store(chunk, acc, place)

    def _windows(self, chunk: Chunk, body: Callable[[Int, int], None]) -> None:
        """`body(term, size)` for every run of `size` channels under one tap of the filter."""
        block = min(self.block, chunk.channels)
        full, rest = divmod(chunk.channels, block)
        each(self.k, full * self.taps, 1, lambda w: body(w * block, block))
        if rest:
            start = full * block * self.taps
            each(self.k, self.taps, 1, lambda w: body(w * rest + start, rest))

    def _panel(self, chunk: Chunk, at: Int, first: Int) -> Buffer:
        return self.packed.at(self.within(at, first) * (chunk.channels * self.taps))

    def _matrix(self, chunk: Chunk, at: Int, first: Int) -> Buffer:
        """The unfolded matrix, [pixels of the block][K]."""
        terms = chunk.channels * self.taps
        return self.matrix.at(self.within(at, first) * terms).strided(terms, 1)

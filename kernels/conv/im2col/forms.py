"""The two forms of im2col's product: vectors of pixels in NCHW, of output channels elsewhere."""

from __future__ import annotations

from fastrun.kernels.codegen.builder import Buffer, Int, Vec
from fastrun.kernels.codegen.chunks import Chunk
from fastrun.kernels.codegen.dot import Dot, dot_of, dots, widened
from fastrun.kernels.codegen.micro_kernel import outer_product
from fastrun.kernels.codegen.packing import pack_panels
from fastrun.kernels.codegen.tiling import (
    Tiles,
    channel_lanes,
    channel_panels,
    check_groups,
    consecutive,
    cover,
    cut,
    last_apart,
)
from fastrun.kernels.conv.im2col.product import Cells, Product
from fastrun.kernels.conv.im2col.schedule import Schedule
from fastrun.kernels.conv.im2col.unfold import PixelVector, pieces
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import READ_SLACK, Array
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.template import check


def pixel_lanes(p: ConvProblem, cpu: Cpu) -> int:
    """Lanes of vectors of pixels: no more than pixels, and strided loads stay in the read slack."""
    return min(cpu.lanes_for(p.oh * p.ow), max(1, READ_SLACK // p.stride[1]))


def kinds(p: ConvProblem, cpu: Cpu) -> dict[str, Dot]:
    """The kinds of dot products by name, the best first."""
    found = [dot for dot in dots(p.precision, cpu) if dot.plain]
    if p.precision.integer and cpu.machine == "x86_64":
        # Better than widening them in the loop.
        found.insert(-1, widened(p.precision))
    return {dot.name: dot for dot in found}


class Planar(Product):
    """NCHW: a panel is [K][pixels], weights are broadcast."""

    def __init__(self, p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> None:
        super().__init__(p, s, io, pixel_lanes(p, cpu), dot_of(p.precision, s.dot, cpu))
        check(not p.types, f"there are no products of {p.types} in NCHW")
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
        k, p, (kh, kw) = self.k, self.p, self.p.kernel
        to = self._panel(chunk, tile, at, first) if self.s.fused else self._columns(at, first)
        src, pixel = self.source(chunk), at * self.lanes
        vectors = [
            PixelVector.of(k, p, src, pixel + j * self.lanes, self.lanes) for j in range(tile.size)
        ]
        with k.times(chunk.channels) as c, k.times(kh) as ky:
            for kx in range(kw):
                for j, vector in enumerate(vectors):
                    value = vector.load(0, c, ky * p.dilation[0], kx * p.dilation[1])
                    to.store(value, c * (kh * kw) + ky * kw + kx, j * self.lanes)

    def pack(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> None:
        to, matrix = self._panel(chunk, tile, at, first), self._columns(at, first)
        with self.k.times(chunk.channels * self.taps) as term:
            for j in range(0, tile.size * self.lanes, self.lanes):
                to.store(matrix.load(term, j, lanes=self.lanes), term, j)

    def multiply(
        self, chunk: Chunk, panel: Tiles, channel: Int, tile: Tiles, at: Int, first: Int
    ) -> None:
        acc = self.k.tile(panel.size, tile.size, self.lanes)
        pixel, kept = at * self.lanes, self.lanes
        tail = self.p.oh * self.p.ow % self.lanes if tile is self.tiles[-1] else 0
        cells: Cells = {(i, j): (channel + i, pixel + j * self.lanes, kept) for i, j in acc}
        if tail:
            cells |= {(i, j): (*cells[i, j][:2], tail) for i, j in acc if j == tile.size - 1}
        self.start(chunk, acc, cells)
        pixels = self._panel(chunk, tile, at, first)
        start = channel * self.p.depth + chunk.number * (self.s.kc * self.taps * panel.size)
        weights = self.weights.at(start + self.group * (self.p.group_oc * self.p.depth))
        weights = weights.strided(panel.size, 1)
        for steps in cut(chunk.channels * self.taps, self.s.unroll):
            with steps.unrolled(self.k) as terms:
                for t in terms:
                    outer_product(
                        acc,
                        (weights.splat(t, i, lanes=self.lanes) for i in range(acc.rows)),
                        (pixels.load(t, j * self.lanes, lanes=self.lanes) for j in range(acc.cols)),
                    )
        self.store(chunk, acc, cells)

    def bias_of(self, channel: Int) -> Vec:
        return self.bias.splat(0, channel, lanes=self.lanes)

    def _panel(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> Buffer:
        floats = self.lanes * chunk.channels * self.taps
        return self.packed.at(self.within(at, first) * floats).strided(tile.size * self.lanes, 1)

    def _columns(self, at: Int, first: Int) -> Buffer:
        """The unfolded matrix, [K][pixels of the block]."""
        across = self.block_tiles * self.tile_pixels
        return self.matrix.at(self.within(at, first) * self.lanes).strided(across, 1)


class Channels(Product):
    """NHWC and NCHWc: a panel is [window][pixels][channels of the window], pixels are broadcast.

    A window is the channels of one block under one tap of the filter.
    """

    def __init__(self, p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> None:
        known = kinds(p, cpu)
        check(s.dot in known, f"dot={s.dot}: for {p.types or 'f32'} there is {', '.join(known)}")
        lanes = channel_lanes(p.group_oc, io.dst.layout, cpu, p.precision)
        super().__init__(p, s, io, lanes, known[s.dot])
        check(s.fused or not p.types, f"panels of {p.types} are unfolded at once: fused=yes")
        check_groups(p, io)
        self.block = io.src.layout.blocked or s.kc
        check(s.kc % self.block == 0 or s.kc == p.group_c, "kc is not whole channel blocks")
        whole = self.block >= s.kc or self.block % self.dot.group == 0
        # A number behind the last channel would be anything, and times zero not zero.
        whole &= not self.dot.rounds or p.group_c % self.dot.group == s.kc % self.dot.group == 0
        check(whole, f"dot={s.dot} needs {self.dot.group} channels side by side")
        self.plain = not io.dst.layout.blocked
        self.tiles = cut(p.oh * p.ow, s.rows)
        self.panels = channel_panels(p.group_oc, self.lanes, s.cols, split_tail=self.plain)
        self.tile_pixels = self.tiles[0].size

    def pack_weights(self, w: Array) -> Array:
        return pack_panels(w, self.p.groups, self.block, self.lanes, self.panels, self.dot)

    def shape(self, tile: Tiles, panel: Tiles) -> tuple[int, int]:
        return tile.size, panel.size

    def unfold(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> None:
        k, p, (kh, kw) = self.k, self.p, self.p.kernel
        panel, matrix = self._panel(chunk, at, first), self._matrix(chunk, at, first)
        src, corners = self.source(chunk), list[Buffer]()
        for r in range(tile.size):
            y, x = (at + r) // p.ow, (at + r) % p.ow
            corners.append(src.at(0, 0, y * p.stride[0], x * p.stride[1]))
        dot, block = self.dot, min(self.block, chunk.channels)
        width = self.lanes * F32.bits // dot.types.src.bits
        for some in cut(chunk.channels, block):
            size = dot.groups(some.size)
            with k.times(some.count) as i, k.times(kh) as ky, k.times(kw) as kx:
                b = i + some.number
                term = b * (dot.groups(block) * kh * kw) + ky * (kw * size) + kx * size
                for r, corner in enumerate(corners):
                    tap = corner.at(0, b, ky * p.dilation[0], kx * p.dilation[1])
                    for c, lanes in pieces(some.size, width):
                        value = tap.load(0, 0, 0, 0, c, lanes=lanes).to(dot.operand)
                        if self.s.fused:
                            at_ = (term * tile.size + r * size) * dot.group + c
                            panel.store(value, at_)
                        else:
                            matrix.store(value, r, term + c)

    def pack(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> None:
        panel, matrix = self._panel(chunk, at, first), self._matrix(chunk, at, first)
        for windows in self._windows(chunk):
            with windows.loop(self.k) as term:
                for r in range(tile.size):
                    for c, lanes in pieces(windows.size, self.lanes):
                        value = matrix.load(r, term + c, lanes=lanes)
                        panel.store(value, term * tile.size + (r * windows.size + c))

    def multiply(
        self, chunk: Chunk, panel: Tiles, channel: Int, tile: Tiles, at: Int, first: Int
    ) -> None:
        dot, across = self.dot, self.lanes * self.dot.group
        acc = self.k.tile(tile.size, panel.size, self.lanes, self.p.precision.sums)
        masked = self.plain and panel is self.panels[-1]
        tail = self.p.group_oc % self.lanes if masked else 0
        cells: Cells = {(i, j): (channel + j, at + i, self.lanes) for i, j in acc}
        if tail:
            cells |= {(i, j): (*cells[i, j][:2], tail) for i, j in acc if j == acc.cols - 1}
        self.start(chunk, acc, cells)
        panel_size = across * self._steps(self.p.group_c)
        start = channel * panel_size + self.group * (self.panels[-1].end * panel_size)
        start += chunk.number * (self._steps(self.s.kc) * panel.size * across)
        weights = self.weights.at(start).strided(panel.size * across, 1)
        panel_of_pixels = self._panel(chunk, at, first)
        for windows in self._windows(chunk):
            size = windows.size
            with windows.loop(self.k) as term:
                for steps in cut(size, min(self.s.unroll, size)):
                    with steps.unrolled(self.k) as channels:
                        for c in channels:
                            # See `direct`: pixels of several steps would run out of registers.
                            pixels = panel_of_pixels
                            if dot.group > 1:
                                pixels = pixels.after(acc[0, 0])
                            outer_product(
                                acc,
                                (
                                    dot.pixel(
                                        pixels,
                                        (term * tile.size + i * size + c) * dot.group,
                                        lanes=self.lanes,
                                    )
                                    for i in range(acc.rows)
                                ),
                                (
                                    dot.weights(weights, term + c, j * across, lanes=self.lanes)
                                    for j in range(acc.cols)
                                ),
                                dot.add,
                            )
        self.store(chunk, acc, cells)

    def bias_of(self, channel: Int) -> Vec:
        return self.bias.load(0, channel * self.lanes, lanes=self.lanes)

    def _windows(self, chunk: Chunk) -> list[Tiles]:
        """The terms of K, a window after another."""
        block, groups = min(self.block, chunk.channels), self.dot.groups
        full, rest = divmod(chunk.channels, block)
        return consecutive((groups(block), full * self.taps), (groups(rest), self.taps))

    def _steps(self, channels: int) -> int:
        """Steps of K of so many channels under all taps."""
        full, rest = divmod(channels, min(self.block, channels))
        return (
            full * self.dot.groups(min(self.block, channels)) + self.dot.groups(rest)
        ) * self.taps

    def _panel(self, chunk: Chunk, at: Int, first: Int) -> Buffer:
        terms = self._steps(chunk.channels) * self.dot.group
        return self.packed.at(self.within(at, first) * terms)

    def _matrix(self, chunk: Chunk, at: Int, first: Int) -> Buffer:
        """The unfolded matrix, [pixels of the block][K]."""
        terms = self._steps(chunk.channels) * self.dot.group
        return self.matrix.at(self.within(at, first) * terms).strided(terms, 1)

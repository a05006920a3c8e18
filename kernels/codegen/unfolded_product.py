"""The product of an unfolded block of pixels by the weights, in the two forms im2col comes in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from kernels.codegen.builder import Buffer, Condition, Int, Kernel, Tile, Vec, at_channel
from kernels.codegen.epilogue import finish
from kernels.codegen.reduction import each, pack_panels
from kernels.codegen.tile_gemm import (
    Run,
    channel_panels,
    check_groups,
    cover,
    cut,
    lanes_for,
    last_apart,
    outer_product,
    registers,
)
from kernels.codegen.unfold import Unfold, pieces
from kernels.core.cpu import Cpu
from kernels.core.layout import READ_SLACK, Array, Io, Placement
from kernels.core.problem import ConvProblem
from kernels.core.template import check


class Blocking(Protocol):
    """The numbers of im2col's schedule."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def unroll(self) -> int: ...
    @property
    def block(self) -> int: ...
    @property
    def kc(self) -> int: ...
    @property
    def fused(self) -> bool: ...


@dataclass(frozen=True)
class Chunk:
    """A block of K: `channels` input channels, the `number`-th such block of the group."""

    number: Int
    channels: int
    first: Condition | bool
    last: Condition | bool


def chunks(k: Kernel, channels: int, kc: int) -> Iterator[Chunk]:
    """All blocks of K: whole ones share their code, and what is left has its own."""
    whole, rest = divmod(channels, kc)
    if whole == 1:
        yield Chunk(0, kc, True, not rest)
    else:
        with k.loop(whole) as i:
            yield Chunk(i, kc, i < 1, False if rest else i >= whole - 1)
    if rest:
        yield Chunk(whole, rest, False, True)


def pixel_lanes(p: ConvProblem, cpu: Cpu) -> int:
    """Lanes of vectors of pixels: no more than there are, and strided loads stay in the slack."""
    return min(cpu.lanes, 1 << (p.oh * p.ow - 1).bit_length(), READ_SLACK // p.stride[1])


class Form:
    """What both forms of the product share: the operands of one image and group."""

    tiles: list[Run]
    panels: list[Run]

    def __init__(self, p: ConvProblem, s: Blocking, io: Io, lanes: int) -> None:
        self.p, self.s, self.io, self.lanes = p, s, io, lanes
        self.taps = p.kernel[0] * p.kernel[1]

    def enter(self, k: Kernel, image: Int, group: Int, matrix_floats: int) -> None:
        """Point at the operands of one image and group."""
        p, io = self.p, self.io
        self.k, self.group = k, group
        src = k.tensor("src", io.src, y=-p.padding[0], x=-p.padding[1]).at(image)
        self.src = at_channel(src, io.src, group, p.group_c)
        self.dst = at_channel(k.tensor("dst", io.dst).at(image), io.dst, group, p.group_oc)
        self.add = at_channel(k.tensor("add", io.add).at(image), io.add, group, p.group_oc)
        self.bias = k.argument("bias", p.group_oc, 1).at(group)
        self.weights = k.argument("weights", 1)
        self.packed = k.argument("local", 1)
        self.matrix = k.argument("local", 1, offset=matrix_floats)

    def window(self, chunk: Chunk) -> Unfold:
        """The unfolding of a block of K."""
        src = at_channel(self.src, self.io.src, chunk.number, self.s.kc)
        return Unfold(self.k, self.p, src, self.lanes)

    def within(self, at: Int, first: Int) -> Int:
        """Where a tile lies in its task's block, from where it lies in the image."""
        return at + first * -self.tiles[0].size

    def store(
        self, chunk: Chunk, acc: Tile, place: Callable[[int, int], tuple[Int, Int, int]]
    ) -> None:
        """Partial sums as they are, whole ones through the epilogue.

        `place` gives the channel, the pixel and the lanes to keep of a cell.
        """

        def partial_sums() -> None:
            for i, j in acc:
                channel, pixel, kept = place(i, j)
                self.output(self.dst, self.io.dst, channel, pixel).store_first(acc[i, j], kept)

        def results() -> None:
            for i, j in acc:
                channel, pixel, kept = place(i, j)
                add = self.output(self.add, self.io.add, channel, pixel) if self.p.add else None
                value = finish(self.p, acc[i, j], add.load(lanes=self.lanes) if add else None)
                self.output(self.dst, self.io.dst, channel, pixel).store_first(value, kept)

        self.k.choose(chunk.last, results, partial_sums)

    def output(self, tensor: Buffer, where: Placement, channel: Int, pixel: Int) -> Buffer:
        """The output at a pixel of oh * ow and a channel, counted as the form's panels do."""
        unit = 1 if where.layout.name == "NCHW" else self.lanes
        return at_channel(tensor, where, channel, unit).at(0, 0, 0, pixel)


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

    def registers(self, tile: Run, panel: Run) -> int:
        return registers(panel.size, tile.size)

    def unfold(self, chunk: Chunk, tile: Run, at: Int, first: Int) -> None:
        to = self._panel(chunk, tile, at, first) if self.s.fused else self._columns(at, first)

        def put(term: Int, j: int, value: Vec) -> None:
            to.store(value, term, j * self.lanes)

        self.window(chunk).vectors(at * self.lanes, tile.size, chunk.channels, put)

    def pack(self, chunk: Chunk, tile: Run, at: Int, first: Int) -> None:
        to, matrix = self._panel(chunk, tile, at, first), self._columns(at, first)

        def term(t: Int) -> None:
            for j in range(tile.size):
                to.store(matrix.load(t, j * self.lanes, lanes=self.lanes), t, j * self.lanes)

        each(self.k, chunk.channels * self.taps, 1, term)

    def product(self, chunk: Chunk, panel: Run, oc: Int, tile: Run, at: Int, first: Int) -> None:
        acc = self.k.tile(panel.size, tile.size, self.lanes)
        tail = self.p.oh * self.p.ow % self.lanes
        pixel = at * self.lanes

        def from_bias() -> None:
            for i, j in acc:
                acc[i, j] = self.bias.splat(0, oc + i, lanes=self.lanes)

        def from_partial_sums() -> None:
            for i, j in acc:
                partial = self.output(self.dst, self.io.dst, oc + i, pixel + j * self.lanes)
                acc[i, j] = partial.load(lanes=self.lanes)

        self.k.choose(chunk.first, from_bias, from_partial_sums)
        pixels = self._panel(chunk, tile, at, first)
        start = oc * self.p.depth + chunk.number * (self.s.kc * self.taps * panel.size)
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
            return oc + i, pixel + j * self.lanes, last if j == tile.size - 1 else self.lanes

        self.store(chunk, acc, place)

    def _panel(self, chunk: Chunk, tile: Run, at: Int, first: Int) -> Buffer:
        floats = self.lanes * chunk.channels * self.taps
        return self.packed.at(self.within(at, first) * floats).strided(tile.size * self.lanes, 1)

    def _columns(self, at: Int, first: Int) -> Buffer:
        """The unfolded matrix, [K][pixels of the block]."""
        across = max(1, self.s.block // self.tile_pixels) * self.tile_pixels
        return self.matrix.at(self.within(at, first) * self.lanes).strided(across, 1)


class Channels(Form):
    """NHWC and NCHWc: a panel is [window][pixels][channels of the window], pixels are broadcast."""

    def __init__(self, p: ConvProblem, s: Blocking, cpu: Cpu, io: Io) -> None:
        super().__init__(p, s, io, lanes_for(p, io.dst.layout, cpu))
        check_groups(p, io)
        self.block = io.src.layout.blocked or s.kc
        check(s.kc % self.block == 0 or s.kc == p.group_c, "kc is not whole channel blocks")
        self.plain = not io.dst.layout.blocked
        self.tiles = cut(p.oh * p.ow, s.rows)
        self.panels = channel_panels(p.group_oc, self.lanes, s.cols, split_tail=self.plain)
        self.tile_pixels = self.tiles[0].size

    def pack_weights(self, w: Array) -> Array:
        return pack_panels(w, self.p.groups, self.block, self.lanes, self.panels)

    def registers(self, tile: Run, panel: Run) -> int:
        return registers(tile.size, panel.size)

    def unfold(self, chunk: Chunk, tile: Run, at: Int, first: Int) -> None:
        panel, matrix = self._panel(chunk, at, first), self._matrix(chunk, at, first)

        def put(term: Int, size: int, r: int, c: int, value: Vec) -> None:
            if self.s.fused:
                panel.store(value, term * tile.size + (r * size + c))
            else:
                matrix.store(value, r, term + c)

        window = self.window(chunk)
        window.rows(at, tile.size, chunk.channels, min(self.block, chunk.channels), put)

    def pack(self, chunk: Chunk, tile: Run, at: Int, first: Int) -> None:
        panel, matrix = self._panel(chunk, at, first), self._matrix(chunk, at, first)

        def window(term: Int, size: int) -> None:
            for r in range(tile.size):
                for c, lanes in pieces(size, self.lanes):
                    value = matrix.load(r, term + c, lanes=lanes)
                    panel.store(value, term * tile.size + (r * size + c))

        self._windows(chunk, window)

    def product(
        self, chunk: Chunk, panel: Run, vector: Int, tile: Run, at: Int, first: Int
    ) -> None:
        acc = self.k.tile(tile.size, panel.size, self.lanes)
        masked = self.plain and panel.end == self.panels[-1].end
        tail = self.p.group_oc % self.lanes if masked else 0

        def from_bias() -> None:
            for i, j in acc:
                acc[i, j] = self.bias.load(0, (vector + j) * self.lanes, lanes=self.lanes)

        def from_partial_sums() -> None:
            for i, j in acc:
                partial = self.output(self.dst, self.io.dst, vector + j, at + i)
                acc[i, j] = partial.load(lanes=self.lanes)

        self.k.choose(chunk.first, from_bias, from_partial_sums)
        panel_floats = self.lanes * self.p.depth
        start = vector * panel_floats + self.group * (self.panels[-1].end * panel_floats)
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
            return vector + j, at + i, tail if tail and j == acc.cols - 1 else self.lanes

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

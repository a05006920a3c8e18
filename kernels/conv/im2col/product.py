"""The product of an unfolded block of pixels by the weights: what its two forms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import product

from fastrun.kernels.codegen.builder import (
    Buffer,
    Int,
    Kernel,
    Tile,
    Vec,
    at_channel,
    outcomes,
)
from fastrun.kernels.codegen.chunks import Chunk
from fastrun.kernels.codegen.dot import Dot
from fastrun.kernels.codegen.epilogue import finish, finish_run, longest_run
from fastrun.kernels.codegen.half import unscale, weights_at
from fastrun.kernels.codegen.tiling import Tiles, tile_count
from fastrun.kernels.conv.im2col.schedule import Schedule
from fastrun.kernels.core.cpu import whole_lines
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Array, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io

# Of each accumulator the channel and the pixel where its vector begins, and the lanes to store.
Cells = dict[tuple[int, int], tuple[Int, Int, int]]


class Product(ABC):
    """What both forms of the product share: the operands of one image and group.

    `tiles` cut the pixels and `panels` the output channels into register tiles; a tile of pixels
    has at most `tile_pixels`. `at` and `channel` say where a tile and a panel begin: in pixels and
    channels where these are rows of the register tile, else in vectors. A task's tiles begin with
    the tile number `first`.
    """

    tiles: list[Tiles]
    panels: list[Tiles]
    tile_pixels: int
    first_tile: Int  # of the task

    def __init__(self, p: ConvProblem, s: Schedule, io: Io, lanes: int, dot: Dot) -> None:
        self.p, self.s, self.io, self.lanes, self.dot = p, s, io, lanes, dot
        self.taps = p.kernel[0] * p.kernel[1]

    @property
    def block_tiles(self) -> int:
        """Tiles of pixels that are unfolded together."""
        return min(tile_count(self.tiles), max(1, self.s.block // self.tile_pixels))

    @property
    def matrix_size(self) -> int:
        """Elements of the unfolded matrix of a task: a block of pixels and of K."""
        terms = self.dot.groups(self.s.kc) * self.dot.group
        return self.block_tiles * self.tile_pixels * terms * self.taps

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the unfolded matrix, in whole cache lines if partial sums follow it."""
        size = self.dot.operand.bytes(self.matrix_size)
        return F32.bytes(whole_lines(-(-size // F32.bytes()))) if self.partial_width else size

    @property
    def partial_width(self) -> int:
        """Partial sums of a pixel that lie in memory: an output of bytes has no room for them."""
        split = self.s.kc < self.p.group_c and self.p.precision.integer
        return self.panels[-1].end * self.lanes if split else 0

    @property
    def local_bytes(self) -> int:
        """Bytes of memory for each thread."""
        partial = self.block_tiles * self.tile_pixels * self.partial_width
        buffers = 1 if self.s.fused else 2
        return buffers * self.matrix_bytes + F32.bytes(partial)

    @abstractmethod
    def pack_weights(self, w: Array) -> Array:
        """The weights (oc, c / groups, kh, kw) as the product reads them, flat."""

    @abstractmethod
    def shape(self, tile: Tiles, panel: Tiles) -> tuple[int, int]:
        """Rows and columns of the register tile that multiplies a tile by a panel."""

    @abstractmethod
    def unfold(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> None:
        """Copy the windows of a tile's pixels into its packed panel, or else into the matrix."""

    @abstractmethod
    def pack(self, chunk: Chunk, tile: Tiles, at: Int, first: Int) -> None:
        """Copy a tile's part of the unfolded matrix into its packed panel."""

    @abstractmethod
    def multiply(
        self, chunk: Chunk, panel: Tiles, channel: Int, tile: Tiles, at: Int, first: Int
    ) -> None:
        """Multiply a tile's packed panel by the weights of a panel of output channels."""

    @abstractmethod
    def bias_of(self, channel: Int) -> Vec:
        """The bias of a vector that begins at `channel`."""

    def enter(self, k: Kernel, image: Int, group: Int) -> None:
        """Point at the operands of one image and group."""
        p, io = self.p, self.io
        self.k, self.group = k, group
        src = k.tensor("src", io.src, y=-p.padding[0], x=-p.padding[1]).at(image)
        self.src = at_channel(src, io.src, group, p.group_c)
        self.dst = at_channel(k.tensor("dst", io.dst).at(image), io.dst, group, p.group_oc)
        self.add = at_channel(k.tensor("add", io.add).at(image), io.add, group, p.group_oc)
        unfolded, width = self.dot.operand, self.panels[-1].end * self.lanes
        self.bias = k.argument("bias", p.group_oc, 1, dtype=p.precision.sums).at(group)
        self.weights, scales = weights_at(k, self.dot.types.weights, p.groups * width, 1)
        self.scales = scales.strided(width, self.lanes).at(group) if scales else None
        self.packed = k.argument("local", 1, dtype=unfolded)
        self.matrix = k.argument("local", 1, offset=self.matrix_size, dtype=unfolded)

    def source(self, chunk: Chunk) -> Buffer:
        """The input from the first channel of a block of K on."""
        return at_channel(self.src, self.io.src, chunk.number, self.s.kc)

    def within(self, at: Int, first: Int) -> Int:
        """Where a tile lies in its task's block, from where it lies in the image."""
        return at + first * -self.tiles[0].size

    def start(self, chunk: Chunk, acc: Tile, cells: Cells) -> None:
        """Begin with the bias, or with the partial sums of the blocks of K before."""
        for is_first in outcomes(chunk.first):
            with self.k.when(chunk.first, is_first):
                for cell, (channel, pixel, _) in cells.items():
                    if is_first and self.scales:
                        acc[cell] = self.k.const(0.0, self.lanes)
                    elif is_first:
                        acc[cell] = self.bias_of(channel)
                    else:
                        acc[cell] = self._partial(channel, pixel).load(lanes=self.lanes)

    def store(self, chunk: Chunk, acc: Tile, cells: Cells) -> None:
        """Store partial sums, or after the last block of K the results of the epilogue."""
        for is_last in outcomes(chunk.last):
            with self.k.when(chunk.last, is_last):
                if is_last and self.p.precision.integer:
                    self._finish_integers(acc, cells)
                    continue
                for cell, (channel, pixel, kept) in cells.items():
                    if is_last and self.p.add:
                        add = self._output(self.add, self.io.add, channel, pixel)
                        total = self._total(acc[cell], channel)
                        value = finish(self.p, total, add.load(lanes=self.lanes))
                    elif is_last:
                        value = finish(self.p, self._total(acc[cell], channel), None)
                    target = self._output(self.dst, self.io.dst, channel, pixel)
                    if not is_last and self.partial_width:
                        self._partial(channel, pixel).store(acc[cell])
                    else:
                        target.store_first(value if is_last else acc[cell], kept)

    def _total(self, total: Vec, channel: Int) -> Vec:
        """A finished sum, without the power of two that 16-bit weights are scaled by."""
        if not self.scales:
            return total
        scale = self.scales.load(0, channel, lanes=self.lanes)
        return unscale(total, scale, self.bias_of(channel))

    def _finish_integers(self, acc: Tile, cells: Cells) -> None:
        """Store results, several vectors of channels of a pixel together."""
        p, lanes = self.p, self.lanes
        longest = longest_run(p) if self.io.dst.blocks == 1 else 1
        for i, first in product(range(acc.rows), range(0, acc.cols, longest)):
            run = [(i, j) for j in range(first, min(first + longest, acc.cols))]
            places = [cells[cell] for cell in run]
            start, pixel, _ = places[0]
            adds: list[Vec | None] = [None] * len(run)
            if p.add:
                add = self._output(self.add, self.io.add, start, pixel)
                adds = [add.strided(1).load(n * lanes, lanes=lanes) for n in range(len(run))]
            channels = [self.group * p.group_oc + channel * lanes for channel, _, _ in places]
            value = finish_run(p, [acc[cell] for cell in run], adds, channels)
            kept = sum(kept for _, _, kept in places)
            self._output(self.dst, self.io.dst, start, pixel).store_first(value, kept)

    def _partial(self, channel: Int, pixel: Int) -> Buffer:
        """Where the partial sums of a vector lie: in the output, or in memory of their own."""
        if not self.partial_width:
            return self._output(self.dst, self.io.dst, channel, pixel)
        sums = self.p.precision.sums
        start = self.matrix_bytes // sums.bytes()
        of = self.k.argument("local", self.partial_width, self.lanes, offset=start, dtype=sums)
        return of.at(self.within(pixel, self.first_tile), channel)

    def _output(self, tensor: Buffer, where: Placement, channel: Int, pixel: Int) -> Buffer:
        """The output at a pixel of oh * ow and a channel, counted as the form's panels do."""
        unit = 1 if where.layout.name == "NCHW" else self.lanes
        return at_channel(tensor, where, channel, unit).at(0, 0, 0, pixel)

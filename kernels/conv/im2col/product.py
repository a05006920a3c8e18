"""The product of an unfolded block of pixels by the weights: what its two forms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import (
    Buffer,
    Condition,
    Int,
    Kernel,
    Tile,
    Vec,
    at_channel,
    outcomes,
)
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.tiling import Tiles, tile_count
from fastrun.kernels.conv.im2col.schedule import Schedule
from fastrun.kernels.core.layout import Array, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io

# Of each accumulator the channel and the pixel where its vector begins, and the lanes to store.
Cells = dict[tuple[int, int], tuple[Int, Int, int]]


@dataclass(frozen=True)
class Chunk:
    """A block of K: `channels` input channels, the `number`-th such block of the group."""

    number: Int
    channels: int
    first: Condition | bool
    last: Condition | bool


@contextmanager
def chunk_loop(k: Kernel, blocks: Tiles) -> Iterator[Chunk]:
    """A loop over blocks of K of one size."""
    with k.times(blocks.count) as i:
        first = i < 1 if blocks.number == 0 else False
        last = i >= blocks.count - 1 if blocks.number + blocks.count == blocks.total else False
        yield Chunk(i + blocks.number, blocks.size, first, last)


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

    def __init__(self, p: ConvProblem, s: Schedule, io: Io, lanes: int) -> None:
        self.p, self.s, self.io, self.lanes = p, s, io, lanes
        self.taps = p.kernel[0] * p.kernel[1]

    @property
    def block_tiles(self) -> int:
        """Tiles of pixels that are unfolded together."""
        return min(tile_count(self.tiles), max(1, self.s.block // self.tile_pixels))

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
                    if is_first:
                        acc[cell] = self.bias_of(channel)
                    else:
                        partial = self._output(self.dst, self.io.dst, channel, pixel)
                        acc[cell] = partial.load(lanes=self.lanes)

    def store(self, chunk: Chunk, acc: Tile, cells: Cells) -> None:
        """Store partial sums, or after the last block of K the results of the epilogue."""
        for is_last in outcomes(chunk.last):
            with self.k.when(chunk.last, is_last):
                for cell, (channel, pixel, kept) in cells.items():
                    if is_last and self.p.add:
                        add = self._output(self.add, self.io.add, channel, pixel)
                        value = finish(self.p, acc[cell], add.load(lanes=self.lanes))
                    elif is_last:
                        value = finish(self.p, acc[cell], None)
                    target = self._output(self.dst, self.io.dst, channel, pixel)
                    target.store_first(value if is_last else acc[cell], kept)

    def _output(self, tensor: Buffer, where: Placement, channel: Int, pixel: Int) -> Buffer:
        """The output at a pixel of oh * ow and a channel, counted as the form's panels do."""
        unit = 1 if where.layout.name == "NCHW" else self.lanes
        return at_channel(tensor, where, channel, unit).at(0, 0, 0, pixel)

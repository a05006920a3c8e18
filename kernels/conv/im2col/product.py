"""The product of an unfolded block of pixels by the weights: what its two forms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from fastrun.kernels.codegen.builder import Buffer, Condition, Int, Kernel, Tile, at_channel
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.tiling import Tiles, tile_count
from fastrun.kernels.conv.im2col.unfold import Unfold
from fastrun.kernels.core.layout import Array, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io


class Blocking(Protocol):
    """The numbers of im2col's schedule."""

    @property
    def rows(self) -> int:
        """Rows of a register tile."""

    @property
    def cols(self) -> int:
        """Vectors in a row of a register tile."""

    @property
    def unroll(self) -> int:
        """Steps of K in the loop body."""

    @property
    def block(self) -> int:
        """Output pixels unfolded at a time."""

    @property
    def kc(self) -> int:
        """Input channels unfolded at a time."""

    @property
    def fused(self) -> bool:
        """Whether pixels are unfolded straight into packed panels."""


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


class Form(ABC):
    """What both forms of the product share: the operands of one image and group.

    `tiles` cut the pixels and `panels` the output channels into register tiles; a tile of pixels
    has at most `tile_pixels`. A tile or panel lies `at` a pixel or channel, in units of the form's,
    and its task's tiles begin with the tile number `first`.
    """

    tiles: list[Tiles]
    panels: list[Tiles]
    tile_pixels: int

    def __init__(self, p: ConvProblem, s: Blocking, io: Io, lanes: int) -> None:
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
    def product(
        self, chunk: Chunk, panel: Tiles, channel: Int, tile: Tiles, at: Int, first: Int
    ) -> None:
        """Multiply a tile's packed panel by the weights of a panel of output channels."""

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

"""A block of sums in tile registers: several tiles of pixels by several tiles of channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fastrun.kernels.codegen import matrix_tiles
from fastrun.kernels.codegen.builder import Buffer, Kernel
from fastrun.kernels.codegen.dot import has
from fastrun.kernels.codegen.matrix_tiles import BYTES, HALVES, NEEDS, REGISTERS, ROW_BYTES
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import U8, DType

CHANNELS = 16  # output channels of a tile of sums

WORD = 4  # bytes of terms that lie side by side in a tile of weights


def product(dtype: DType) -> str:
    """The product of tiles of pixels of this type: u8 by s8, or bf16 by bf16."""
    return BYTES if dtype is U8 else HALVES


def multiplies(cpu: Cpu, dtype: DType) -> bool:
    """Whether the processor has it."""
    return has(cpu, "amx-tile") and has(cpu, NEEDS[product(dtype)])


def fits(rows: int, cols: int, terms: int) -> bool:
    """Whether there are enough registers for so many tiles of pixels and of channels.

    Tiles of weights may share registers, unless several products of a step read them.
    """
    return rows * cols + rows + (cols if terms > 1 else 1) <= REGISTERS


def tile_bytes(width: int) -> int:
    """Bytes of a tile of weights for rows of pixels of `width` bytes."""
    return width // WORD * ROW_BYTES


@dataclass(frozen=True)
class Sums:
    """`rows` tiles of pixels by `cols` tiles of channels, and a tile of sums for each pair.

    Tiles of pixels and of sums have `height` rows, and rows of pixels `width` bytes.
    """

    k: Kernel
    rows: int
    cols: int
    height: int
    width: int
    dtype: DType

    @contextmanager
    def configured(self) -> Iterator[None]:
        """Code in which registers have these sizes. They are given back behind it."""
        sizes = [(self.height, ROW_BYTES)] * (self.rows * self.cols)
        sizes += [(self.height, self.width)] * self.rows
        sizes += [(self.width // WORD, ROW_BYTES)] * self._rights
        matrix_tiles.configure(self.k, sizes)
        yield
        matrix_tiles.release(self.k)

    def clear(self, rows: int, bias: Buffer) -> None:
        """Begin the sums of the first `rows` tiles of pixels: of bytes with the bias, else with 0.

        So sums of floats do not round what is less than the bias.
        """
        for i in range(rows):
            for j in range(self.cols):
                if self.dtype is U8:
                    matrix_tiles.load(self.k, self._sum(i, j), bias.address(j), 0)
                else:
                    matrix_tiles.zero(self.k, self._sum(i, j))

    def load(self, rows: int, sums: Buffer, pitch: int) -> None:
        """Go on with the sums that `store` left."""
        for i in range(rows):
            for j in range(self.cols):
                matrix_tiles.load(self.k, self._sum(i, j), self._place(sums, pitch, i, j), pitch)

    def store(self, rows: int, sums: Buffer, pitch: int) -> None:
        """Leave sums in memory, in bytes; those of a pixel lie `pitch` from the next one's."""
        for i in range(rows):
            for j in range(self.cols):
                matrix_tiles.store(self.k, self._sum(i, j), self._place(sums, pitch, i, j), pitch)

    def _place(self, sums: Buffer, pitch: int, i: int, j: int) -> str:
        return sums.address(i * self.height * pitch + j * ROW_BYTES)

    def multiply(
        self,
        pixels: Sequence[Buffer],
        pitch: int,
        apart: int,
        weights: Buffer,
        pairs: Sequence[tuple[int, int]],
        stream: bool,
    ) -> None:
        """Add the products of one step of K.

        The rows of each tile of `pixels` lie `pitch` bytes apart. Operands consist of several
        tiles, as sums of numbers: those of `pairs` are multiplied. The next tile of pixels lies
        `apart` bytes behind one, that of weights just behind it. What two neighbouring pairs have
        in common is read once. Pixels that are not read again soon may `stream` through the cache.

        Products with the same weights follow one another, since other weights take as long to
        reach the multipliers as a product of 16 rows. The next ones begin with the last pixels.
        """
        k, size, rows = self.k, tile_bytes(self.width), range(len(pixels))
        before: tuple[int, int] = (-1, -1)
        for left, right in pairs:
            for j in range(self.cols):
                for i in reversed(rows) if j % 2 else rows:
                    if j == 0 and left != before[0]:
                        place = pixels[i].address(left * apart)
                        matrix_tiles.load(k, self._left(i), place, pitch, stream)
                    if i == (rows[-1] if j % 2 else 0) and right != before[1]:
                        place = weights.address((right * self.cols + j) * size)
                        matrix_tiles.load(k, self._right(j), place, ROW_BYTES)
                    matrix_tiles.multiply(
                        k, product(self.dtype), self._sum(i, j), self._left(i), self._right(j)
                    )
            before = left, right

    def _sum(self, i: int, j: int) -> int:
        return i * self.cols + j

    def _left(self, i: int) -> int:
        return self.rows * self.cols + i

    def _right(self, j: int) -> int:
        return self.rows * (self.cols + 1) + j % self._rights

    @property
    def _rights(self) -> int:
        return min(self.cols, REGISTERS - self.rows * (self.cols + 1))

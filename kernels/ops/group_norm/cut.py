"""How the planes of a tensor are cut into pieces, and where what a piece found is kept."""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Buffer, Kernel
from fastrun.kernels.codegen.tiling import (
    Tiles,
    consecutive,
    cover,
    last_apart,
    tile_count,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Placement

# Vectors of channels that a task takes together, and bytes of a piece.
TOGETHER, PIECE = 4, 1 << 15

# Lanes of the vectors of channels while what pieces found is joined, where vectors are of pixels.
JOINED = 8


@dataclass(frozen=True)
class Cut:
    """`lines` of `pieces` of pixels, and `units` of vectors of channels.

    In NCHW, where `planes` is true, vectors are of pixels, and a unit is a channel.
    """

    src: Placement
    dst: Placement
    planes: bool
    lanes: int
    lines: int
    pieces: list[Tiles]
    units: list[Tiles]

    @classmethod
    def of(cls, cpu: Cpu, src: Placement, dst: Placement) -> Cut:
        """The cut of a tensor that is read from `src` and written to `dst`."""
        planes = src.layout.name == "NCHW"
        lines, pixels = (1, src.h * src.w) if src.dense and dst.dense else (src.h, src.w)
        if planes:
            lanes, units, bytes_of = cpu.lanes_for(pixels), consecutive((1, src.c)), F32.bytes()
        else:
            lanes = min(cpu.lanes, src.layout.blocked or cpu.lanes_for(src.c))
            units = last_apart(cover(-(-src.c // lanes), TOGETHER))
            bytes_of = F32.bytes(units[0].size * lanes)
        return cls(src, dst, planes, lanes, lines, cover(pixels, PIECE // bytes_of), units)

    @property
    def pixels(self) -> int:
        """Pixels of a plane."""
        return self.src.h * self.src.w

    @property
    def per_line(self) -> int:
        """Pieces of a line."""
        return tile_count(self.pieces)

    @property
    def per_pixel(self) -> int:
        """Units of a pixel."""
        return tile_count(self.units)

    @property
    def per_plane(self) -> int:
        """Pieces of a plane."""
        return self.per_line * self.lines

    @property
    def tasks(self) -> int:
        """Pieces of all units and images."""
        return self.src.n * self.per_plane * self.per_pixel

    @property
    def joined(self) -> int:
        """Lanes of a vector of channels while what pieces found is joined."""
        return JOINED if self.planes else self.lanes

    @property
    def width(self) -> int:
        """Channels, rounded up to whole vectors."""
        return -(-self.src.c // self.joined) * self.joined

    @property
    def room(self) -> int:
        """Numbers of the workspace: means and squares of pieces, means and factors of channels."""
        return 2 * self.src.n * self.width * (self.per_plane + 1)

    def found(self, k: Kernel, squares: bool) -> Buffer:
        """The means or the sums of squared deviations, indexed (image, piece, channel)."""
        before = self.src.n * self.per_plane * self.width if squares else 0
        return k.argument("shared", self.per_plane * self.width, self.width, 1, offset=before)

    def of_channels(self, k: Kernel, factors: bool) -> Buffer:
        """The means of channels or the factors of their deviations, indexed (image, channel)."""
        before = self.src.n * self.width * (2 * self.per_plane + factors)
        return k.argument("shared", self.width, 1, offset=before)

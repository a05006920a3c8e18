"""The schedule of products in tiles, and what follows from it: steps, lines, expected cycles."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import Int, least
from fastrun.kernels.codegen.matrix_tiles import ROW_BYTES, ROWS
from fastrun.kernels.codegen.reduction import share_met
from fastrun.kernels.conv.amx.sums import CHANNELS, tile_bytes
from fastrun.kernels.core.dtype import BF16, DType
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io


@dataclass(frozen=True)
class Schedule:
    """Rows and panels of a task, tiles of a block of sums, and what numbers consist of."""

    layout: str
    rows: int  # output rows of a task
    panels: int  # panels of output channels of a task
    tiles: int  # tiles of pixels of a block of sums
    cols: int  # tiles of output channels of a block of sums, which are a panel
    oc_outer: bool  # tasks run through the image for each block of panels, else the reverse
    strips: bool  # each task copies the input of its rows, else a stage before copies all
    terms: int  # bf16 numbers whose sum stands for one of float32
    chunks: int  # chunks of input channels of a block of K, between which sums are stored
    stream: bool  # pixels leave L1 first, so that weights stay


# Which terms are multiplied, of pixels and of weights: all that matter, and neighbours share one.
PAIRS = {
    1: ((0, 0),),
    2: ((1, 0), (0, 0), (0, 1)),
    3: ((2, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 2)),
}


@dataclass(frozen=True)
class Window:
    """What a step of K multiplies: `width` bytes of each pixel, `chunks` of them under each tap.

    The `channels` of a pixel are cut into chunks. Where it saves steps, a row of the filter is one
    long pixel: it is one run of bytes where pixels have no gaps between them.
    `in_place` pixels are read where they lie. Others are copied first, as `terms` of bf16.
    """

    dtype: DType  # of the products: U8 or BF16
    channels: int
    kernel: tuple[int, int]
    chunks: int
    width: int
    in_place: bool
    terms: int

    @classmethod
    def of(cls, p: ConvProblem, src: Placement, terms: int) -> Window:
        """The window of a group of channels."""
        types = p.precision
        if not types.integer:
            most = BF16.count(ROW_BYTES)
            here = types.src is BF16 and p.group_c % most == 0 and src.layout.name == "NHWC"
            chunks = -(-p.group_c // most)
            return cls(BF16, p.group_c, p.kernel, chunks, ROW_BYTES, here, terms)
        channels, (kh, kw) = p.group_c, p.kernel
        row, dense = kw * channels, src.x_stride == p.c and p.dilation[1] == p.groups == 1
        if dense and -(-row // ROW_BYTES) < kw * -(-channels // ROW_BYTES):
            channels, kw = row, 1
        chunks = -(-channels // ROW_BYTES)
        width = -(-channels // (4 * chunks)) * 4
        return cls(types.src, channels, (kh, kw), chunks, width, True, 1)

    @property
    def row(self) -> int:
        """Bytes of a pixel in all its chunks and terms."""
        return self.chunks * (self.width if self.in_place else self.terms * ROW_BYTES)

    @property
    def steps(self) -> int:
        """Steps of K."""
        return self.kernel[0] * self.kernel[1] * self.chunks

    @property
    def tile(self) -> int:
        """Bytes of a tile of weights."""
        return tile_bytes(self.width)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights of a tile of output channels."""
        return self.steps * self.terms * self.tile

    @property
    def per_chunk(self) -> int:
        """Channels of a chunk."""
        return self.dtype.count(self.width)


# Padding is left out where this share of the products remains, or less: it takes loops over taps.
_SKIPS = 0.8


@dataclass(frozen=True)
class Lines:
    """Output pixels as rows of tiles: `count` lines of `length` pixels, each in equal tiles.

    The last tile of a line may overlap the one before. With `joined` the rows of the image are one
    line, in which pixels of the padding between them are computed as well. If `met` is less than 1,
    blocks of tiles leave out taps that meet only padding, and have that share of the products left.
    Tiles then follow each other down the image, since those below each other meet the same taps.
    """

    count: int
    length: int
    joined: bool
    met: float = 1.0

    @classmethod
    def of(cls, p: ConvProblem, s: Schedule, pitch: int, rows: int) -> Lines:
        """The lines of some rows, which takes less time; `pitch` is the pixels of an input row."""
        apart = cls(rows, p.ow, joined=False)
        apart = replace(apart, met=_met(p, s.tiles, apart.height))
        if p.stride != (1, 1):
            return apart
        return min(apart, cls(1, (rows - 1) * pitch + p.ow, joined=True), key=lambda x: x.cycles)

    def place(self, tile: Int) -> tuple[Int, Int]:
        """The line of a tile of pixels, and its first pixel there."""
        line: Int = 0
        part = tile
        if self.met < 1:
            line, part = tile % self.count, tile // self.count
        elif self.count > 1:
            line, part = tile // self.tiles, tile % self.tiles
        start = part * self.height
        return line, least(start, self.length - self.height) if self.overlap else start

    @property
    def tiles(self) -> int:
        """Tiles of a line."""
        return -(-self.length // ROWS)

    @property
    def height(self) -> int:
        """Rows of a tile."""
        return -(-self.length // self.tiles)

    @property
    def total(self) -> int:
        """Tiles of all lines."""
        return self.count * self.tiles

    def share(self, step: Int, steps: int) -> tuple[Int, Int]:
        """The rows of a tile, first and end, that one of so many steps finishes.

        Shares are even up to the last step: vectors' multipliers sleep when they are not used for
        650 ns, and a store of sums then waits 260 ns until they are awake (measured).
        """
        return step * self.height // steps, (step + 1) * self.height // steps

    @property
    def overlap(self) -> int:
        """Pixels that the last tile of a line and the one before both compute."""
        return self.tiles * self.height - self.length

    @property
    def cycles(self) -> float:
        """Cycles of a product of all tiles. Those of few rows wait for operands (measured)."""
        return self.met * self.total * max(12.0, self.height + 0.75)


def _met(p: ConvProblem, rows: int, columns: int) -> float:
    """The share of products of blocks of such tiles that are left, 1 where none is left out."""
    share = share_met(p, 0, rows) * share_met(p, 1, columns)
    return share if share < _SKIPS else 1.0


def width_read(p: ConvProblem, tiles: int) -> int:
    """Pixels of a row that products read: those of wide padding are left out."""
    padding = p.padding[1] + p.padding[3]
    return p.w + (padding if _met(p, tiles, Lines(1, p.ow, joined=False).height) == 1 else 0)


def width_of(src: Placement) -> int:
    """Pixels of a row of the copy, those of the halo included."""
    return src.w + src.halo[1] + src.halo[3]


# Cycles, as measured on an Intel Xeon with AMX: of a product of tiles of 16 rows, whose clock is a
# quarter slower; of storing and beginning a block of sums; of finishing a vector of outputs, beside
# products; of copying a chunk of a pixel for each term; of vectors, for a multiply-add of 32.
_PRODUCT, _BLOCK, _FINISH, _COPY, _VECTOR = 1.3, 300.0, 6.0, 10.0, 1.25
# The same of a copy that L2 does not keep, of more bytes than these.
_FAR_COPY, _NEAR = 30.0, 2 << 20

_COLUMNS = 8  # of a register tile of the direct method


def cycles(p: ConvProblem, s: Schedule) -> float:
    """The cycles of a schedule to expect."""
    src = Io.of(p, s.layout).src
    window, pitch = Window.of(p, src, s.terms), width_of(src)
    vectors, strips = -(-p.group_oc // CHANNELS), p.n * p.groups * -(-p.oh // s.rows)
    lines = Lines.of(p, s, pitch, min(s.rows, p.oh))
    products = strips * lines.cycles * vectors * window.steps * len(PAIRS[s.terms]) * _PRODUCT
    parts = -(-window.chunks // s.chunks)
    blocks = strips * -(-lines.total // s.tiles) * -(-vectors // s.cols) * parts * _BLOCK
    finish = p.n * p.groups * p.oh * p.ow * vectors * _FINISH
    copied = 0 if window.in_place else p.n * p.h * p.w * p.groups * window.chunks * s.terms
    far = not s.strips and copied * ROW_BYTES > _NEAR
    return max(products + blocks, finish) + copied * (_FAR_COPY if far else _COPY)


def vector_cycles(p: ConvProblem) -> float:
    """The cycles of the direct method in float32."""
    return p.flops / 64 * _VECTOR


def taps_met(p: ConvProblem) -> float:
    """The share of the products that the direct method computes: it leaves out most padding."""
    return share_met(p, 0, 1) * share_met(p, 1, min(p.ow, _COLUMNS))

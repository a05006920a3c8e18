"""How activations lie in memory.

A `Layout` is an order of the axes; a `Placement` is one tensor of that layout in a buffer, with a
zeroed halo round every plane so that a convolution's padding needs no code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.core.problem import ConvProblem

Array = NDArray[np.float32]

# Kernels may read (never write) this many floats past the end of a tensor: the tail of a vector.
READ_SLACK = 64

BLOCKS = (4, 8, 16)


@dataclass(frozen=True)
class Layout:
    """NCHW, NHWC, or NCHW`b`c = [N, C/b, H, W, b] with b = 4, 8 or 16.

    Raises:
        ValueError: the name is none of these.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in ("NCHW", "NHWC", *(f"NCHW{b}c" for b in BLOCKS)):
            raise ValueError(f"unknown layout {self.name!r}: use NCHW, NHWC, NCHW{BLOCKS}c")

    def block(self, c: int) -> int:
        """Channels that lie side by side: 1, all `c` of them, or the block."""
        if self.name == "NCHW":
            return 1
        return c if self.name == "NHWC" else self.blocked

    @property
    def blocked(self) -> int:
        """b of NCHWbc, 0 for the plain layouts."""
        found = re.fullmatch(r"NCHW(\d+)c", self.name)
        return int(found[1]) if found else 0

    def __str__(self) -> str:
        return self.name


NCHW, NHWC = Layout("NCHW"), Layout("NHWC")


def layout_pair(text: str) -> tuple[Layout, Layout]:
    """Input and output layout from a schedule's `layout` field: `NHWC`, or `NCHW>NCHW8c`."""
    src, _, dst = text.partition(">")
    return Layout(src), Layout(dst or src)


Halo = tuple[int, int, int, int]


@dataclass(frozen=True)
class Placement:
    """A tensor of `n` x `c` x `h` x `w` floats in a buffer.

    `halo` is (top, left, bottom, right) in pixels round every plane and holds zeros. Channels are
    padded to whole blocks; padding channels hold finite values that no kernel weighs.
    """

    layout: Layout
    n: int
    c: int
    h: int
    w: int
    halo: Halo = (0, 0, 0, 0)

    @property
    def block(self) -> int:
        """Channels per block."""
        return self.layout.block(self.c)

    @property
    def blocks(self) -> int:
        """Blocks per image."""
        return -(-self.c // self.block)

    @property
    def x_stride(self) -> int:
        """Floats from one pixel to the next."""
        return self.block

    @property
    def y_stride(self) -> int:
        """Floats from one row to the next."""
        return self.x_stride * (self.w + self.halo[1] + self.halo[3])

    @property
    def block_stride(self) -> int:
        """Floats from one channel block to the next; NCHW: from one channel to the next."""
        return self.y_stride * (self.h + self.halo[0] + self.halo[2])

    @property
    def n_stride(self) -> int:
        """Floats from one image to the next."""
        return self.block_stride * self.blocks

    @property
    def origin(self) -> int:
        """Floats from the start of the buffer to pixel (0, 0) of the first channel."""
        return self.halo[0] * self.y_stride + self.halo[1] * self.x_stride

    @property
    def size(self) -> int:
        """Floats in the buffer, halo and padding channels included, read slack excluded."""
        return self.n * self.n_stride

    @property
    def dense(self) -> bool:
        """Rows follow each other without a gap, so a plane is one long row of pixels."""
        return self.halo[1] == self.halo[3] == 0

    def channel(self, c: int) -> int:
        """Floats from channel 0 to channel `c` of the same pixel."""
        return c // self.block * self.block_stride + c % self.block

    def pack(self, tensor: Array) -> Array:
        """The buffer that holds `tensor` (n, c, h, w): float32, flat, `size` long."""
        top, left, _, _ = self.halo
        planes = self._planes(np.zeros(self.size, np.float32))
        padded = np.zeros((self.n, self.blocks * self.block, self.h, self.w), np.float32)
        padded[:, : self.c] = tensor
        cells = padded.reshape(self.n, self.blocks, self.block, self.h, self.w)
        planes[:, :, top : top + self.h, left : left + self.w] = cells.transpose(0, 1, 3, 4, 2)
        return planes.reshape(-1)

    def unpack(self, buffer: Array) -> Array:
        """The tensor (n, c, h, w) that `buffer` holds."""
        top, left, _, _ = self.halo
        cells = self._planes(buffer)[:, :, top : top + self.h, left : left + self.w]
        channels = cells.transpose(0, 1, 4, 2, 3).reshape(self.n, -1, self.h, self.w)
        return np.ascontiguousarray(channels[:, : self.c])

    def halo_of(self, buffer: Array) -> Array:
        """The floats of `buffer` that lie in the halo; a kernel must leave them alone."""
        top, left, _, _ = self.halo
        planes = self._planes(buffer)
        inside = np.zeros(planes.shape, bool)
        inside[:, :, top : top + self.h, left : left + self.w] = True
        return planes[~inside]

    def _planes(self, buffer: Array) -> Array:
        top, left, bottom, right = self.halo
        rows, cols = self.h + top + bottom, self.w + left + right
        return buffer[: self.size].reshape(self.n, self.blocks, rows, cols, self.block)


@dataclass(frozen=True)
class Io:
    """Where a kernel finds its input and leaves its output; `add` lies like `dst` unless said."""

    src: Placement
    dst: Placement
    add: Placement

    @classmethod
    def of(cls, p: ConvProblem, layout: str) -> Io:
        """The usual placement: the input's halo is the padding, the output has none."""
        src, dst = layout_pair(layout)
        out = Placement(dst, p.n, p.oc, p.oh, p.ow)
        return cls(Placement(src, p.n, p.c, p.h, p.w, p.padding), out, out)

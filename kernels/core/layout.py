"""How activations lie in memory.

A `Layout` is an order of the axes. A `Placement` is one tensor of that layout in a buffer, with a
halo of zeros round every plane, so that a convolution's padding needs no code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.dtype import BY_NAME, F32, DType

Array = NDArray[np.float32]

# Elements past the end of a tensor that kernels may read (never write): the rest of a vector.
READ_SLACK = 64

BLOCKS = (4, 8, 16)
_BLOCKED = {f"NCHW{b}c": b for b in BLOCKS}


@dataclass(frozen=True)
class Layout:
    """NCHW, NHWC, or NCHW`b`c = [N, C/b, H, W, b] with b = 4, 8 or 16, and the element type.

    The text form names the type after a colon unless it is f32: `NHWC:u8`.

    Raises:
        ValueError: the name is none of these.
    """

    name: str
    dtype: DType = F32

    def __post_init__(self) -> None:
        if self.name not in ("NCHW", "NHWC", *_BLOCKED):
            raise ValueError(f"unknown layout {self.name!r}: use NCHW, NHWC, NCHW{BLOCKS}c")

    def block(self, c: int) -> int:
        """Channels that lie side by side: 1, all `c` channels, or those of a block."""
        if self.name == "NCHW":
            return 1
        return c if self.name == "NHWC" else self.blocked

    @property
    def blocked(self) -> int:
        """b of NCHWbc, 0 for the plain layouts."""
        return _BLOCKED.get(self.name, 0)

    @property
    def order(self) -> Layout:
        """The same order of the axes, of float32."""
        return replace(self, dtype=F32)

    def of(self, dtype: DType) -> Layout:
        """The same order of the axes, of another element type."""
        return replace(self, dtype=dtype)

    def __str__(self) -> str:
        return self.name if self.dtype is F32 else f"{self.name}:{self.dtype.name}"

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read the text form.

        Raises:
            ValueError: there is no such layout or type.
        """
        name, colon, dtype = text.partition(":")
        if colon and dtype not in BY_NAME:
            raise ValueError(f"unknown element type {dtype!r}: use {', '.join(BY_NAME)}")
        return cls(name, BY_NAME[dtype] if colon else F32)


NCHW, NHWC = Layout("NCHW"), Layout("NHWC")


def layout_pair(text: str) -> tuple[Layout, Layout]:
    """Input and output layout from a schedule's `layout` field: `NHWC`, or `NCHW>NCHW8c`."""
    src, _, dst = text.partition(">")
    return Layout.parse(src), Layout.parse(dst or src)


def layout_text(src: Layout, dst: Layout) -> str:
    """A schedule's `layout` field for these, which `layout_pair` reads."""
    return str(src) if src == dst else f"{src}>{dst}"


Halo = tuple[int, int, int, int]


@dataclass(frozen=True)
class Placement:
    """A tensor of `n` x `c` x `h` x `w` elements in a buffer; all distances are in elements.

    `halo` is (top, left, bottom, right) in pixels round every plane. It holds `zero`: the number
    that stands for zero, 0 unless the elements have a zero point. Channels are padded to whole
    blocks; padding channels hold finite values, whose weights are zero.

    The tensor may be a part of a larger one with `whole` channels: the channels from `first` on.
    The buffer is then that of the larger tensor, and its other channels must stay untouched.

    Raises:
        ValueError: the part exceeds the larger tensor, or begins inside a block of channels.
    """

    layout: Layout
    n: int
    c: int
    h: int
    w: int
    halo: Halo = (0, 0, 0, 0)
    whole: int = 0  # 0: the tensor is no part
    first: int = 0
    zero: int = 0

    def __post_init__(self) -> None:
        if self.first + self.c > self.buffer_c:
            raise ValueError(f"{self.c} channels from {self.first} on are not in {self.buffer_c}")
        if self.layout.blocked and self.first % self.layout.blocked:
            raise ValueError(f"channel {self.first} begins inside a block of {self.layout}")

    def __str__(self) -> str:
        halo = f" with a halo of {self.halo}" if any(self.halo) else ""
        return f"{self.n}x{self.c}x{self.h}x{self.w} in {self.layout}{halo}"

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.layout.dtype

    @property
    def buffer_c(self) -> int:
        """Channels of the buffer."""
        return self.whole or self.c

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
        """From one pixel to the next."""
        return self.layout.block(self.buffer_c)

    @property
    def y_stride(self) -> int:
        """From one row to the next."""
        return self.x_stride * (self.w + self.halo[1] + self.halo[3])

    @property
    def block_stride(self) -> int:
        """From one channel block to the next; in NCHW from one channel to the next."""
        return self.y_stride * (self.h + self.halo[0] + self.halo[2])

    @property
    def n_stride(self) -> int:
        """From one image to the next."""
        return self.block_stride * -(-self.buffer_c // self.x_stride)

    @property
    def origin(self) -> int:
        """From the start of the buffer to pixel (0, 0) of the first channel."""
        corner = self.halo[0] * self.y_stride + self.halo[1] * self.x_stride
        return corner + self.first // self.x_stride * self.block_stride + self.first % self.x_stride

    @property
    def size(self) -> int:
        """Elements of the buffer, with halo and padding channels, without the read slack."""
        return self.n * self.n_stride

    @property
    def dense(self) -> bool:
        """Whether rows have no gaps between them, so that a plane is one long row of pixels."""
        return self.halo[1] == self.halo[3] == 0

    def channel(self, c: int) -> int:
        """From channel 0 to channel `c` of the same pixel."""
        return c // self.block * self.block_stride + c % self.block

    def part(self, first: int, c: int) -> Placement:
        """The placement of `c` of its channels, from `first` on.

        Raises:
            ValueError: there are fewer channels, or they begin inside a block.
        """
        return replace(self, c=c, whole=self.buffer_c, first=self.first + first)

    def pack(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """The flat buffer, `size` long, that holds `tensor` (n, c, h, w) and else `zero`."""
        buffer = np.full(self.size, self.zero, self.dtype.numpy)
        pixels, channels = self._inside(buffer), np.arange(self.c) + self.first
        block, lane = np.divmod(channels, self.x_stride)
        pixels[:, block, :, :, lane] = self.dtype.encode(tensor).swapaxes(0, 1)
        return buffer

    def unpack(self, buffer: NDArray[Any]) -> NDArray[Any]:
        """The tensor (n, c, h, w) that `buffer` holds."""
        pixels, channels = self._inside(buffer), np.arange(self.c) + self.first
        block, lane = np.divmod(channels, self.x_stride)
        found = np.ascontiguousarray(pixels[:, block, :, :, lane].swapaxes(0, 1))
        return self.dtype.decode(found)

    def halo_of(self, buffer: NDArray[Any]) -> NDArray[Any]:
        """The elements of `buffer` outside the tensor: the halo and other tensors' channels.

        A kernel must not change them.
        """
        outside = np.ones(self.size, bool)
        block, lane = np.divmod(np.arange(self.blocks * self.block) + self.first, self.x_stride)
        self._inside(outside)[:, block, :, :, lane] = False
        return buffer[: self.size][outside]

    def _inside(self, buffer: NDArray[Any]) -> NDArray[Any]:
        """The buffer's pixels inside the halo as (image, block, y, x, lane), of the whole."""
        top, left, bottom, right = self.halo
        rows, cols = self.h + top + bottom, self.w + left + right
        planes = buffer[: self.size].reshape(self.n, -1, rows, cols, self.x_stride)
        return planes[:, :, top : top + self.h, left : left + self.w]

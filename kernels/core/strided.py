"""Tensors of any rank as strides over a buffer, and the operators that only change strides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.layout import NCHW, Array, Placement

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Strided:
    """Element (i, j, ...) is number `offset + i * strides[0] + j * strides[1] + ...` of a buffer.

    A stride of 0 repeats one element along its axis; strides may be negative.
    """

    shape: Ints
    strides: Ints
    offset: int = 0
    dtype: DType = F32

    @classmethod
    def row_major(cls, shape: Ints) -> Strided:
        """A whole buffer, the last axis closest together."""
        strides = [1] * len(shape)
        for axis in reversed(range(len(shape) - 1)):
            strides[axis] = strides[axis + 1] * shape[axis + 1]
        return cls(tuple(shape), tuple(strides))

    @classmethod
    def of(cls, where: Placement) -> Strided:
        """A placement as (image, block of channels, y, x, channel), padding channels included."""
        shape = (where.n, where.blocks, where.h, where.w, where.block)
        strides = (where.n_stride, where.block_stride, where.y_stride, where.x_stride, 1)
        return cls(shape, strides, where.origin, where.dtype)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Elements of a buffer that ends with the last of these."""
        steps = zip(self.shape, self.strides, strict=True)
        return self.offset + sum(max(0, (n - 1) * s) for n, s in steps) + 1 if self.size else 0

    @property
    def buffer(self) -> Placement:
        """The buffer up to `extent`, as one row of pixels."""
        return Placement(NCHW.of(self.dtype), 1, 1, 1, self.extent)

    def view(self, buffer: Array) -> Array:
        """The elements in `buffer` as a numpy view."""
        bytes_ = tuple(self.dtype.bytes(s) for s in self.strides)
        return np.lib.stride_tricks.as_strided(buffer[self.offset :], self.shape, bytes_)

    def broadcast(self, shape: Ints) -> Strided:
        """The elements repeated to `shape`, by numpy's rules.

        Raises:
            ValueError: the shapes do not fit.
        """
        missing = len(shape) - len(self.shape)
        mine = (1,) * missing + self.shape
        if missing < 0 or any(a not in (1, b) for a, b in zip(mine, shape, strict=True)):
            raise ValueError(f"{self.shape} cannot be broadcast to {shape}")
        strides = zip(mine, shape, (0,) * missing + self.strides, strict=True)
        return replace(self, shape=shape, strides=tuple(s if a == b else 0 for a, b, s in strides))

    def transpose(self, order: Ints) -> Strided:
        """Axis i of the result is axis `order[i]`."""
        shape = tuple(self.shape[axis] for axis in order)
        return replace(self, shape=shape, strides=tuple(self.strides[axis] for axis in order))

    def slice(self, starts: Ints, sizes: Ints, steps: Ints) -> Strided:
        """`sizes[i]` elements of axis i, from `starts[i]` in steps of `steps[i]`."""
        offset = self.offset + sum(a * s for a, s in zip(starts, self.strides, strict=True))
        strides = tuple(a * s for a, s in zip(steps, self.strides, strict=True))
        return replace(self, shape=tuple(sizes), strides=strides, offset=offset)

    def part(self, axis: int, start: int, size: int) -> Strided:
        """`size` elements along one axis, from `start` on."""
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return replace(self, shape=shape, offset=self.offset + start * self.strides[axis])

    def reshaped(self, shape: Ints) -> Strided | None:
        """The elements in row-major order in another shape; None if that needs a copy."""
        if self.size != math.prod(shape) or not self.size:
            return None
        # The axes whose elements are not yet used up, outermost first.
        mine = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        strides, left = list[int](), list(shape)
        while left:
            n = left.pop(0)
            if n == 1:
                strides.append(0)
                continue
            count, step = mine.pop(0)
            while count % n and mine and step == mine[0][0] * mine[0][1]:
                inner, step = mine.pop(0)
                count *= inner
            if count % n:
                return None
            strides.append(step * (count // n))
            if count > n:
                mine.insert(0, (count // n, step))
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def split(self, axis: int, sizes: Ints) -> Strided:
        """One axis as several whose sizes multiply to its size; the last is closest together."""
        if math.prod(sizes) != self.shape[axis]:
            raise ValueError(f"an axis of {self.shape[axis]} cannot be split into {sizes}")
        inner = tuple(s * self.strides[axis] for s in Strided.row_major(sizes).strides)
        shape = (*self.shape[:axis], *sizes, *self.shape[axis + 1 :])
        strides = self.strides[:axis] + inner + self.strides[axis + 1 :]
        return replace(self, shape=shape, strides=strides)

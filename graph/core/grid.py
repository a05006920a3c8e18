"""Grids: which numbers a quantised tensor can have, and how they are stored as integers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.ops import Conv, ConvTranspose, DepthwiseVolume, Gemm, MatMul, Op
from fastrun.kernels.core.dtype import DType

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Grid:
    """The numbers `(stored - zero) * scale`, where `stored` is any integer of `dtype`.

    A computed tensor that has a grid is rounded to it: divided by the scale, rounded to the nearest
    integer, ties to even, then the zero point is added, then the sum is clipped to the type. Its
    scale is a number and its dtype is u8. A grid that is not `exact` is advice: the tensor may be
    rounded to it, or stay as it is.

    Weights that have a grid are constants whose values lie on it. Their dtype is s8, the zero point
    0, and `scale` has a float32 number for each output channel, which is axis `weight_axis` of
    the weights. Bytes less a zero point need the dtype i16; those of a channel differ by at most
    255. The values stay float32 constants, so that kernels of float32 need no grid.

    Weights in blocks have `block` > 0: so many neighbours along the axis that is summed share a
    scale. `scale` and `zero` are then arrays (output channels, blocks), the dtype is u8, and the
    stored integers are those of the file, 0 to 15 for four bits. The last block may be
    shorter. They are read by `stored` too; kernels of float32 and of 8 bits do without them.
    With `rounds` the model allows that what they are multiplied by is rounded to signed bytes, with
    a scale for each block.
    """

    scale: float | NDArray[np.float32]
    zero: int | NDArray[np.uint8]
    dtype: DType
    exact: bool = True
    block: int = 0
    rounds: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and (
            (self.dtype, self.exact, self.block) == (other.dtype, other.exact, other.block)
            and self.rounds == other.rounds
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )

    @property
    def text(self) -> str:
        """What a kernel must know of it: the type, whether it is exact, the size of blocks."""
        blocks = f"/{self.block}{'r' * self.rounds}" if self.block else ""
        return f"{self.dtype.name}{'' if self.exact else '?'}{blocks}"

    def steps(self, values: Array, axis: int = 0) -> NDArray[np.float64]:
        """The stored integers for values, as float64; `axis` is that of the scales."""
        scale, zero = self._along(values.shape, axis)
        with np.errstate(invalid="ignore"):  # infinite values are clipped
            found = np.asarray(np.divide(values, scale, dtype=np.float64))
            np.rint(found, out=found)
            found += zero
        return found.clip(*self.dtype.range, out=found)

    def stored(self, values: Array, axis: int = 0) -> Array:
        """The integers that stand for values, in the grid's type."""
        return self.steps(values, axis).astype(self.dtype.numpy)

    def rounded(self, values: Array, axis: int = 0) -> NDArray[np.float64]:
        """The values that the grid has for any values, in float64."""
        scale, zero = self._along(values.shape, axis)
        found: NDArray[np.float64] = (self.steps(values, axis) - zero) * scale
        return found

    def contains(self, value: float) -> bool:
        """Whether rounding leaves a number as it is, to the accuracy of float32."""
        return bool(np.isclose(self.rounded(np.array(value)), value, rtol=1e-6, atol=0))

    def implies(self, low: float, high: float) -> bool:
        """Whether values need not be clipped to these limits before they are rounded."""
        ends = self.steps(np.array([low, high]))
        return bool((ends == self.dtype.range).all())

    def scaled(self, stored: Array, factors: Array) -> Grid | None:
        """The grid of weights whose output channels are multiplied by factors.

        `stored` are their integers, output channels first. None if they have no such grid: an
        integer has no opposite, or a scale is no normal float32 number.
        """
        if self.block:
            wide = np.asarray(factors, np.float32)[:, None]
            return replace(self, scale=self.scale * wide) if (factors > 0).all() else None
        lowest = stored.reshape(len(stored), -1).min(axis=1) == self.dtype.range[0]
        with np.errstate(over="ignore", under="ignore"):
            scale = (self.scale * np.abs(factors)).astype(np.float32)
        scale[factors == 0] = 1  # all weights become 0
        if (lowest & (factors < 0)).any() or not is_scale(scale):
            return None
        return replace(self, scale=scale)

    def _along(self, shape: tuple[int, ...], axis: int) -> tuple[Any, Any]:
        """Scale and zero point in shapes that broadcast to `shape`."""
        if not self.block:
            scale = np.asarray(self.scale, np.float64)
            wide = [-1 if i == axis else 1 for i in range(len(shape))]
            return (scale.reshape(wide) if scale.ndim else scale), float(self.zero)
        length, ones = shape[1 - axis], (1,) * (len(shape) - 2)
        parts = [np.repeat(p, self.block, 1)[:, :length] for p in (self.scale, self.zero)]
        scale, zero = ((p if axis == 0 else p.T).astype(np.float64) for p in parts)
        return scale.reshape(*scale.shape, *ones), zero.reshape(*zero.shape, *ones)


def is_scale(scale: Array | float) -> bool:
    """Whether numbers can be scales: positive, finite, and no subnormal float32 numbers."""
    with np.errstate(over="ignore"):
        narrow = np.asarray(scale, np.float32)
    return bool(np.isfinite(narrow).all() and (narrow >= np.finfo(np.float32).tiny).all())


def weight_axis(op: Op) -> int | None:
    """The axis of the output channels of an operator's second input; None if it is no weights.

    A transposed convolution in groups has no such axis: each of its filters is in one group.
    """
    match op:
        case Conv() | DepthwiseVolume():
            return 0
        case ConvTranspose(groups=1):
            return 1
        case Gemm(transpose_b=transposed):
            return 0 if transposed else 1
        case MatMul():
            return 1
    return None

"""Scales and zero points of an operator's tensors as an operand, and functions of bytes as tables.

They are no part of a kernel, so that one kernel serves all tensors of a shape. Those of integer
convolutions are in `kernels.core.quantised`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.dtype import U8

TENSORS = ("src", "dst", "add")
"""The kernel's arguments in the order in which the operand has a scale and a zero point of each."""


@dataclass(frozen=True)
class Quantisation:
    """Elements of type u8 stand for (stored - zero) * scale.

    A tensor of floats has none: its scale is 1, its zero point 0.

    Raises:
        ValueError: the scale is no positive normal float32 number, or the zero point no u8.
    """

    scale: float = 1.0
    zero: int = 0

    def __post_init__(self) -> None:
        range_ = np.finfo(np.float32)
        if not range_.tiny <= self.scale <= range_.max:
            raise ValueError(f"{self.scale} is no scale: it must be a normal float32 number > 0")
        if not U8.range[0] <= self.zero <= U8.range[1]:
            raise ValueError(f"zero point {self.zero} is outside of u8")

    def stored(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """What numbers are stored as: ties go to even, then the zero point is added, then clipped.

        NaN becomes 0. It is computed in float64.
        """
        with np.errstate(over="ignore"):  # infinite numbers are clipped
            steps = np.rint(np.asarray(values, np.float64) / self.scale) + self.zero
        known = np.where(np.isnan(steps), U8.range[0], steps)
        return np.clip(known, *U8.range).astype(np.uint8)

    def values(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """The numbers that elements stand for."""
        return (stored.astype(np.float64) - self.zero) * self.scale


REAL = Quantisation()


def scales(src: Quantisation, dst: Quantisation, add: Quantisation = REAL) -> NDArray[np.float32]:
    """What kernels read as their bias: scale and zero point of each of `TENSORS`."""
    return np.array([x for q in (src, dst, add) for x in (q.scale, q.zero)], np.float32)


def table(
    src: Quantisation,
    dst: Quantisation,
    function: Callable[[NDArray[np.float64]], NDArray[Any]] = lambda values: values,
) -> NDArray[np.uint8]:
    """What each of the 256 numbers of u8 becomes under a function, computed in float64.

    Without a function it is the same value on another grid.
    """
    with np.errstate(all="ignore"):
        return dst.stored(function(src.values(np.arange(256))))

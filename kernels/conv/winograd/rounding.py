"""Transformed operands as int16: their scales, and the error they leave.

Products of pairs of int16 are added as int32. Everything is scaled such that no sum can exceed it,
whatever the input: |input of a plane| is at most 255 times what its transform's coefficients of one
sign add up to, which is known when a kernel is built, and |weights| are known when they are packed.

With points whose input matrix is whole (F(2,3), F(3,3) and F(4,3) with standard points), the
transformed input is exact in int16, and so are weights multiplied by the denominators of their
plane, unless int16 or the sums have no room for them: then nothing is rounded before the output
transform. Where there is no room, the weights of a plane and an output channel are rounded to the
finest steps that fit, such that their sum over the channels stays: input that is positive, or equal
in all channels, then meets no common error. For other points the input is rounded as well.

Float32 (`f32s16`) is rounded in the same way. Its largest absolute value is not known before: a
kernel looks for it in the pixels of each block of tiles, and divides the block by it.

Integers are rounded for vpmaddwd in ncnn's Winograd too (convolution_3x3_winograd_int8.h), which
gets room by weights of six bits.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.conv.winograd.transform import Transform
from fastrun.kernels.core.dtype import F32, I16, I32, U8, DType
from fastrun.kernels.core.forks import matmul
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import check

# Steps of a u8 output that its rms is expected to have, and the rms of an input by its largest.
OUTPUT_RMS, INPUT_RMS = 40, 55 / 255

# The rms, the mean and the largest of absolute weights of an output channel, by the rms.
_MEAN, _LARGEST = 0.8, 3.5

_SUM = I32.range[1]
_MOST = I16.range[1]


@dataclass(frozen=True)
class Rounding:
    """How operands of planes (alpha_h * alpha_w) are scaled.

    Input of a plane is at most `bounds` before it is multiplied by `input_scales`, and at most
    `most` after it. `chunk` channels at most are added as int32. Numbers of either sign, which are
    at most 1 when they are transformed, are `signed`; else they are those of u8.
    """

    vertical: Transform
    horizontal: Transform
    chunk: int
    bits: int  # of the input where it is rounded
    signed: bool

    @classmethod
    @functools.cache
    def of(cls, p: ConvProblem, m: tuple[int, int], points: str, chunk: str) -> Rounding:
        """That of fields of a schedule; the input gets the bits with the smallest expected error.

        Raises:
            ScheduleError: `chunk` is no number of channels.
            ValueError: there is no such transform.
        """
        vertical, horizontal = (
            Transform.of(size, r, points) for size, r in zip(m, p.kernel, strict=True)
        )
        channels, signed = chunk_channels(p, chunk), p.precision.as_int16
        made = [
            cls(vertical, horizontal, channels, bits, signed) for bits in range(12, I16.bits + 1)
        ]
        return made[-1] if made[-1].whole else min(made, key=lambda rounding: rounding.error(p))

    @functools.cached_property
    def whole(self) -> bool:
        """Whether the transformed input is exact in int16."""
        exact = self.vertical.whole and self.horizontal.whole and not self.signed
        return exact and float(self.bounds.max()) <= _MOST

    @property
    def arithmetic(self) -> DType:
        """The type in which input is transformed."""
        return I16 if self.whole else F32

    @functools.cached_property
    def bounds(self) -> NDArray[np.float64]:
        """The largest absolute value of each plane of a transformed input."""
        same = self._planes(lambda t: t.reach[0]) + self._planes(lambda t: t.reach[1])
        every = self._planes(lambda t: t.reach[0] + t.reach[1])
        if self.signed:
            return every
        return U8.range[1] * np.maximum(same, every - same)

    @property
    def most(self) -> NDArray[np.float64]:
        """The largest absolute value of each plane as int16."""
        rounded = np.full_like(self.bounds, 2 ** (self.bits - 1) - 1)
        return self.bounds if self.whole else rounded

    @property
    def input_scales(self) -> NDArray[np.float64]:
        """Numbers by which the input of each plane is multiplied."""
        return self.most / self.bounds

    @functools.cached_property
    def denominators(self) -> NDArray[np.float64]:
        """Numbers that make whole the weights of each plane."""
        return self._planes(lambda t: t.denominators)

    def weight_scales(
        self, largest: NDArray[np.float64], sums: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Numbers (planes, oc) by which transformed weights are multiplied before they are rounded.

        `largest` (planes, oc) are their largest absolute values, `sums` those of their sums over
        a chunk. Rounding changes each by less than 1.
        """
        room = (_SUM / self.most - self.chunk)[:, None]
        finest: NDArray[np.float64] = np.minimum((_MOST - 1) / largest, room / sums)
        return finest if self.signed else np.minimum(self.denominators[:, None], finest)

    def weights(
        self, transformed: NDArray[np.float32], starts: list[int]
    ) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """Weights (planes, c, oc) as int16, and what a unit of each plane's sums (planes, oc) is.

        Chunks of channels begin at `starts`.
        """
        tiny = np.finfo(np.float32).tiny  # for channels without weights
        largest = np.empty((len(transformed), transformed.shape[2]))
        sums = np.empty_like(largest)
        for plane, u in enumerate(np.abs(transformed)):
            largest[plane] = np.maximum(u.max(0), tiny)
            sums[plane] = np.maximum(np.add.reduceat(u, starts, 0, np.float64).max(0), tiny)
        scales = self.weight_scales(largest, sums)
        packed = np.empty(transformed.shape, np.int16)
        for plane, u in enumerate(transformed):
            packed[plane] = rounded(u * scales[plane])
        return packed, (1 / (scales * self.input_scales[:, None])).astype(np.float32)

    def error(self, p: ConvProblem) -> float:
        """The rms error of rounding to expect: in steps of a u8 output, else by the output's rms.

        For an input and weights of independent normal numbers, that of the weights such that the
        largest of 3.5 times the rms is the largest of their type.
        """

        def squares(name: str, axis: int) -> NDArray[np.float64]:
            return self._planes(
                lambda t: np.square(np.array(getattr(t, name), np.float64)).sum(axis)
            )

        spread = p.precision.largest / _LARGEST
        size = INPUT_RMS * (1 if self.signed else U8.range[1])
        weights, inputs = spread * np.sqrt(squares("g", 1)), size * np.sqrt(squares("bt", 1))
        channels = min(self.chunk, p.group_c)
        scales = self.weight_scales(
            _LARGEST * weights[:, None], _MEAN * channels * weights[:, None]
        )[:, 0]
        # The rms of a rounding error is 1 / sqrt(12) of a step.
        exact = not self.signed and scales >= self.denominators
        of_weights = np.where(exact, 0, inputs / scales)
        of_inputs = 0 if self.whole else weights / self.input_scales
        errors = (np.square(of_weights) + np.square(of_inputs)) * p.group_c / 12
        through = matmul(squares("at", 0), errors) / (self.vertical.m * self.horizontal.m)
        relative = math.sqrt(through / p.depth) / (spread * size)
        return relative * (OUTPUT_RMS if p.precision.dst is U8 else 1)

    def _planes(self, of: Callable[[Transform], NDArray[np.float64]]) -> NDArray[np.float64]:
        """For each plane the product of what its row and its column have."""
        return np.outer(of(self.vertical), of(self.horizontal)).ravel()


def input_is_exact(p: ConvProblem, m: tuple[int, int]) -> bool:
    """Whether standard points transform tiles of that size without rounding."""
    try:
        axes = [Transform.of(size, r, "standard") for size, r in zip(m, p.kernel, strict=True)]
    except ValueError:  # no such points
        return False
    return Rounding(axes[0], axes[1], 1, I16.bits, signed=False).whole


def chunk_channels(p: ConvProblem, chunk: str) -> int:
    """Channels whose products are added as int32 by a schedule with this field.

    Raises:
        ScheduleError: it is no number of channels.
    """
    right = not chunk or (re.fullmatch("[0-9]{1,9}", chunk) is not None and int(chunk) > 0)
    check(right, f"chunk={chunk}: a number of channels, or nothing for all")
    channels = min(p.group_c, int(chunk)) if chunk else p.group_c
    check(channels < _MOST, f"sums of {channels} channels leave no bits: use a smaller chunk")
    return channels


def rounded(values: NDArray[np.floating]) -> NDArray[np.int16]:
    """Numbers (c, oc) rounded such that sums over c change by no more than a half.

    Of all numbers those are rounded the other way that are nearest to it.
    """
    near = np.rint(values)
    rest = (values - near).T
    missing = np.rint(rest.sum(1))
    some = np.flatnonzero(missing)
    sign = np.sign(missing[some])[:, None]
    order = np.argsort(-sign * rest[some], axis=1)
    moved = np.zeros((len(some), len(near)))
    turn = np.arange(len(near)) < np.abs(missing[some])[:, None]
    np.put_along_axis(moved, order, turn * sign, axis=1)
    near[:, some] += moved.T
    whole: NDArray[np.int16] = near.astype(np.int16)
    return whole

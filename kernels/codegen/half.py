"""Weights of type f16: each output channel's are scaled by a power of two, which is exact.

An f16 number has 11 bits from 2^-14 to 2^16 and fewer below, so weights of 1e-8 would vanish and
weights of 1e6 be infinite. Scaled, the largest weight of a channel lies from 2^14 to 2^15, and
weights 2^28 times smaller keep all their bits. The scales lie in front of the packed weights as
float32. Sums begin with zero; `unscale` multiplies them and adds the bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Kernel, Vec, fma
from fastrun.kernels.core.cpu import whole_lines
from fastrun.kernels.core.dtype import F16, F32, DType
from fastrun.kernels.core.layout import Array

# The largest weight of a channel is scaled to at most 2 to this.
_TOP = 15


def scale_room(dtype: DType, channels: int) -> int:
    """Floats in front of the packed weights of so many channels, padding channels included."""
    return whole_lines(channels) if dtype is F16 else 0


def encoded(weights: Array, dtype: DType, channels: int = 0) -> tuple[NDArray[Any], Array]:
    """Weights (channel, ...) as elements of `dtype`, and the floats to put in front of them.

    Those are the scales, or nothing for types that need none. There may be more packed `channels`
    than weights have.
    """
    if dtype is not F16:
        return dtype.encode(weights), np.zeros(0, np.float32)
    largest = np.abs(weights.reshape(len(weights), -1)).max(axis=1, initial=0.0)
    _, exponents = np.frexp(largest)
    # Scales must be normal float32; a channel of zeros needs none.
    powers = np.where(largest > 0, np.clip(exponents - _TOP, -126, 126), 0)
    scales = np.zeros(scale_room(dtype, max(channels, len(weights))), np.float32)
    scales[: len(weights)] = np.ldexp(np.float32(1), powers)
    each = scales[: len(weights)].reshape(-1, *[1] * (weights.ndim - 1))
    return dtype.encode(weights / each), scales


def joined(front: Array, packed: NDArray[Any]) -> NDArray[Any]:
    """Float32 values and behind them packed weights, all seen as the latters' elements."""
    return np.concatenate([front.view(packed.dtype), packed]) if front.size else packed


def packed_flat(weights: Array, dtype: DType) -> NDArray[Any]:
    """Weights (channel, ...) in the order they have, scales in front."""
    elements, scales = encoded(weights, dtype)
    return joined(scales, elements.reshape(-1))


def weights_at(
    k: Kernel, dtype: DType, channels: int, *strides: int, table: int = 0
) -> tuple[Buffer, Buffer | None]:
    """The packed weights, and the scales of their channels if they have any.

    `table` is the number of floats in front of both.
    """
    room = scale_room(dtype, channels)
    start = dtype.count(F32.bytes(table + room))
    scales = k.argument("weights", 1, offset=table) if room else None
    return k.argument("weights", *strides, offset=start, dtype=dtype), scales


def unscale(total: Vec, scale: Vec, bias: Vec | None = None) -> Vec:
    """A sum over scaled weights as what the weights themselves give, plus the bias."""
    return total * scale if bias is None else fma(total, scale, bias)

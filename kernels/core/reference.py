"""The truth: convolution and attention in float64, in plain numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.attention import AttentionProblem, Problem
from fastrun.kernels.core.problem import ConvProblem, slope
from fastrun.kernels.core.signs import by_signs, signs

F64 = NDArray[np.float64]

# Numbers in a matrix of patches: 2 MB.
_PATCHES = 1 << 18


def convolve(
    p: ConvProblem,
    x: NDArray[Any],
    weights: NDArray[Any],
    bias: NDArray[Any] | None = None,
    add: NDArray[Any] | None = None,
) -> F64:
    """`activation(conv(x) + bias + add)` in float64; of types `b1` by the signs.

    Shapes: x (n, c, h, w), weights (oc, c/groups, kh, kw), bias (oc,), add and result
    (n, oc, oh, ow). Computed as matrix products of a group's filters with patches of some output
    rows, few enough that the patches stay in the cache.
    """
    if p.precision.signs:
        x, weights = signs(x), by_signs(weights)
    top, left, bottom, right = p.padding
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    padded = padded.reshape(p.n, p.groups, p.group_c, *padded.shape[2:])
    filters = weights.astype(np.float64).reshape(p.groups, p.group_oc, -1)
    out = np.empty((p.n, p.groups, p.group_oc, p.oh, p.ow))
    depth = filters.shape[2]
    rows = min(p.oh, max(1, _PATCHES // (depth * p.ow)))
    groups = min(p.groups, max(1, _PATCHES // (depth * p.ow * rows)))
    room = np.empty(groups * depth * rows * p.ow)  # once: fresh pages are slow
    for i, first, begin in product(range(p.n), range(0, p.groups, groups), range(0, p.oh, rows)):
        some = slice(first, min(first + groups, p.groups))
        lines = slice(begin, min(begin + rows, p.oh))
        high = lines.stop - begin
        count = some.stop - first
        patches = room[: count * depth * high * p.ow].reshape(
            count, p.group_c, *p.kernel, high, p.ow
        )
        for ky, kx in np.ndindex(p.kernel):
            y0, x0 = ky * p.dilation[0] + begin * p.stride[0], kx * p.dilation[1]
            down = slice(y0, y0 + (high - 1) * p.stride[0] + 1, p.stride[0])
            across = slice(x0, x0 + (p.ow - 1) * p.stride[1] + 1, p.stride[1])
            patches[:, :, ky, kx] = padded[i, some, :, down, across]
        found = filters[some] @ patches.reshape(count, depth, high * p.ow)
        out[i, some, :, lines] = found.reshape(count, p.group_oc, high, p.ow)
    y: F64 = out.reshape(p.n, p.oc, p.oh, p.ow)
    if bias is not None:
        y = y + bias.astype(np.float64)[None, :, None, None]
    if add is not None:
        y = y + add.astype(np.float64)
    return activate(y, p.activation)


def attend(
    p: AttentionProblem, x: NDArray[Any], beside: NDArray[Any], mask: NDArray[Any] | None = None
) -> F64:
    """Attention in float64, with operands as in `random_operands`; `beside` may be `x`."""
    end, first = p.heads * p.size, 0 if p.add else p.heads * p.size

    def heads(of: NDArray[Any], start: int, size: int) -> F64:
        some = of[:, start : start + p.heads * size].astype(np.float64)
        return some.reshape(p.n, p.heads, size, -1)

    q, k = heads(x, 0, p.size), heads(beside, first, p.size)
    v = heads(beside, first + end, p.values)
    scores = q.swapaxes(-1, -2) @ k / math.sqrt(p.size)
    if mask is not None:
        scores = scores + mask
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    powers /= powers.sum(-1, keepdims=True)
    found: F64 = v @ powers.swapaxes(-1, -2)
    return found.reshape(p.output_shape)


def truth(p: Problem, operands: Mapping[str, NDArray[Any]]) -> F64:
    """The true result for operands as in `random_operands`."""
    if isinstance(p, ConvProblem):
        return convolve(p, **operands)
    x, mask = operands["x"], operands["weights"] if p.mask else None
    return attend(p, x, operands["add"] if p.add else x, mask)


def activate(y: NDArray[Any], activation: str) -> NDArray[Any]:
    """The activation named as in `ConvProblem`, by ONNX's definitions, in the type of `y`."""
    result: NDArray[Any] = y
    if activation == "relu":
        result = np.maximum(y, 0)
    elif activation == "relu6":
        result = np.clip(y, 0, 6)
    elif activation == "hardsigmoid":
        result = np.clip(y / 6 + 0.5, 0, 1)
    elif activation == "hardswish":
        result = y * activate(y, "hardsigmoid")
    elif activation == "sigmoid":
        result = 1 / (1 + np.exp(-y))
    elif activation == "silu":
        result = y * activate(y, "sigmoid")
    elif activation == "tanh":
        result = np.tanh(y)
    elif (factor := slope(activation)) is not None:
        result = np.where(y < 0, factor * y, y)
    elif activation == "gelu":
        result = y * (1 + erf(y / math.sqrt(2))) / 2
    elif activation == "gelu_tanh":
        result = y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))) / 2
    return result


erf = np.vectorize(math.erf, otypes=[np.float64])


def random_operands(p: Problem, seed: int) -> dict[str, NDArray[np.float32]]:
    """Normal inputs, He-scaled weights: outputs of order 1. Keys x, weights, bias, add.

    Of attention, x has the channels of queries, keys and values, or `add` those of the latter two;
    the weights are the mask.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    if isinstance(p, AttentionProblem):
        beside = normal(p.n, p.channels_beside, 1, p.keys) if p.add else None
        return {
            "x": normal(p.n, p.channels, 1, p.queries),
            "weights": normal(*p.mask_shape) if p.mask else np.zeros(1, np.float32),
            "bias": np.zeros(1, np.float32),
            "add": np.zeros((p.n, p.heads * p.values, 1, p.queries), np.float32)
            if beside is None
            else beside,
        }
    return {
        "x": normal(p.n, p.c, p.h, p.w),
        "weights": normal(*p.weight_shape) * np.float32(p.depth**-0.5),
        "bias": normal(p.oc),
        "add": normal(p.n, p.oc, p.oh, p.ow),
    }

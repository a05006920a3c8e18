"""Decides what each operator means: it is computed in float64, in plain numpy.

Arrays have ONNX's axes: batch, channels, then space.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.model import Array, Shape
from fastrun.graph.core.ops import (
    LRN,
    ArgReduce,
    Attention,
    Conv,
    ConvTranspose,
    CumSum,
    DepthwiseVolume,
    Gemm,
    Ints,
    Pad,
    Pool,
    Resize,
    Rotary,
    Softmax,
)
from fastrun.graph.core.problems import problem_of
from fastrun.kernels.core.forks import matmul
from fastrun.kernels.core.reference import activate, convolve, erf
from fastrun.kernels.core.signs import signs

F64 = NDArray[np.float64]

UNARY: dict[str, Callable[[Any, float, float], Any]] = {
    "relu": lambda x, a, b: np.maximum(x, 0),
    "relu6": lambda x, a, b: activate(x, "relu6"),
    "hardswish": lambda x, a, b: activate(x, "hardswish"),
    "sigmoid": lambda x, a, b: np.exp(-np.logaddexp(0, -x)),
    "silu": lambda x, a, b: activate(x, "silu"),
    "leakyrelu": lambda x, a, b: np.where(x < 0, a * x, x),
    "hardsigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "tanh": lambda x, a, b: np.tanh(x),
    "erf": lambda x, a, b: erf(x),
    "gelu": lambda x, a, b: x / 2 * (1 + erf(x / 2**0.5)),
    "gelu_tanh": lambda x, a, b: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "elu": lambda x, a, b: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
    "selu": lambda x, a, b: b * np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
    "celu": lambda x, a, b: np.where(x < 0, a * np.expm1(np.minimum(x, 0) / a), x),
    "softplus": lambda x, a, b: np.logaddexp(0, x),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "mish": lambda x, a, b: x * np.tanh(np.logaddexp(0, x)),
    "exp": lambda x, a, b: np.exp(x),
    "log": lambda x, a, b: np.log(x),
    "sqrt": lambda x, a, b: np.sqrt(x),
    "reciprocal": lambda x, a, b: 1 / x,
    "neg": lambda x, a, b: -x,
    "abs": lambda x, a, b: np.abs(x),
    "sign": lambda x, a, b: np.sign(x),
    "bipolar": lambda x, a, b: signs(x),
    "floor": lambda x, a, b: np.floor(x),
    "ceil": lambda x, a, b: np.ceil(x),
    "round": lambda x, a, b: np.round(x),
    "trunc": lambda x, a, b: np.trunc(x),
    "not": lambda x, a, b: np.logical_not(x),
    "isnan": lambda x, a, b: np.isnan(x),
    "sin": lambda x, a, b: np.sin(x),
    "cos": lambda x, a, b: np.cos(x),
    "pow": lambda x, a, b: _power(x, np.array(a)),
}

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": lambda x, y: _divide(x, y),
    "pow": lambda x, y: _power(x, y),
    "max": np.maximum,
    "min": np.minimum,
    "prelu": lambda x, slope: np.where(x < 0, slope * x, x),
    "equal": np.equal,
    "unequal": np.not_equal,
    "greater": np.greater,
    "greaterorequal": np.greater_equal,
    "less": np.less,
    "lessorequal": np.less_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "quotient": np.floor_divide,
    "mod": np.mod,
}

REDUCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "mean": lambda x, axes: np.mean(x, axes),
    "sum": lambda x, axes: np.sum(x, axes),
    "max": lambda x, axes: np.max(x, axes),
    "min": lambda x, axes: np.min(x, axes),
    "l2": lambda x, axes: np.sqrt(np.sum(x * x, axes)),
}


def _power(x: Array, y: Array) -> Array:
    """The power in the type of x; for integers its fraction is dropped."""
    if x.dtype.kind == "f" or y.dtype.kind == "f" or (y < 0).any():
        # Exponents get an array of their own. For a single exponent of 0.5 numpy takes the square
        # root, which differs at minus infinity: IEEE's power is infinite there.
        shape = np.broadcast_shapes(x.shape, y.shape)
        exponents = np.array(np.broadcast_to(y, shape), np.float64)
        power: Array = np.power(x.astype(np.float64), exponents).astype(x.dtype)
        return power
    return np.power(x, y).astype(x.dtype)


def _divide(x: Array, y: Array) -> Array:
    """The quotient; integer division rounds towards zero, as in C."""
    if x.dtype.kind == "f":
        return x / y
    rest = np.remainder(x, y)
    quotient: Array = x // y + ((rest != 0) & ((x < 0) != (y < 0))).astype(x.dtype)
    return quotient


def arg_reduce(op: ArgReduce, x: Array) -> Array:
    """Places of extremes along an axis, without it."""
    function: Callable[..., Array] = np.argmax if op.function == "max" else np.argmin
    if not op.last:
        return function(x, op.axis)
    places: Array = x.shape[op.axis] - 1 - function(np.flip(x, op.axis), op.axis)
    return places


def top_k(x: Array, axis: int, count: int, largest: bool) -> Array:
    """The places of the first elements along an axis in the order of their size.

    Of equal ones the first come first; NaN counts as larger than all numbers.
    """
    rows = np.moveaxis(x, axis, -1)
    found = _first(rows, count, largest)
    order = _order(np.take_along_axis(rows, found, -1), largest)
    places: Array = np.take_along_axis(found, order, -1).astype(np.int64)
    return np.moveaxis(places, -1, axis)


def _first(rows: Array, k: int, largest: bool) -> Array:
    """Where the first k of each row are, in ascending order; of equal values the first ones."""
    size = rows.shape[-1]
    whole = np.broadcast_to(np.arange(size), rows.shape)
    if k in (0, size) or np.isnan(rows).any():
        return np.sort(_order(rows, largest)[..., :k], -1) if 0 < k < size else whole[..., :k]
    place = size - k if largest else k - 1
    last = np.partition(rows, place, -1)[..., place : place + 1]
    taken, equal = rows > last if largest else rows < last, rows == last
    free = k - taken.sum(-1, keepdims=True)
    taken |= equal & (np.cumsum(equal, -1) <= free)
    found: Array = whole[taken].reshape(*rows.shape[:-1], k)
    return found


def _order(rows: Array, largest: bool) -> Array:
    """The order that sorts each row; equal values keep theirs."""
    if not largest:
        return np.argsort(rows, -1, kind="stable")
    turned = np.argsort(rows[..., ::-1], -1, kind="stable")
    order: Array = rows.shape[-1] - 1 - turned[..., ::-1]
    return order


def gather_nd(x: Array, indices: Array, batch: int) -> Array:
    """Entries at points; the first `batch` axes are those of the indices too."""
    depth, images = indices.shape[-1], math.prod(x.shape[:batch])
    parts = x.reshape(images, *x.shape[batch:])
    places = indices.reshape(images, -1, depth)
    image = np.arange(images)[:, None]
    found: Array = parts[(image, *np.moveaxis(places, -1, 0))]
    return found.reshape(*indices.shape[:-1], *x.shape[batch + depth :])


def cum_sum(op: CumSum, x: Array) -> Array:
    """Running sums in the type of x."""
    turned = np.flip(x, op.axis) if op.backwards else x
    sums: Array = np.cumsum(turned, op.axis, dtype=x.dtype)
    if op.exclusive:
        sums = np.roll(sums, 1, op.axis)
        sums[(slice(None),) * op.axis + (slice(0, 1),)] = 0
    return np.flip(sums, op.axis) if op.backwards else sums


def conv(
    op: Conv, x: Array, weights: Array, bias: Array | None = None, add: Array | None = None
) -> Array:
    """The convolution as the kernels' reference computes it; a 1-D one has height 1 there."""
    p = problem_of(op, x.shape, weights.shape)
    if add is not None:
        add = add.reshape(p.n, p.oc, p.oh, p.ow)
    y = convolve(p, x.reshape(p.n, p.c, p.h, p.w), weights.reshape(p.weight_shape), bias, add)
    return y[:, :, 0] if x.ndim == 3 else y


def depthwise_volume(
    op: DepthwiseVolume, shape: Shape, x: Array, weights: Array, bias: Array | None = None
) -> Array:
    """The depthwise convolution: every tap adds its multiple of the pixels that it meets."""
    rank = len(op.stride)
    pads = list(zip(op.padding[:rank], op.padding[rank:], strict=True))
    padded, y = np.pad(x, [(0, 0), (0, 0), *pads]), np.zeros(shape)
    for tap, window in _taps(weights.shape[2:], op.dilation, op.stride, shape[2:]):
        y += padded[window] * along_channels(weights[tap][:, 0], x)
    return y if bias is None else y + along_channels(bias, y)


def conv_transpose(
    op: ConvTranspose, shape: Shape, x: Array, weights: Array, bias: Array | None = None
) -> Array:
    """The transposed convolution: every input pixel adds its multiple of the filter."""
    n, c, *space = x.shape
    kernel, g = weights.shape[2:], op.groups
    begins, ends = op.padding[: len(space)], op.padding[len(space) :]
    sizes = (o + b + _positive(e) for o, b, e in zip(shape[2:], begins, ends, strict=True))
    full = np.zeros((n, g, shape[1] // g, *sizes))
    grouped = x.reshape(n, g, c // g, *space)
    filters = weights.reshape(g, c // g, shape[1] // g, *kernel)
    for tap, window in _taps(kernel, op.dilation, op.stride, space):
        full[window] += np.einsum("ngi...,gio->ngo...", grouped, filters[tap])
    inside = tuple(slice(b, b + size) for b, size in zip(begins, shape[2:], strict=True))
    y = full[:, :, :, *inside].reshape(shape)
    return y if bias is None else y + along_channels(bias, y)


def pool(op: Pool, shape: Shape, x: Array) -> Any:
    """The maximum or the mean of each window; `op` says whether a mean counts padding."""
    rank = len(op.kernel)
    pads = list(zip(op.padding[:rank], op.padding[rank:], strict=True))
    # The windows that `ceil` adds reach beyond the padding.
    beyond = [
        (0, _positive((o - 1) * s + (k - 1) * d + 1 - i - sum(p)))
        for o, s, k, d, i, p in zip(
            shape[2:], op.stride, op.kernel, op.dilation, x.shape[2:], pads, strict=True
        )
    ]

    def padded(values: Array, inside: float, outside: float) -> Array:
        values = np.pad(values, [(0, 0), (0, 0), *pads], constant_values=inside)
        return np.pad(values, [(0, 0), (0, 0), *beyond], constant_values=outside)

    taps = list(_taps(op.kernel, op.dilation, op.stride, shape[2:]))
    if op.function == "max":
        least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        values = padded(x, least, least)
        return np.max([values[window] for _, window in taps], axis=0)
    values = padded(x, 0, 0)
    counted = padded(np.ones(x.shape), float(op.count_padding), 0)
    return sum(values[window] for _, window in taps) / sum(counted[window] for _, window in taps)


def _taps(
    kernel: Ints, dilation: Ints, stride: Ints, counts: Sequence[int]
) -> Iterator[tuple[Any, Any]]:
    """Index expressions of each position in a window and of its pixels in all windows."""
    for tap in itertools.product(*map(range, kernel)):
        window = (
            slice(t * d, t * d + (count - 1) * s + 1, s)
            for t, d, s, count in zip(tap, dilation, stride, counts, strict=True)
        )
        yield (..., *tap), (..., *window)


def _positive(value: int) -> int:
    return max(value, 0)


def lrn(op: LRN, x: Array) -> Array:
    """Local response normalisation, over the squares in neighbouring channels."""
    before = (op.size - 1) // 2
    squares = np.pad(x * x, [(0, 0), (before, op.size - 1 - before)] + [(0, 0)] * (x.ndim - 2))
    total = np.sum([squares[:, i : i + x.shape[1]] for i in range(op.size)], axis=0)
    y: Array = x / (op.bias + op.alpha / op.size * total) ** op.beta
    return y


def softmax(op: Softmax, x: Array) -> Array:
    """Softmax along an axis, or its logarithm if `op.log`."""
    shifted = x - x.max(op.axis, keepdims=True)
    logarithm: Array = shifted - np.log(np.exp(shifted).sum(op.axis, keepdims=True))
    return logarithm if op.log else np.exp(logarithm)


def gemm(op: Gemm, a: Array, b: Array, c: Array | None = None) -> Array:
    """`alpha * a @ b + beta * c`, each matrix transposed first if `op` says so."""
    product = matmul(a.T if op.transpose_a else a, b.T if op.transpose_b else b)
    return op.alpha * product if c is None else op.alpha * product + op.beta * c


def pad(op: Pad, x: Array) -> Array:
    """Padding round x; a negative amount crops."""
    begins, ends = op.padding[: x.ndim], op.padding[x.ndim :]
    cropped = x[
        tuple(
            slice(max(-b, 0), size - max(-e, 0))
            for b, e, size in zip(begins, ends, x.shape, strict=True)
        )
    ]
    widths = [(max(b, 0), max(e, 0)) for b, e in zip(begins, ends, strict=True)]
    if op.mode == "constant":
        return np.pad(cropped, widths, constant_values=op.value)
    return np.pad(cropped, widths, mode="edge" if op.mode == "edge" else "reflect")


def resize(op: Resize, shape: Shape, x: Array) -> Array:
    """Interpolation, one axis after another."""
    for axis, (out, scale) in enumerate(zip(shape, op.scales, strict=True)):
        if scale == 1 and out == x.shape[axis]:
            continue
        at = _source(op.coordinates, x.shape[axis], out, scale)
        last = x.shape[axis] - 1
        if op.mode == "nearest":
            index = _ROUNDINGS[op.rounding](at).astype(np.int64).clip(0, last)
            x = x.take(index, axis)
            continue
        low = np.floor(at)
        weight = (at - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        below, above = (v.astype(np.int64).clip(0, last) for v in (low, low + 1))
        x = x.take(below, axis) * (1 - weight) + x.take(above, axis) * weight
    return x


_ROUNDINGS: dict[str, Callable[[F64], F64]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _source(coordinates: str, size: int, out: int, scale: float) -> F64:
    """The input coordinate of each output pixel, in float32: its rounding decides ties."""
    x, by, half = np.arange(out, dtype=np.float32), np.float32(scale), np.float32(0.5)
    match coordinates:
        case "asymmetric":
            at = x / by
        case "align_corners":
            at = x * np.float32(size - 1) / np.float32(max(out - 1, 1))
        case "pytorch_half_pixel" if out == 1:
            at = x
        case "half_pixel_symmetric":
            centre = np.float32(size) / 2
            at = centre * (1 - np.float32(out) / (by * np.float32(size))) + (x + half) / by - half
        case _:
            at = (x + half) / by - half
    return at.astype(np.float64)


def attention(op: Attention, x: Array, context: Array | None, mask: Array | None) -> Array:
    """Attention, head by head."""
    n, *space = x.shape[0], *x.shape[2:]
    beside = x if context is None else context
    flat = (x.reshape(*x.shape[:2], -1), *[beside.reshape(*beside.shape[:2], -1)] * 2)
    found = []
    for i in range(op.heads):
        starts = (of.start + i * of.step for of in (op.q, op.k, op.v))
        q, k, v = (
            a[:, first : first + of.size]
            for a, of, first in zip(flat, (op.q, op.k, op.v), starts, strict=True)
        )
        scores = op.scale * matmul(q.swapaxes(1, 2), k)
        if mask is not None:
            scores += np.tile(mask[:, i % mask.shape[1]], (n // len(mask), 1, 1))
        powers = np.exp(scores - scores.max(-1, keepdims=True))
        found.append(matmul(v, (powers / powers.sum(-1, keepdims=True)).swapaxes(1, 2)))
    return np.concatenate(found, 1).reshape(n, -1, *space)


def rotary(op: Rotary, x: Array, cos: Array, sin: Array) -> Array:
    """The heads with their pairs of numbers turned."""
    channels = np.arange(op.heads)[:, None] * op.of.step + op.of.start + np.arange(op.of.size)
    heads = x.reshape(*x.shape[:2], -1)[:, channels]  # (images, heads, numbers, pixels)
    turned: Array = heads * cos.T + heads[:, :, op.pairs] * sin.T
    return turned.reshape(len(x), -1, *x.shape[2:])


def along_channels(values: Array, x: Array) -> Array:
    """Values per channel, in a shape that broadcasts to x."""
    return values.reshape(-1, *(1,) * (x.ndim - 2))

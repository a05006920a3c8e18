"""Decides the shape of an operator's result, and answers other questions about shapes.

ONNX's own shape inference is not used for it: for pools and transposed convolutions it differs
between opsets, and from the results that engines compute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastrun.graph.core.model import Graph, Node, Shape
from fastrun.graph.core.ops import (
    LRN,
    Affine,
    Attention,
    BatchNorm,
    Binary,
    ByteFunction,
    Cast,
    ChannelShuffle,
    Clip,
    Concat,
    Conv,
    ConvTranspose,
    CumSum,
    DepthToSpace,
    DepthwiseVolume,
    Gather,
    GatherElements,
    GatherND,
    Gemm,
    GridSample,
    GroupNorm,
    Identity,
    Ints,
    LayerNorm,
    MatMul,
    Op,
    Pad,
    Pool,
    Recurrent,
    Rotary,
    Slice,
    Softmax,
    TopK,
    Transpose,
    Unary,
    Where,
)
from fastrun.kernels.core.layout import NCHW, NHWC, Layout


def result_shape(op: Op, shapes: Sequence[Shape]) -> Shape | None:
    """The shape of the result; None if the operator and its operands do not determine it.

    Raises:
        ValueError: the operands do not fit each other; the message says why.
    """
    x = shapes[0]
    match op:
        case Conv(stride, padding, dilation) | DepthwiseVolume(stride, padding, dilation):
            window = spans(shapes[1][2:], dilation)
            return (x[0], shapes[1][0], *windows(x[2:], window, stride, padding))
        case Pool(_, kernel, stride, padding, dilation, ceil):
            return (*x[:2], *windows(x[2:], spans(kernel, dilation), stride, padding, ceil))
        case ConvTranspose(stride, padding, dilation, groups):
            full = full_size(x[2:], spans(shapes[1][2:], dilation), stride)
            begins, ends = padding[: len(full)], padding[len(full) :]
            sizes = (n - b - e for n, b, e in zip(full, begins, ends, strict=True))
            return _positive((x[0], shapes[1][1] * groups, *sizes))
        case Gemm(transpose_a=a, transpose_b=b):
            left, right = x[:: -1 if a else 1], shapes[1][:: -1 if b else 1]
            return _onto(_product(left, right), shapes[2:])
        case MatMul():
            return _product(*shapes[:2])
        case Binary(function="prelu"):
            return _onto(x, shapes[1:])
        case Binary() | Where():
            return np.broadcast_shapes(*shapes)
        case Concat(axis):
            others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
            if len(others) > 1:
                _misfit(shapes)
            return (*x[:axis], sum(shape[axis] for shape in shapes), *x[axis + 1 :])
        case Slice(sizes=sizes):
            return sizes
        case Pad(padding):
            begins, ends = padding[: len(x)], padding[len(x) :]
            return tuple(n + b + e for n, b, e in zip(x, begins, ends, strict=True))
        case Transpose(order):
            if sorted(order) != list(range(len(x))):
                raise ValueError(f"{order} is not an order of {len(x)} axes")
            return tuple(x[axis] for axis in order)
        case DepthToSpace(size, crop):
            if x[1] % math.prod(size):
                raise ValueError(f"{x[1]} channels are no blocks of {'x'.join(map(str, size))}")
            axes = zip(x[2:], size, crop, strict=True)
            return (x[0], x[1] // math.prod(size), *(n * s - 2 * cut for n, s, cut in axes))
        case Attention(heads=heads, v=v):
            return (x[0], heads * v.size, *x[2:])
        case Rotary(heads=heads, of=of):
            return (x[0], heads * of.size, *x[2:])
        case Recurrent(backwards=backwards, keeps_cell=keeps_cell):
            return (x[0] + keeps_cell, len(backwards), x[1], shapes[1][-1])
        case GridSample():
            return (*x[:2], *shapes[1][1:-1])
        case Gather(axis):
            return (*x[:axis], *shapes[1], *x[axis + 1 :])
        case GatherND(batch):
            return (*shapes[1][:-1], *x[batch + shapes[1][-1] :])
        case GatherElements():
            return shapes[1]
        case TopK(axis, count):
            return (*x[:axis], count, *x[axis + 1 :])
        case (
            Affine() | BatchNorm() | LRN() | LayerNorm() | GroupNorm() | Unary() | Clip()
            | Softmax() | Cast() | Identity() | ChannelShuffle() | CumSum() | ByteFunction()
        ):  # fmt: skip
            return x
    return None


def interleaved(rank: int) -> Ints:
    """The order of axes that moves places of blocks behind the pixels that they split.

    From (n, *places, c, *pixels) to (n, c, pixel, place, pixel, place), for `rank` axes of pixels.
    """
    pairs = ((rank + 2 + i, 1 + i) for i in range(rank))
    return (0, rank + 1, *(axis for pair in pairs for axis in pair))


def windows(space: Shape, sizes: Ints, stride: Ints, padding: Ints, ceil: bool = False) -> Shape:
    """The number of windows along each axis; `sizes` are theirs, dilation included.

    `ceil` keeps a last window that is partly outside, if it begins in the input or in front of it.
    """
    counts = []
    for axis, (size, span, step) in enumerate(zip(space, sizes, stride, strict=True)):
        before, after = padding[axis], padding[axis + len(space)]
        room = size + before + after - span
        if room < 0:
            raise ValueError(f"a window of {span} does not fit into {size} + {before} + {after}")
        count = room // step + 1
        if ceil and room % step and count * step < size + before:
            count += 1
        counts.append(count)
    return tuple(counts)


def sees_pixels(op: Pool, space: Shape) -> bool:
    """Whether every window has a pixel of the input."""
    counts = windows(space, spans(op.kernel, op.dilation), op.stride, op.padding, op.ceil)
    for axis, (size, count) in enumerate(zip(space, counts, strict=True)):
        k, d, s, p = op.kernel[axis], op.dilation[axis], op.stride[axis], op.padding[axis]
        # The last window begins after the input, or the first one ends before it.
        if (count - 1) * s - p >= size or -(-p // d) >= k:
            return False
        # A dilated window that begins before the input has no tap in it.
        before = min(-(-p // s), count, d)
        if d > size and any((o * s - p) % d >= size for o in range(before)):
            return False
    return True


def full_size(space: Shape, sizes: Ints, stride: Ints) -> Shape:
    """The size of a transposed convolution's result before anything is cut off."""
    return tuple((n - 1) * s + size for n, size, s in zip(space, sizes, stride, strict=True))


def spans(kernel: Ints, dilation: Ints) -> Ints:
    """The size of a window along each axis, dilation included."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def _product(a: Shape, b: Shape) -> Shape:
    if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
        _misfit((a, b))
    return (*np.broadcast_shapes(a[:-2], b[:-2]), a[-2], b[-1])


def _onto(shape: Shape, others: Sequence[Shape]) -> Shape:
    """The shape, if the others broadcast to it."""
    if np.broadcast_shapes(shape, *others) != shape:
        _misfit((shape, *others))
    return shape


def _positive(shape: Shape) -> Shape:
    if min(shape) < 1:
        raise ValueError(f"its result would have the shape {shape}")
    return shape


def _misfit(shapes: Sequence[Shape]) -> Shape:
    raise ValueError(f"its operands do not fit: {', '.join(map(str, shapes))}")


Shape4 = tuple[int, int, int, int]


def shape4(shape: Shape) -> Shape4:
    """A shape as (n, c, h, w), of the same values in row-major order."""
    if len(shape) <= 2:
        n, c = (1, 1, *shape)[-2:]
        return n, c, 1, 1
    return shape[0], shape[1], math.prod(shape[2:-1]), shape[-1]


def pair(values: Ints, filler: int) -> tuple[int, int]:
    """Values per spatial axis as (vertical, horizontal); `filler` is vertical for a single axis."""
    return (filler, values[0]) if len(values) == 1 else (values[0], values[1])


def is_range(graph: Graph, node: Node) -> bool:
    """Whether a slice takes a range of channels and nothing else."""
    op = node.op
    assert isinstance(op, Slice)
    before, after = graph.shape(node.inputs[0]), graph.shape(node.output)
    others = [a == b for i, (a, b) in enumerate(zip(before, after, strict=True)) if i != 1]
    return (
        len(after) > 1
        and all(others)
        and op.steps[1] == 1
        and not any(start for i, start in enumerate(op.starts) if i != 1)
    )


def is_depthwise(graph: Graph, node: Node) -> bool:
    """Whether a convolution computes every channel from the same channel of its input."""
    assert isinstance(node.op, Conv)
    weights = graph.shape(node.inputs[1])
    return 1 < node.op.groups == weights[0] and weights[1] == 1


# The orders of axes that bring channels last, and first again, by rank.
CHANNELS_LAST, CHANNELS_FIRST = {3: (0, 2, 1), 4: (0, 2, 3, 1)}, {3: (0, 2, 1), 4: (0, 3, 1, 2)}


def same_memory(order: Shape, src: Layout, dst: Layout) -> bool:
    """Whether a transpose from one layout to another keeps every value in its place."""
    pair = src.order, dst.order
    to_last = order in CHANNELS_LAST.values() and pair == (NHWC, NCHW)
    return to_last or (order in CHANNELS_FIRST.values() and pair == (NCHW, NHWC))

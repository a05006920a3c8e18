"""Lowers windows of three axes: convolutions and pools of planes do their work."""

from __future__ import annotations

import math

from fastrun.graph.core.model import Shape
from fastrun.graph.core.ops import Concat, Conv, Ints, Pad, Pool, Reshape, Slice, Transpose
from fastrun.graph.core.shapes import spans, windows
from fastrun.graph.frontend.lowering.site import Site

# Depth first among the axes of an image, and channels first again.
_SWAP = (0, 2, 1, 3, 4)


def convolve_volume(site: Site, op: Conv) -> None:
    """A convolution of constant weights, in one group: the planes of a window become channels.

    Every plane of the result is an image of a convolution of two axes.
    """
    weights = site.constant(1, "weights")
    outputs, c, depth = weights.shape[:3]
    x, shape, window = site.inputs[0], site.shape(0), spans(weights.shape[2:], op.dilation)
    try:
        planes = windows(shape[2:], window, op.stride, op.padding)
    except ValueError as error:
        raise site.impossible(str(error)) from None
    if op.padding[0] or op.padding[3]:
        depths = (0, 0, op.padding[0], 0, 0, 0, 0, op.padding[3], 0, 0)
        x = site.emit(Pad(depths, "constant", 0.0), x)
    x = site.emit(Transpose(_SWAP), x)
    n, _, _, h, w = site.shape_of(x)
    by, ones = op.stride[0], (1, 1, 1)
    parts = [
        site.emit(
            Slice((0, k * op.dilation[0], 0, 0, 0), (n, planes[0], c, h, w), (1, by, *ones)), x
        )
        for k in range(depth)
    ]
    joined = site.emit(Concat(2), *parts) if depth > 1 else parts[0]
    images = site.emit(Reshape(), joined, shape=(n * planes[0], depth * c, h, w))
    flat = weights.transpose(0, 2, 1, 3, 4).reshape(outputs, depth * c, *weights.shape[3:])
    padding = (*op.padding[1:3], *op.padding[4:6])
    conv = Conv(op.stride[1:], padding, op.dilation[1:])
    y = site.emit(conv, images, site.put(flat.copy()), *site.inputs[2:])
    apart = site.emit(Reshape(), y, shape=(n, planes[0], outputs, *planes[1:]))
    site.finish(Transpose(_SWAP), apart)


def pool_volume(site: Site, op: Pool) -> None:
    """A pool of each plane, then one along the depth: maxima and means of windows are separable."""
    n, c, d, h, w = site.shape(0)
    out = windows((d, h, w), spans(op.kernel, op.dilation), op.stride, op.padding, op.ceil)

    def pooled(x: str, shape: Shape, axes: Ints) -> str:
        """A pool of these axes, or of one of them and another axis, along which nothing happens."""

        def of(values: Ints, filler: int) -> Ints:
            return (*(values[i] for i in axes), *(filler,) * (2 - len(axes)))

        padding = (*of(op.padding[:3], 0), *of(op.padding[3:], 0))
        kernel, stride, dilation = (of(v, 1) for v in (op.kernel, op.stride, op.dilation))
        flat = Pool(op.function, kernel, stride, padding, dilation, op.ceil, op.count_padding)
        return site.emit(flat, site.emit(Reshape(), x, shape=shape))

    planes = pooled(site.inputs[0], (n, c * d, h, w), (1, 2))
    y = pooled(planes, (n, c, d, math.prod(out[1:])), (0,))
    site.finish(Reshape(), y, shape=(n, c, *out))

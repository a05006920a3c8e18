"""Lowers convolutions whose weights are computed: a matrix product of what each window sees.

Such weights come from modulation (StyleGAN), mixtures of experts (CondConv) and trackers that
correlate two images.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from fastrun.graph.core.model import Shape
from fastrun.graph.core.ops import Binary, Concat, Conv, MatMul, Pad, Reshape, Slice, Transpose
from fastrun.graph.core.shapes import CHANNELS_FIRST, CHANNELS_LAST, spans, windows
from fastrun.graph.frontend.lowering.site import Site


def convolve_computed(site: Site, op: Conv) -> None:
    """A convolution of any weights: a row of a matrix has what a window sees, tap after tap.

    Every group of an image is an image of its own.
    """
    shape, weights = site.shape(0), site.shape(1)
    n, kernel, groups = shape[0], weights[2:], op.groups
    try:
        out = windows(shape[2:], spans(kernel, op.dilation), op.stride, op.padding)
    except ValueError as error:
        raise site.impossible(str(error)) from None
    taps, each = math.prod(kernel), (groups, weights[0] // groups, weights[1])
    matrix = site.emit(Reshape(), site.inputs[1], shape=(*each, taps))
    matrix = site.emit(Transpose((0, 3, 2, 1)), matrix)
    matrix = site.emit(Reshape(), matrix, shape=(1, groups, taps * each[2], each[1]))
    y = site.emit(MatMul(), _seen(site, op, kernel, out), matrix)
    y = site.emit(Reshape(), y, shape=(n * groups, *out, each[1]))
    y = site.emit(Transpose(CHANNELS_FIRST[len(shape)]), y)
    if site.has(2):
        y = site.emit(Reshape(), y, shape=(n, weights[0], *out))
        wide = (weights[0], *(1,) * len(out))
        y = site.emit(Binary("add"), y, site.emit(Reshape(), site.inputs[2], shape=wide))
    site.finish(Reshape(), y, shape=(n, weights[0], *out))


def _seen(site: Site, op: Conv, kernel: Shape, out: Shape) -> str:
    """What the windows see, (n, groups, windows, taps * channels of a group)."""
    (n, c, *space), rank = site.shape(0), len(kernel)
    images, channels = n * op.groups, c // op.groups
    taps = [
        tuple(i * d for i, d in zip(tap, op.dilation, strict=True))
        for tap in itertools.product(*map(range, kernel))
    ]
    rows = (n, op.groups, math.prod(out), len(taps) * channels)
    if site.is_constant(0):
        pads = zip(op.padding[:rank], op.padding[rank:], strict=True)
        given = np.pad(site.constant(0, "input"), ((0, 0), (0, 0), *pads))
        given = given.reshape(images, channels, *given.shape[2:])
        ends = (
            tuple(i + m * s for i, m, s in zip(tap, out, op.stride, strict=True)) for tap in taps
        )
        parts = (
            given[:, :, *map(slice, tap, end, op.stride)]
            for tap, end in zip(taps, ends, strict=True)
        )
        return site.put(np.moveaxis(np.concatenate([*parts], 1), 1, -1).reshape(rows))
    x = site.emit(Reshape(), site.inputs[0], shape=(images, channels, *space))
    if any(op.padding):
        padding = (0, 0, *op.padding[:rank], 0, 0, *op.padding[rank:])
        x = site.emit(Pad(padding, "constant", 0.0), x)
    views = (Slice((0, 0, *tap), (images, channels, *out), (1, 1, *op.stride)) for tap in taps)
    shifted = [site.emit(view, x) for view in views]
    whole = site.emit(Concat(1), *shifted) if len(taps) > 1 else shifted[0]
    last = site.emit(Transpose(CHANNELS_LAST[rank + 2]), whole)
    return site.emit(Reshape(), last, shape=rows)

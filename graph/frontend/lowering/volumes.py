"""Lowers windows of three axes: those of images, of one or two axes, do their work.

A volume becomes images through an order of axes in which channels are last. There, planes are
images of their own, or rows of one image, without a move, if kernels leave channels last too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastrun.graph.core.model import Array, Shape
from fastrun.graph.core.ops import (
    Binary,
    Concat,
    Conv,
    ConvTranspose,
    DepthwiseVolume,
    Ints,
    Pad,
    Pool,
    Reshape,
    Slice,
    Transpose,
)
from fastrun.graph.core.shapes import CHANNELS_FIRST, CHANNELS_LAST, full_size, spans, windows
from fastrun.graph.frontend.lowering.site import Site

_FIRST, _LAST = Transpose(CHANNELS_FIRST[4]), Transpose(CHANNELS_LAST[4])


def convolve_volume(site: Site, op: Conv) -> None:
    """A convolution of constant weights.

    Where each channel has a filter of its own, one kernel computes it. Along the depth alone it is
    one of an image whose rows are planes. Otherwise every plane of the result is an image: in one
    group, the planes that a window sees become channels; in several, a convolution for each of them
    adds to the others.
    """
    weights, bias = site.constant(1, "weights"), site.inputs[2] if site.has(2) else ""
    n, c, *space = site.shape(0)
    try:
        out = windows(tuple(space), spans(weights.shape[2:], op.dilation), op.stride, op.padding)
    except ValueError as error:
        raise site.impossible(str(error)) from None
    if op.groups == c == len(weights) and site.tensor(0).dtype == np.float32:
        site.finish(DepthwiseVolume(op.stride, op.padding, op.dilation), *site.inputs)
        return
    result, count = (n, len(weights), *out), weights.shape[2]
    around = (*op.padding[1:3], *op.padding[4:])
    if {*weights.shape[3:], *op.stride[1:]} == {1} and not any(around):
        image = site.emit(Reshape(), site.inputs[0], shape=(n, c, space[0], math.prod(space[1:])))
        before, behind = op.padding[0], op.padding[3]
        conv = Conv((op.stride[0], 1), (before, 0, behind, 0), (op.dilation[0], 1), op.groups)
        y = site.emit(conv, image, site.put(weights[..., 0], site.inputs[1]), bias)
        site.finish(Reshape(), y, shape=result)
        return
    x = _channels_last(site, site.inputs[0], (op.padding[0], op.padding[3]))
    starts = [tap * op.dilation[0] for tap in range(count)]
    seen = [_planes(site, x, start, out[0], op.stride[0]) for start in starts]
    conv = Conv(op.stride[1:], around, op.dilation[1:], op.groups)
    taps = [weights[:, :, tap] for tap in range(count)]
    y = _of_planes(site, conv, seen, taps, (space[1], space[2]), bias, channels=1)
    y = site.emit(_LAST, y)
    y = site.emit(Reshape(), y, shape=(n, out[0], math.prod(out[1:]), len(weights)))
    site.finish(Reshape(), site.emit(_FIRST, y), shape=result)


def transpose_volume(site: Site, op: ConvTranspose) -> None:
    """A transposed convolution of constant weights.

    Planes a stride apart, a phase, are sums over the taps that reach them, as in a convolution.
    """
    weights, bias = site.constant(1, "weights"), site.inputs[2] if site.has(2) else ""
    n, _, *space = site.shape(0)
    outputs, step, before = weights.shape[1] * op.groups, op.stride[0], op.padding[0]
    full = full_size(tuple(space), spans(weights.shape[2:], op.dilation), op.stride)
    cuts = zip(full, op.padding[:3], op.padding[3:], strict=True)
    depth, *others = (size - begin - end for size, begin, end in cuts)
    if min(depth, *others) < 1:
        raise site.impossible(f"its result would have the sizes {(depth, *others)}")
    count = -(-depth // step)
    # Output plane j * step + phase is reached from input plane j + start by these taps.
    reached: list[list[tuple[int, int]]] = [[] for _ in range(step)]
    for tap in range(weights.shape[2]):
        for phase in range(step):
            start, rest = divmod(phase + before - tap * op.dilation[0], step)
            if not rest:
                reached[phase].append((tap, start))
    starts = [start for taps in reached for _, start in taps] or [0]
    low, high = min(0, *starts), max(0, *starts) + count - space[0]
    x = _channels_last(site, site.inputs[0], (-low, max(high, 0)))
    plane = ConvTranspose(
        op.stride[1:], (*op.padding[1:3], *op.padding[4:]), op.dilation[1:], op.groups
    )
    phases = []
    for taps in reached:
        # Nothing but the bias reaches a phase without taps.
        tiles = [weights[:, :, tap] for tap, _ in taps] or [np.zeros_like(weights[:, :, 0])]
        seen = [_planes(site, x, start - low, count, 1) for _, start in taps or [(0, 0)]]
        y = _of_planes(site, plane, seen, tiles, (space[1], space[2]), bias, channels=0)
        y = site.emit(_LAST, y)
        phases.append(site.emit(Reshape(), y, shape=(n, count, 1, math.prod(others) * outputs)))
    y = site.emit(Concat(2), *phases) if step > 1 else phases[0]
    shape = (n, count * step, math.prod(others), outputs)
    y = site.emit(Reshape(), y, shape=shape)
    if depth < count * step:
        y = site.emit(Slice((0, 0, 0, 0), (n, depth, *shape[2:]), (1, 1, 1, 1)), y)
    site.finish(Reshape(), site.emit(_FIRST, y), shape=(n, outputs, depth, *others))


def _channels_last(site: Site, x: str, around: tuple[int, int]) -> str:
    """A volume as (n, depth, pixels of a plane, c), with empty planes in front and behind."""
    n, c, depth, h, w = site.shape_of(x)
    x = site.emit(_LAST, site.emit(Reshape(), x, shape=(n, c, depth, h * w)))
    if not any(around):
        return x
    return site.emit(Pad((0, around[0], 0, 0, 0, around[1], 0, 0), "constant", 0.0), x)


def _planes(site: Site, x: str, start: int, count: int, step: int) -> str:
    """Some planes of a volume with channels last."""
    n, depth, *plane = site.shape_of(x)
    if count == depth and not start:
        return x
    return site.emit(Slice((0, start, 0, 0), (n, count, *plane), (1, step, 1, 1)), x)


def _of_planes(
    site: Site,
    op: Conv | ConvTranspose,
    seen: Sequence[str],
    taps: Sequence[Array],
    plane: tuple[int, int],
    bias: str,
    channels: int,
) -> str:
    """The sum of what `op` computes of each tensor in `seen` with its weights in `taps`, as images.

    Axis `channels` of the weights has the input's channels.
    """

    def images(x: str) -> str:
        n, depth, _, c = site.shape_of(x)
        return site.emit(_FIRST, site.emit(Reshape(), x, shape=(n * depth, *plane, c)))

    if op.groups == 1:
        joined = site.emit(Concat(3), *seen) if len(seen) > 1 else seen[0]
        weights = site.put(np.concatenate(taps, channels), site.inputs[1])
        return site.emit(op, images(joined), weights, bias)
    total = ""
    for x, tap in zip(seen, taps, strict=True):
        weights = site.put(tap.copy(), site.inputs[1])
        part = site.emit(op, images(x), weights, "" if total else bias)
        total = site.emit(Binary("add"), total, part) if total else part
    return total


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

"""A pass that turns transposed convolutions into convolutions, which are fast and can be tuned.

Outputs a stride apart, a phase, are a convolution of the input with every stride-th tap. All phases
together are one convolution with `stride` times as many channels on every axis, whose results lie
interleaved (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016).
Phases may begin at different inputs, so that the common window has zeros among its taps. Where half
a stride is cut off the result, as for 4x4 filters of stride 2 with a padding of 1, that is avoided:
the convolution computes the result before it is cut, whose phases begin at the same input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Array, Graph, Node, Shape
from fastrun.graph.core.ops import (
    Conv,
    ConvTranspose,
    DepthToSpace,
    Gemm,
    Ints,
    Reshape,
    Slice,
    Transpose,
)
from fastrun.graph.passes.edit import Edit
from fastrun.graph.passes.products import MANY_ROWS

# Products of an output value from which on moving it once more does not matter.
PRODUCTS = 32
# Taps of an axis and channels with which Winograd pays, by the number of axes with several taps.
TAPS, CHANNELS = 7, {1: 32, 2: 8}


def convolve_transposed(graph: Graph) -> Graph:
    """Write transposed convolutions of many products as convolutions, or as dense layers."""
    edit = Edit(graph)
    for node in edit:
        op, weights = node.op, edit.constants.get(node.input(1))
        shape, bias = edit.shape(node.input(0)), edit.constants.get(node.input(2))
        if not isinstance(op, ConvTranspose) or weights is None or shape is None:
            continue
        grid = edit.grids.get(node.inputs[1])
        known = not node.input(2) or bias is not None
        if not known or op.groups > 1 or {*op.dilation} != {1}:
            continue
        if bias is None:
            bias = np.zeros(weights.shape[1], weights.dtype)
        outputs = edit.tensor(node.output).shape
        axes = [
            _Axis.narrowest(*sizes)
            for sizes in zip(
                shape[2:], outputs[2:], weights.shape[2:], op.stride, op.padding, strict=False
            )
        ]
        if math.prod(shape[2:]) == 1:
            _of_one_pixel(edit, node, op, _patch(weights, outputs[2:], op), bias, grid)
        elif len(axes) <= 2 and _pays(weights.shape, op.stride, axes, grid):
            _of_many_pixels(edit, node, op, axes, weights, bias, grid)
    return edit.done()


@dataclass(frozen=True)
class _Axis:
    """One axis: output `stride * j + phase` reads inputs j + `low` to j + `high` at most.

    `taps[phase][i]` is the filter's tap for input j + low + i, or -1 where there is none. There are
    `count` outputs of each phase; `before` and `after` are their padding. `crop` of all outputs
    are cut off at both ends afterwards.
    """

    low: int
    high: int
    count: int
    before: int
    after: int
    taps: list[list[int]]
    crop: int = 0

    @classmethod
    def narrowest(cls, inputs: int, outputs: int, kernel: int, stride: int, begin: int) -> _Axis:
        """The one with fewer taps: with half a stride of outputs more at both ends, or without."""
        plain = cls.of(inputs, outputs, kernel, stride, begin)
        crop = stride // 2
        if stride % 2 or begin < crop or outputs % stride:
            return plain
        wider = cls.of(inputs, outputs + 2 * crop, kernel, stride, begin - crop)
        better = len(wider.taps[0]) < len(plain.taps[0])
        return replace(wider, crop=crop) if better else plain

    @classmethod
    def of(cls, inputs: int, outputs: int, kernel: int, stride: int, begin: int) -> _Axis:
        """As for `ConvTranspose`: `begin` elements of the full result are cut off."""
        # Output i is the sum over t of tap s t + (i + begin) % s times input (i + begin) // s - t.
        found = dict[tuple[int, int], int]()
        for phase in range(stride):
            whole, first = divmod(phase + begin, stride)
            for t, tap in enumerate(range(first, kernel, stride)):
                found[phase, whole - t] = tap
        reads = [at for _, at in found]
        low, high, count = min(reads), max(reads), -(-outputs // stride)
        taps = [[found.get((p, at), -1) for at in range(low, high + 1)] for p in range(stride)]
        return cls(low, high, count, -low, count - 1 + high - (inputs - 1), taps)


def _pays(weights: Shape, stride: Ints, axes: list[_Axis], grid: Grid | None) -> bool:
    """Whether a convolution is faster: nothing is multiplied by zeros, or Winograd multiplies.

    Products of integers are so much faster that half of them may be with zeros.
    """
    c, oc, *kernel = weights
    if min(min(axis.before, axis.after) for axis in axes) < 0:
        return False  # it would not read all of its input
    if c * math.prod(kernel) < PRODUCTS * math.prod(stride):
        return False
    window = [axis.high - axis.low + 1 for axis in axes]
    if math.prod(window) * math.prod(stride) <= math.prod(kernel) * (2 if grid else 1):
        return True
    several = sum(taps > 1 for taps in window)
    channels = min(c, oc * math.prod(stride))
    return several > 0 and max(window) <= TAPS and channels >= CHANNELS[several]


def _of_many_pixels(
    edit: Edit,
    node: Node,
    op: ConvTranspose,
    axes: list[_Axis],
    weights: Array,
    bias: Array,
    grid: Grid | None,
) -> None:
    """A convolution of all phases, whose channels become blocks of pixels."""
    c, oc, *kernel = weights.shape
    ones, phases = (1,) * len(axes), math.prod(op.stride)
    # One more tap of zeros takes the place of those that there are not.
    filters = np.pad(weights, [(0, 0), (0, 0), *[(0, 1)] * len(kernel)])
    for i, axis in enumerate(axes):
        filters = filters.take(np.array(axis.taps), 2 + 2 * i)
    # (c, oc, phase, tap, phase, tap) -> (phase, phase, oc, c, tap, tap)
    rank = len(axes)
    order = (*range(2, 2 + 2 * rank, 2), 1, 0, *range(3, 3 + 2 * rank, 2))
    window = tuple(len(axis.taps[0]) for axis in axes)
    filters = filters.transpose(order).reshape(phases * oc, c, *window)
    if grid:
        grid = replace(grid, scale=np.tile(grid.scale, phases))
    inputs = (
        node.inputs[0],
        edit.constant(f"{node.name}.weights", np.ascontiguousarray(filters), grid),
        edit.constant(f"{node.name}.bias", np.tile(bias.reshape(-1), phases)),
    )
    padding = (*(axis.before for axis in axes), *(axis.after for axis in axes))
    shape, space = edit.tensor(node.output).shape, tuple(axis.count for axis in axes)
    conv = Conv(ones, padding, ones, activation=op.activation)
    if phases == 1:
        edit.replace(node, replace(node, op=conv, inputs=inputs))
        return
    product = edit.put(node, conv, inputs, (shape[0], phases * oc, *space))
    crop = tuple(axis.crop for axis in axes)
    spread = DepthToSpace(op.stride, crop)
    sizes = zip(space, op.stride, crop, strict=True)
    whole = tuple(n * each - 2 * cut for n, each, cut in sizes)
    if whole == shape[2:]:
        edit.replace(node, replace(node, op=spread, inputs=(product,)))
        return
    wide = edit.put(node, spread, (product,), (*shape[:2], *whole))
    cut = Slice((0,) * len(shape), shape, (1,) * len(shape))
    edit.replace(node, replace(node, op=cut, inputs=(wide,)))


def _patch(weights: Array, outputs: Shape, op: ConvTranspose) -> Array:
    """The part of the filter that one input pixel leaves in the output, with zeros beyond it."""
    begins, kernel = op.padding[: len(outputs)], weights.shape[2:]
    ends = [b + n for b, n in zip(begins, outputs, strict=True)]
    beyond = [(0, max(0, end - k)) for end, k in zip(ends, kernel, strict=True)]
    filled = np.pad(weights, [(0, 0), (0, 0), *beyond])
    part: Array = filled[:, :, *map(slice, begins, ends)]
    return part


def _of_one_pixel(
    edit: Edit, node: Node, op: ConvTranspose, patch: Array, bias: Array, grid: Grid | None
) -> None:
    """A dense layer: each output pixel is the product of the input pixel and its tap."""
    images, c = (edit.shape(node.inputs[0]) or ())[:2]
    matrix = patch.reshape(c, -1).T
    pixels = math.prod(patch.shape[2:])
    values = np.repeat(bias.reshape(-1), pixels)
    if grid:
        grid = replace(grid, scale=np.repeat(grid.scale, pixels))
    added = edit.constant(f"{node.name}.bias", values)
    if images < MANY_ROWS:
        name = edit.constant(f"{node.name}.weights", np.ascontiguousarray(matrix), grid)
        rows = edit.put(node, Reshape(), node.inputs[:1], (images, c))
        dense = Gemm(transpose_b=True, activation=op.activation)
        product = edit.put(node, dense, (rows, name, added), (images, len(matrix)))
    else:
        filters = np.ascontiguousarray(matrix)[..., None]
        name = edit.constant(f"{node.name}.weights", filters, grid)
        rows = edit.put(node, Reshape(), node.inputs[:1], (1, images, c))
        turned = edit.put(node, Transpose((0, 2, 1)), (rows,), (1, c, images))
        conv = Conv((1,), (0, 0), (1,), activation=op.activation)
        found = edit.put(node, conv, (turned, name, added), (1, len(matrix), images))
        product = edit.put(node, Transpose((0, 2, 1)), (found,), (1, images, len(matrix)))
    edit.replace(node, replace(node, op=Reshape(), inputs=(product,)))

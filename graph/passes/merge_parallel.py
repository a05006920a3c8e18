"""A pass that merges parallel convolutions whose results are added: their weights are added.

RepVGG, MobileOne and others train a 3x3 filter, a 1x1 filter and a normalisation in parallel (Ding
et al., 2021, "re-parameterisation"), and are often exported in this form.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastrun.graph.core.model import Array, Graph, Node
from fastrun.graph.core.ops import Affine, Binary, Conv
from fastrun.graph.passes.edit import Edit


def merge_parallel(graph: Graph) -> Graph:
    """Merge two convolutions of one tensor that are added, or a convolution and a scale."""
    edit = Edit(graph)
    for node in edit:
        if node.op != Binary("add") or len({edit.shape(x) for x in node.inputs}) > 1:
            continue
        sides = [edit.private_producer(x) for x in node.inputs]
        for wide, small in (sides, sides[::-1]):
            merged = _merged(edit, wide, small) if wide and small else None
            if wide and small and merged:
                merged = replace(merged, name=node.name, outputs=node.outputs)
                edit.merge(small, node, merged)
                edit.merge(wide, merged, merged)
                break
    return edit.done()


def _merged(edit: Edit, wide: Node, small: Node) -> Node | None:
    """A convolution that computes the sum of both, if the filter of `wide` has room for it."""
    op, shape = wide.op, edit.shape(wide.inputs[0])
    if not isinstance(op, Conv) or not _is_plain(edit, wide) or small.inputs[0] != wide.inputs[0]:
        return None
    weights = edit.constants[wide.inputs[1]]
    other, filters = small.op, weights
    if isinstance(other, Conv):
        if not _is_plain(edit, small) or (other.stride, other.groups) != (op.stride, op.groups):
            return None
        filters = edit.constants[small.inputs[1]]
    elif other == Affine() and shape and shape[1] == len(weights) and set(op.stride) == {1}:
        filters = _diagonal(edit.constants[small.inputs[1]], weights)
        other = Conv(op.stride, (0,) * len(op.padding), op.dilation, op.groups)
    else:
        return None
    corner = _corner(op, weights.shape[2:], other, filters.shape[2:])
    if corner is None:
        return None
    total = weights.astype(np.float64)
    places = [slice(first, first + n) for first, n in zip(corner, filters.shape[2:], strict=True)]
    total[slice(None), slice(None), *places] += filters
    biases = [x for x in (wide.input(2), small.input(2)) if x]
    inputs = [wide.inputs[0], edit.constant(f"{wide.name}.weights", total.astype(weights.dtype))]
    if biases:
        bias = np.sum([edit.constants[x].reshape(-1) for x in biases], axis=0, dtype=np.float64)
        inputs.append(edit.constant(f"{wide.name}.bias", bias.astype(weights.dtype)))
    return replace(wide, inputs=tuple(inputs))


def _is_plain(edit: Edit, node: Node) -> bool:
    """Whether a convolution has constant weights and bias, no residual and no activation.

    Weights on a grid are not plain: their sums with others would lie on none.
    """
    assert isinstance(node.op, Conv)
    known = all(x in edit.constants and x not in edit.grids for x in node.inputs[1:] if x)
    return known and not node.op.activation and not node.input(3)


def _diagonal(scale: Array, like: Array) -> Array:
    """The 1x1 filters, in groups as those of `like`, that multiply each channel by its scale."""
    channels, each = like.shape[:2]
    filters = np.zeros((channels, each, *(1,) * (like.ndim - 2)), scale.dtype)
    index = np.arange(channels)
    filters[index, index % each] = scale.reshape(-1, *(1,) * (like.ndim - 2))
    return filters


def _corner(
    wide: Conv, kernel: tuple[int, ...], small: Conv, filters: tuple[int, ...]
) -> list[int] | None:
    """The place of the filter of `small` in the filter of `wide`; None if it does not fit."""
    corner = []
    for i, (room, size) in enumerate(zip(kernel, filters, strict=True)):
        apart = wide.dilation[i]
        first, rest = divmod(wide.padding[i] - small.padding[i], apart)
        fits = 0 <= first <= room - size and not rest
        if not fits or (size > 1 and small.dilation[i] != apart):
            return None
        corner.append(first)
    return corner

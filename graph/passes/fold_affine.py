"""Passes that fold a scale and shift per channel into the weights of the node before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastrun.graph.core.grid import weight_axis
from fastrun.graph.core.model import Array, Graph, Node, Shape
from fastrun.graph.core.ops import (
    Affine,
    BatchNorm,
    Binary,
    Conv,
    ConvTranspose,
    DepthwiseVolume,
    Gemm,
)
from fastrun.graph.core.shapes import is_depthwise
from fastrun.graph.passes.edit import Edit

# A node's result is x * scale + shift, per channel: x, scale, shift.
_Scaling = tuple[str, Array, Array]


def normalise_affine(graph: Graph) -> Graph:
    """Write batch normalisation, and arithmetic with one constant per channel, as `Affine`.

    Arithmetic is rewritten only if it merges with another such node or will fold into weights.
    """
    edit = Edit(graph)
    for node in edit:
        scaling = _scaling(edit, node)
        if scaling is None:
            continue
        before = edit.private_producer(scaling[0])
        first = _scaling(edit, before) if before else None
        if before and first:
            x, scale, shift = first
            merged = x, scaling[1] * scale, scaling[1] * shift + scaling[2]
            edit.merge(before, node, _affine(edit, node, merged))
        elif isinstance(node.op, BatchNorm) or (before and _is_linear(before, edit)):
            edit.replace(node, _affine(edit, node, scaling))
    return edit.done()


def _scaling(edit: Edit, node: Node) -> _Scaling | None:
    """The scale and shift that a node applies, if it has one constant of each per channel."""
    match node.op:
        case BatchNorm(epsilon=epsilon) if all(x in edit.constants for x in node.inputs[1:]):
            scale, shift, mean, variance = (_wide(edit, x) for x in node.inputs[1:])
            factor = scale / np.sqrt(variance + epsilon)
            return node.inputs[0], factor, shift - mean * factor
        case Affine(activation=""):
            scale, shift = (_wide(edit, x) for x in node.inputs[1:])
            return node.inputs[0], scale, shift
        case Binary(function=function, activation=""):
            return _scaling_of_binary(edit, node, function)
    return None


def _scaling_of_binary(edit: Edit, node: Node, function: str) -> _Scaling | None:
    x, constant = node.inputs
    if x in edit.constants and function in ("add", "mul"):
        x, constant = constant, x
    shape = edit.shape(x)
    if constant not in edit.constants or shape is None or shape != edit.shape(node.output):
        return None
    if edit.constants[constant].dtype.kind != "f":
        return None
    values = _per_channel(_wide(edit, constant), shape)
    if values is None:
        return None
    one, zero = np.ones_like(values), np.zeros_like(values)
    match function:
        case "add":
            return x, one, values
        case "sub":
            return x, one, -values
        case "mul":
            return x, values, zero
        case "div":
            # The reciprocal of a very small divisor is infinite.
            with np.errstate(divide="ignore", over="ignore"):
                factor = 1 / values
                fits = np.isfinite(factor.astype(edit.dtype(node.output))).all()
            return (x, factor, zero) if fits else None
    return None


def _per_channel(values: Array, shape: Shape) -> Array | None:
    """The constant as (c,), if it has one value, or one per channel (axis 1); else None."""
    aligned = (1,) * (len(shape) - values.ndim) + values.shape
    if len(shape) < 2 or aligned not in (_one_per_channel(shape), (1,) * len(shape)):
        return None
    return np.broadcast_to(values.reshape(-1), (shape[1],))


def _one_per_channel(shape: Shape) -> Shape:
    """The shape of one value per channel that broadcasts to `shape`."""
    return (1, shape[1], *(1,) * (len(shape) - 2))


def _affine(edit: Edit, node: Node, scaling: _Scaling) -> Node:
    """An `Affine` in the place of `node`."""
    x, scale, shift = scaling
    dtype = edit.dtype(node.output)
    parameters = (
        edit.constant(f"{node.name}.scale", scale.astype(dtype)),
        edit.constant(f"{node.name}.shift", shift.astype(dtype)),
    )
    return Node(node.name, Affine(), (x, *parameters), node.outputs)


def fold_affine(graph: Graph) -> Graph:
    """Fold an `Affine` into the weights and bias of the convolution or dense layer before it.

    The scales of a grid on which the weights lie are multiplied, their integers stay as they are.
    """
    edit = Edit(graph)
    for node in edit:
        if node.op != Affine():
            continue
        before = edit.private_producer(node.inputs[0])
        if before is None or not _is_linear(before, edit):
            continue
        scale, shift = (_wide(edit, x) for x in node.inputs[1:])
        weights = edit.constants[before.inputs[1]]
        if bias := before.input(2):
            shift = shift + scale * _wide(edit, bias).reshape(-1)
        scaled = weights * _per_output_channel(before, weights.shape, scale)
        grid, axis = edit.grids.get(before.inputs[1]), weight_axis(before.op)
        if grid and axis is not None:
            stored = np.moveaxis(grid.stored(weights, axis), axis, 0)
            if (grid := grid.scaled(stored, scale)) is None:
                continue
        parameters = (
            edit.constant(f"{before.name}.weights", scaled.astype(weights.dtype), grid),
            edit.constant(f"{before.name}.bias", shift.astype(weights.dtype)),
        )
        inputs = (before.inputs[0], *parameters)
        edit.merge(before, node, replace(before, inputs=inputs, outputs=node.outputs))
    return edit.done()


def fold_input_scale(graph: Graph) -> Graph:
    """Fold a scale per channel into the weights of the depthwise convolution behind it."""
    edit = Edit(graph)
    for node in edit:
        weights = edit.constants.get(node.input(1))
        if not isinstance(node.op, Conv) or weights is None or not is_depthwise(graph, node):
            continue
        before = edit.private_producer(node.inputs[0])
        scaling = _scaling(edit, before) if before else None
        if before is None or scaling is None or scaling[2].any():
            continue
        x, factors, _ = scaling
        grid = edit.grids.get(node.inputs[1])
        if grid and (grid := grid.scaled(grid.stored(weights), factors)) is None:
            continue
        scaled = (weights * _per_output_channel(node, weights.shape, factors)).astype(weights.dtype)
        name = edit.constant(f"{node.name}.weights", scaled, grid)
        edit.merge(before, node, replace(node, inputs=(x, name, *node.inputs[2:])))
    return edit.done()


def _is_linear(node: Node, edit: Edit) -> bool:
    """Whether scaling the constant weights and bias scales the node's whole result."""
    match node.op:
        case Conv(activation="") if not node.input(3):
            linear = True
        case ConvTranspose(activation="") | DepthwiseVolume(activation=""):
            linear = True
        case Gemm(alpha=1.0, beta=1.0, activation=""):
            # Other biases have one value per row, or one in all.
            weights = edit.shape(node.inputs[1]) or (0, 0)
            columns = weights[0 if node.op.transpose_b else 1]
            linear = not node.input(2) or edit.shape(node.input(2)) in ((columns,), (1, columns))
        case _:
            linear = False
    return linear and all(x in edit.constants for x in node.inputs[1:3] if x)


def _per_output_channel(node: Node, weights: Shape, scale: Array) -> Array:
    """One factor per output channel, in a shape that broadcasts to that of the weights."""
    match node.op:
        case ConvTranspose(groups=groups):
            # Weights are (groups * c, oc of one group, *kernel).
            rows = np.repeat(scale.reshape(groups, -1), weights[0] // groups, axis=0)
            return rows.reshape(*rows.shape, *(1,) * (len(weights) - 2))
        case Gemm(transpose_b=False):
            return scale
    return scale.reshape(-1, *(1,) * (len(weights) - 1))


def _wide(edit: Edit, constant: str) -> Array:
    return edit.constants[constant].astype(np.float64)

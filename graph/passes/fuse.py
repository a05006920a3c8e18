"""Passes that give a convolution or product its bias, its residual sum and its activation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import (
    Activating,
    Binary,
    ChannelShuffle,
    Concat,
    Conv,
    DepthToSpace,
    Gemm,
    MatMul,
    Op,
    Pool,
    Reshape,
    Transpose,
    Unary,
)
from fastrun.graph.passes.edit import Edit
from fastrun.graph.passes.patterns import is_standard_hardsigmoid
from fastrun.kernels.core.problem import ACTIVATIONS, slope


def fuse_add(graph: Graph) -> Graph:
    """Let a convolution add a tensor of its output's shape: the residual connection.

    If both operands are convolutions that nothing else reads, the first one adds the other.
    Exporters write the main path first; its problem is then the same as in the other blocks.
    A reshape may follow the convolution, as of volumes. The other operand is then reshaped before.
    """
    edit = Edit(graph)
    for node in edit:
        if node.op != Binary("add") or edit.shape(node.inputs[0]) != edit.shape(node.inputs[1]):
            continue
        for x, other in (node.inputs, node.inputs[::-1]):
            view = conv = edit.private_producer(x)
            if view and _joins_pixels(edit, view):
                conv = edit.private_producer(view.inputs[0])
            if conv is None or not isinstance(conv.op, Conv):
                continue
            if conv.op.activation or conv.input(3) or other in edit.constants:
                continue
            if view and view is not conv:
                _add_before(edit, conv, view, node, other)
                break
            inputs = (*conv.inputs[:2], conv.input(2), other)
            edit.merge(conv, node, replace(conv, inputs=inputs, outputs=node.outputs))
            break
    return edit.done()


def _joins_pixels(edit: Edit, node: Node) -> bool:
    """Whether a node is a reshape that keeps images and channels."""
    before, after = edit.shape(node.inputs[0]), edit.shape(node.output)
    return isinstance(node.op, Reshape) and (before or ())[:2] == (after or ())[:2]


def _add_before(edit: Edit, conv: Node, view: Node, node: Node, other: str) -> None:
    """Let `conv` add `other`, which `node` adds to its result behind the reshape `view`."""
    shape = edit.tensor(conv.output).shape
    added = edit.put(node, Reshape(), (other,), shape)
    inputs = (*conv.inputs[:2], conv.input(2), added)
    total = edit.put(node, conv.op, inputs, shape)
    edit.replace(node, replace(view, inputs=(total,), outputs=node.outputs))
    edit.drop(view)
    edit.drop(conv)


def fuse_activation(graph: Graph) -> Graph:
    """Let an operator apply an activation that is its only reader.

    Nodes that only move values may lie between the two. So may a maximum pool, if the activation
    keeps the order of values and costs next to nothing.
    """
    edit = Edit(graph)
    for node in edit:
        activation = _activation(node.op)
        if activation and _can_apply(edit, node.inputs[0], activation):
            _apply(edit, node.inputs[0], activation)
            edit.bypass(node)
    return edit.done()


def _activation(op: Op) -> str:
    """The activation that computes the same as an operator, "" if there is none."""
    if not isinstance(op, Unary):
        return ""
    if op.function == "leakyrelu":
        leaky = f"leaky{op.alpha:.8f}".rstrip("0")
        return leaky if 1e-6 < op.alpha < 1 and slope(leaky) == round(op.alpha, 8) else ""
    if op.function not in ACTIVATIONS:
        return ""
    if op.function == "hardsigmoid" and not is_standard_hardsigmoid(op):
        return ""
    return op.function


def _moves(op: Op, activation: str) -> bool:
    """Whether an activation gives the same result before and after an operator."""
    if isinstance(op, Pool):
        return op.function == "max" and activation in ("relu", "relu6")
    return isinstance(op, Concat | Reshape | Transpose | ChannelShuffle | DepthToSpace)


def _can_apply(edit: Edit, name: str, activation: str) -> bool:
    """Whether the nodes that compute a value can apply an activation to it.

    Nothing else may read the value.
    """
    node = edit.private_producer(name)
    if node is None:
        return False
    if isinstance(node.op, Activating):
        return not node.op.activation and edit.dtype(name) == np.float32
    return _moves(node.op, activation) and all(_can_apply(edit, x, activation) for x in node.inputs)


def _apply(edit: Edit, name: str, activation: str) -> None:
    node = edit.producer(name)
    assert node
    if isinstance(node.op, Activating):
        edit.replace(node, replace(node, op=replace(node.op, activation=activation)))
    else:
        for x in node.inputs:
            _apply(edit, x, activation)


def fuse_bias(graph: Graph) -> Graph:
    """Let a matrix product add the constant that is added to its rows, as `Gemm` if possible."""
    edit = Edit(graph)
    for node in edit:
        if node.op != Binary("add"):
            continue
        for x, bias in (node.inputs, node.inputs[::-1]):
            product = edit.private_producer(x)
            if product is None or product.op != MatMul() or product.input(2):
                continue
            shape, row = edit.shape(product.output) or (), edit.shape(bias) or ()
            if bias in edit.constants and row[-1:] == shape[-1:] == (math.prod(row),):
                op = Gemm() if len(shape) == 2 else MatMul()
                inputs = (*product.inputs[:2], bias)
                edit.merge(product, node, replace(node, op=op, inputs=inputs))
                break
    return edit.done()

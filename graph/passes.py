"""Static optimisation: each pass makes a graph from a graph that computes the same.

`optimise` runs them all; the order matters and is explained there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from graph.affine import fold_affine, normalise_affine
from graph.channels import absorb_shuffles
from graph.edit import Edit
from graph.model import Graph, Node
from graph.ops import (
    Activating,
    Binary,
    Cast,
    ChannelShuffle,
    Concat,
    Conv,
    Expand,
    Foreign,
    Identity,
    Op,
    Pad,
    Pool,
    Reshape,
    Resize,
    Slice,
    Transpose,
    Unary,
)
from graph.parallel import merge_parallel
from graph.patterns import (
    fuse_bias,
    is_standard_hardsigmoid,
    merge_moves,
    recognise_channel_shuffle,
    recognise_gates,
)
from graph.products import convolve_products, densify, sink_transposes
from graph.reference import evaluate
from graph.shapes import sees_pixels
from kernels.core.problem import ACTIVATIONS, slope

Pass = Callable[[Graph], Graph]

# Functions whose results are never below zero.
_NEVER_NEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid", "exp", "abs", "softplus")


def drop_identities(graph: Graph) -> Graph:
    """Remove what returns its input: Identity, dropout, moves that move nothing."""
    edit = Edit(graph)
    for node in edit:
        if _is_identity(node, edit):
            edit.bypass(node)
    return edit.done()


def _is_identity(node: Node, edit: Edit) -> bool:
    op = node.op
    if isinstance(op, Identity):
        return True
    if isinstance(op, Cast):
        return edit.dtype(node.inputs[0]) == edit.dtype(node.output)
    before = edit.shape(node.input(0))
    if before is None or before != edit.shape(node.output):
        return False
    match op:
        case Reshape() | Expand():
            return True
        case Transpose():
            return op.order == tuple(sorted(op.order))
        case Pad():
            return not any(op.padding)
        case Slice():
            return not any(op.starts) and all(step == 1 for step in op.steps)
        case Concat():
            return len(node.inputs) == 1
        case Resize():
            return all(scale == 1 for scale in op.scales)
    return False


def fold_constants(graph: Graph) -> Graph:
    """Compute nodes whose inputs are all constant."""
    edit = Edit(graph)
    for node in edit:
        if isinstance(node.op, Foreign) or any(x and x not in edit.constants for x in node.inputs):
            continue
        value = evaluate(
            node, [edit.constants.get(x) for x in node.inputs], graph.tensor(node.output)
        )
        edit.fold(node, value.astype(graph.tensor(node.output).dtype))
    return edit.done()


def fold_padding(graph: Graph) -> Graph:
    """Let a convolution or pool pad by itself what is padded for it alone.

    No pool has windows of nothing but padding, which a Pad before it may well make.
    """
    edit = Edit(graph)
    for node in edit:
        pad = edit.private_producer(node.inputs[0]) if node.inputs else None
        if pad is None or not isinstance(pad.op, Pad) or not isinstance(node.op, Conv | Pool):
            continue
        rank = len(pad.op.padding) // 2
        begins, ends = pad.op.padding[:rank], pad.op.padding[rank:]
        outside_space = (*begins[:2], *ends[:2])
        if any(outside_space) or min(pad.op.padding) < 0 or not _pads_alike(edit, pad, node.op):
            continue
        extra = (*begins[2:], *ends[2:])
        padding = tuple(a + b for a, b in zip(node.op.padding, extra, strict=True))
        op: Op = replace(node.op, padding=padding)
        if isinstance(op, Pool):
            if not sees_pixels(op, (edit.shape(pad.inputs[0]) or ())[2:]):
                continue
            op = replace(op, count_padding=op.count_padding or op.function == "average")
        inputs = (pad.inputs[0], *node.inputs[1:])
        edit.merge(pad, node, replace(node, op=op, inputs=inputs))
    return edit.done()


def _pads_alike(edit: Edit, pad: Node, op: Conv | Pool) -> bool:
    """Whether padding of one's own has the effect of what `pad` writes round the input."""
    assert isinstance(pad.op, Pad)
    if pad.op.mode != "constant":
        return False
    if isinstance(op, Conv):
        return pad.op.value == 0
    # What a window that ends beyond the input averages is a matter of how it came about.
    if op.function == "average":
        return pad.op.value == 0 and not op.ceil and (op.count_padding or not any(op.padding))
    before = edit.producer(pad.inputs[0])
    function = before.op.function if before and isinstance(before.op, Unary) else ""
    return pad.op.value == -math.inf or (pad.op.value == 0 and function in _NEVER_NEGATIVE)


def fuse_add(graph: Graph) -> Graph:
    """Let a convolution add a tensor of its output's shape: the residual connection.

    Where both operands are convolutions that nothing else reads, the first one takes the other:
    exporters write the main path first, and its problem then equals that of the other blocks.
    """
    edit = Edit(graph)
    for node in edit:
        if node.op != Binary("add") or edit.shape(node.inputs[0]) != edit.shape(node.inputs[1]):
            continue
        for x, other in (node.inputs, node.inputs[::-1]):
            conv = edit.private_producer(x)
            if conv is None or not isinstance(conv.op, Conv):
                continue
            if conv.op.activation or conv.input(3) or other in edit.constants:
                continue
            inputs = (*conv.inputs[:2], conv.input(2), other)
            edit.merge(conv, node, replace(conv, inputs=inputs, outputs=node.outputs))
            break
    return edit.done()


def fuse_activation(graph: Graph) -> Graph:
    """Let an operator apply the activation that is all that reads it.

    What only moves values may stand between, and so may a maximum where the activation keeps
    the order and costs nothing.
    """
    edit = Edit(graph)
    for node in edit:
        activation = _activation(node.op)
        if activation and _can_apply(edit, node.inputs[0], activation):
            _apply(edit, node.inputs[0], activation)
            edit.bypass(node)
    return edit.done()


def _activation(op: Op) -> str:
    """The activation of the same effect, "" if there is none."""
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
    """Whether it makes no difference if an activation comes before or after an operator."""
    if isinstance(op, Pool):
        return op.function == "max" and activation in ("relu", "relu6")
    return isinstance(op, Concat | Reshape | Transpose | ChannelShuffle)


def _can_apply(edit: Edit, name: str, activation: str) -> bool:
    """Whether those who compute a value can apply an activation to it, and nobody else reads it."""
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


PASSES: tuple[Pass, ...] = (
    drop_identities,
    fold_constants,
    recognise_channel_shuffle,
    merge_moves,
    recognise_gates,
    fuse_bias,
    convolve_products,
    sink_transposes,
    merge_moves,
    drop_identities,
    fold_padding,
    normalise_affine,
    fold_affine,
    merge_parallel,
    fuse_add,
    densify,
    fuse_activation,
    absorb_shuffles,
)


def optimise(graph: Graph) -> Graph:
    """Run every pass of `PASSES`.

    Patterns come first, while their scales are still as exported. Products become convolutions
    before scales fold into weights. Scales fold before anything is fused, because they fold into
    a linear convolution only. What is added becomes one convolution if it can, else a residual;
    the add comes before the activation, because the epilogue applies them in that order. Shuffles
    come last, when what reads them is convolutions.
    """
    for run in PASSES:
        graph = run(graph)
    return graph

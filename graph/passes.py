"""Static optimisation: each pass makes a graph from a graph that computes the same.

`optimise` runs them all; the order matters and is explained there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from graph.affine import fold_affine, normalise_affine
from graph.channels import absorb_shuffles
from graph.edit import Edit
from graph.model import Graph, Node
from graph.ops import (
    Binary,
    Cast,
    Concat,
    Conv,
    Expand,
    Foreign,
    Identity,
    Pad,
    Reshape,
    Resize,
    Slice,
    Transpose,
    Unary,
)
from graph.patterns import (
    fuse_dense,
    merge_moves,
    recognise_channel_shuffle,
    recognise_hardswish,
)
from graph.reference import evaluate
from kernels.core.problem import ACTIVATIONS

Pass = Callable[[Graph], Graph]


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
    """Let a convolution pad by itself what is padded with zeros for it alone."""
    edit = Edit(graph)
    for node in edit:
        if not isinstance(node.op, Conv):
            continue
        pad = edit.private_producer(node.inputs[0])
        if pad is None or not isinstance(pad.op, Pad):
            continue
        rank = len(pad.op.padding) // 2
        begins, ends = pad.op.padding[:rank], pad.op.padding[rank:]
        outside_space = (*begins[:2], *ends[:2])
        if pad.op.mode != "constant" or pad.op.value or any(outside_space):
            continue
        if min(pad.op.padding) < 0:
            continue
        extra = (*begins[2:], *ends[2:])
        padding = tuple(a + b for a, b in zip(node.op.padding, extra, strict=True))
        inputs = (pad.inputs[0], *node.inputs[1:])
        edit.merge(pad, node, replace(node, op=replace(node.op, padding=padding), inputs=inputs))
    return edit.done()


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
    """Let a convolution apply the activation that is all that reads it."""
    edit = Edit(graph)
    for node in edit:
        if not isinstance(node.op, Unary) or node.op.function not in ACTIVATIONS:
            continue
        conv = edit.private_producer(node.inputs[0])
        if conv is None or not isinstance(conv.op, Conv) or conv.op.activation:
            continue
        op = replace(conv.op, activation=node.op.function)
        edit.merge(conv, node, replace(conv, op=op, outputs=node.outputs))
    return edit.done()


PASSES: tuple[Pass, ...] = (
    drop_identities,
    fold_constants,
    recognise_channel_shuffle,
    merge_moves,
    recognise_hardswish,
    fuse_dense,
    fold_padding,
    normalise_affine,
    fold_affine,
    fuse_add,
    fuse_activation,
    absorb_shuffles,
)


def optimise(graph: Graph) -> Graph:
    """Run every pass of `PASSES`.

    Patterns come first, while their scales are still as exported. Scales fold before anything is
    fused, because they fold into a linear convolution only; the add comes before the activation,
    because the epilogue applies them in that order. Shuffles come last, when what reads them is
    convolutions.
    """
    for run in PASSES:
        graph = run(graph)
    return graph

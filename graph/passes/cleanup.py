"""Passes that remove nodes: identities, constants, and padding that the reader can do itself."""

from __future__ import annotations

import math
from dataclasses import replace

from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import (
    Cast,
    Concat,
    Conv,
    Expand,
    Foreign,
    Identity,
    Numpy,
    Op,
    Pad,
    Pool,
    Reshape,
    Resize,
    Slice,
    Transpose,
    Unary,
)
from fastrun.graph.core.shapes import sees_pixels
from fastrun.graph.passes.edit import Edit
from fastrun.graph.reference.interpreter import evaluate

# Functions whose results are never below zero.
_NEVER_NEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid", "exp", "abs", "softplus")


def drop_identities(graph: Graph) -> Graph:
    """Remove nodes whose result is their input: Identity, dropout, moves that move nothing."""
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
        known = all(x in edit.constants for x in node.inputs if x)
        if not known or isinstance(node.op, Foreign | Numpy):
            continue
        value = evaluate(
            node, [edit.constants.get(x) for x in node.inputs], graph.tensor(node.output)
        )
        edit.fold(node, value.astype(graph.tensor(node.output).dtype))
    return edit.done()


def fold_padding(graph: Graph) -> Graph:
    """Let a convolution or pool pad its input itself, if nothing else reads the padded tensor.

    A pool stays as it is if it would get windows of padding alone.
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
    """Whether the operator's own padding has the effect of the values that `pad` writes."""
    assert isinstance(pad.op, Pad)
    if pad.op.mode != "constant":
        return False
    if isinstance(op, Conv):
        return pad.op.value == 0
    # With `ceil` an average treats padding and pixels beyond it differently.
    if op.function == "average":
        return pad.op.value == 0 and not op.ceil and (op.count_padding or not any(op.padding))
    before = edit.producer(pad.inputs[0])
    function = before.op.function if before and isinstance(before.op, Unary) else ""
    return pad.op.value == -math.inf or (pad.op.value == 0 and function in _NEVER_NEGATIVE)

"""Static optimisation: each pass makes a graph from a graph that computes the same.

`optimise` runs them all; the order matters and is explained there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from graph.edit import Edit
from graph.model import Array, Graph, Node
from graph.ops import (
    Affine,
    BatchNorm,
    Binary,
    Cast,
    Concat,
    Conv,
    ConvTranspose,
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
    if edit.shape(node.inputs[0]) is None or edit.shape(node.inputs[0]) != edit.shape(node.output):
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


def normalise_affine(graph: Graph) -> Graph:
    """Write batch normalisation and arithmetic with one constant per channel as `Affine`."""
    edit = Edit(graph)
    for node in edit:
        shape = edit.shape(node.inputs[0] if node.inputs else "")
        if isinstance(node.op, BatchNorm):
            parameters = [edit.constants.get(x) for x in node.inputs[1:]]
            scale, shift, mean, variance = (None if a is None else _wide(a) for a in parameters)
            if scale is None or shift is None or mean is None or variance is None:
                continue
            factor = scale / np.sqrt(variance + node.op.epsilon)
            _write_affine(edit, node, node.inputs[0], factor, shift - mean * factor)
        elif isinstance(node.op, Binary) and shape is not None:
            _normalise_binary(edit, node)
    return edit.done()


def _normalise_binary(edit: Edit, node: Node) -> None:
    a, b = node.inputs
    function = node.op.function if isinstance(node.op, Binary) else ""
    if a in edit.constants and function in ("add", "mul"):
        a, b = b, a
    shape = edit.shape(a)
    if a in edit.constants or b not in edit.constants or shape != edit.shape(node.output):
        return
    values = _per_channel(edit.constants[b], shape)
    if values is None:
        return
    one, zero = np.ones_like(values), np.zeros_like(values)
    forms = {"add": (one, values), "sub": (one, -values), "mul": (values, zero)}
    if function == "div" and np.all(values != 0):
        forms["div"] = (1 / values, zero)
    if function in forms:
        _write_affine(edit, node, a, *forms[function])


def _per_channel(values: Array, shape: tuple[int, ...] | None) -> Array | None:
    """The constant as float64 (c,) if it broadcasts along everything but axis 1, else None."""
    if shape is None or len(shape) < 3 or values.ndim > len(shape) or values.dtype.kind != "f":
        return None
    aligned = (1,) * (len(shape) - values.ndim) + values.shape
    if any(size != 1 for axis, size in enumerate(aligned) if axis != 1):
        return None
    return np.broadcast_to(_wide(values).reshape(-1), (shape[1],))


def _write_affine(edit: Edit, node: Node, x: str, scale: Array, shift: Array) -> None:
    """Replace a node by an `Affine`, merged with the `Affine` it reads from if that is private."""
    before = edit.private_producer(x)
    if before is not None and isinstance(before.op, Affine):
        first_scale, first_shift = (_wide(edit.constants[name]) for name in before.inputs[1:])
        scale, shift, x = scale * first_scale, first_shift * scale + shift, before.inputs[0]
    dtype = edit.dtype(node.output)
    parameters = (
        edit.constant(f"{node.name}.scale", scale.astype(dtype)),
        edit.constant(f"{node.name}.shift", shift.astype(dtype)),
    )
    affine = Node(node.name, Affine(), (x, *parameters), node.outputs)
    if before is not None and isinstance(before.op, Affine):
        edit.merge(before, node, affine)
    else:
        edit.replace(node, affine)


def fold_affine(graph: Graph) -> Graph:
    """Fold an `Affine` into the weights and bias of the convolution before it."""
    edit = Edit(graph)
    for node in edit:
        if not isinstance(node.op, Affine):
            continue
        conv = edit.private_producer(node.inputs[0])
        if conv is None or not _can_scale(conv, edit):
            continue
        scale, shift = (_wide(edit.constants[x]) for x in node.inputs[1:])
        weights = edit.constants[conv.inputs[1]]
        if isinstance(conv.op, ConvTranspose):
            per_group = scale.reshape(conv.op.groups, 1, -1)
            scaled = weights.reshape(conv.op.groups, -1, *weights.shape[1:]) * per_group.reshape(
                *per_group.shape, *(1,) * (weights.ndim - 2)
            )
        else:
            scaled = weights * scale.reshape(-1, *(1,) * (weights.ndim - 1))
        if bias := conv.input(2):
            shift = shift + scale * edit.constants[bias]
        parameters = (
            edit.constant(f"{conv.name}.weights", _narrow(scaled.reshape(weights.shape), weights)),
            edit.constant(f"{conv.name}.bias", _narrow(shift, weights)),
        )
        inputs = (conv.inputs[0], *parameters)
        edit.merge(conv, node, replace(conv, inputs=inputs, outputs=node.outputs))
    return edit.done()


def _can_scale(conv: Node, edit: Edit) -> bool:
    """Whether scaling the weights and bias scales the node's whole result."""
    if isinstance(conv.op, Conv):
        linear = not conv.op.activation and not conv.input(3)
    else:
        linear = isinstance(conv.op, ConvTranspose)
    return linear and all(x in edit.constants for x in conv.inputs[1:3] if x)


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
)


def optimise(graph: Graph) -> Graph:
    """Run every pass of `PASSES`.

    Patterns come first, while their scales are still as exported. Scales fold before anything is
    fused, because they fold into a linear convolution only; the add comes before the activation,
    because the epilogue applies them in that order.
    """
    for run in PASSES:
        graph = run(graph)
    return graph


def _wide(values: Array) -> Array:
    return values.astype(np.float64)


def _narrow(values: Array, like: Array) -> Array:
    return np.ascontiguousarray(values.astype(like.dtype))

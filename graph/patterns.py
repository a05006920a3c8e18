"""Passes that recognise an operation exporters write as several nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from graph.edit import Edit
from graph.model import Graph, Node
from graph.ops import Binary, ChannelShuffle, Gemm, MatMul, Reshape, Transpose, Unary

# Whether a node computes a certain function, and of what.
Gate = Callable[[Edit, Node], str]


def recognise_hardswish(graph: Graph) -> Graph:
    """Write `relu6(x + 3) / 6` as hardsigmoid, and x times that as hardswish."""
    edit = Edit(graph)
    for node in edit:
        x, factor = _scaled(edit, node)
        scaled = edit.private_producer(x)
        if scaled is not None and math.isclose(factor, 1 / 6, rel_tol=1e-5):
            if y := _relu6_of_plus_3(edit, scaled):
                edit.replace(node, replace(node, op=Unary("hardsigmoid", 1 / 6, 0.5), inputs=(y,)))
            elif scaled.op == Binary("mul"):
                _write_if_product(edit, node, scaled, _relu6_of_plus_3)
        elif node.op == Binary("mul"):
            _write_if_product(edit, node, node, _standard_hardsigmoid)
    return edit.done()


def recognise_channel_shuffle(graph: Graph) -> Graph:
    """Write reshape to (n, groups, c / groups, ...), swap of axes 1 and 2, reshape back as one."""
    edit = Edit(graph)
    for node in edit:
        swap = edit.private_producer(node.inputs[0]) if isinstance(node.op, Reshape) else None
        split = edit.private_producer(swap.inputs[0]) if swap is not None else None
        if swap is None or split is None or not isinstance(split.op, Reshape):
            continue
        shape, grouped = edit.shape(node.output), edit.shape(split.output)
        if not shape or not grouped or edit.shape(split.inputs[0]) != shape:
            continue
        # How the axes after the channels are split does not matter: they stay in order.
        order = Transpose((0, 2, 1, *range(3, len(grouped))))
        if swap.op == order and grouped[0] == shape[0] and grouped[1] * grouped[2] == shape[1]:
            op = ChannelShuffle(grouped[1])
            edit.replace(node, replace(node, op=op, inputs=split.inputs))
    return edit.done()


def merge_moves(graph: Graph) -> Graph:
    """Make one of two reshapes in a row, and of two transposes."""
    edit = Edit(graph)
    for node in edit:
        before = edit.private_producer(node.inputs[0]) if node.inputs else None
        if before is None:
            continue
        match before.op, node.op:
            case Reshape(), Reshape():
                edit.merge(before, node, replace(node, inputs=before.inputs))
            case Transpose(order=first), Transpose(order=second):
                op = Transpose(tuple(first[axis] for axis in second))
                edit.merge(before, node, replace(node, op=op, inputs=before.inputs))
    return edit.done()


def fuse_dense(graph: Graph) -> Graph:
    """Write a matrix product of two axes and the bias added to its rows as `Gemm`."""
    edit = Edit(graph)
    for node in edit:
        if node.op != Binary("add"):
            continue
        for x, bias in (node.inputs, node.inputs[::-1]):
            product = edit.private_producer(x)
            shape = edit.shape(bias)
            if product is None or not isinstance(product.op, MatMul) or bias not in edit.constants:
                continue
            columns = (edit.shape(product.output) or ())[1:]
            if len(columns) == 1 and shape in (columns, (1, *columns)):
                inputs = (*product.inputs, bias)
                edit.merge(product, node, replace(node, op=Gemm(), inputs=inputs))
                break
    return edit.done()


def _scaled(edit: Edit, node: Node) -> tuple[str, float]:
    """What a node multiplies or divides by a constant number, and the factor; or "", 0."""
    if node.op == Binary("div") and (number := edit.number(node.inputs[1])):
        return node.inputs[0], 1 / number
    if node.op == Binary("mul"):
        for x, y in (node.inputs, node.inputs[::-1]):
            if number := edit.number(y):
                return x, number
    return "", 0.0


def _relu6_of_plus_3(edit: Edit, node: Node) -> str:
    """x if the node computes relu6(x + 3), else ""."""
    if node.op != Unary("relu6"):
        return ""
    plus = edit.private_producer(node.inputs[0])
    if plus is not None and plus.op == Binary("add"):
        for x, y in (plus.inputs, plus.inputs[::-1]):
            if edit.number(y) == 3:
                return x
    return ""


def _standard_hardsigmoid(edit: Edit, node: Node) -> str:
    """x if the node computes clip(x / 6 + 1 / 2, 0, 1), else ""."""
    op = node.op
    if not isinstance(op, Unary) or op.function != "hardsigmoid":
        return ""
    standard = math.isclose(op.alpha, 1 / 6, rel_tol=1e-5) and op.beta == 0.5
    return node.inputs[0] if standard else ""


def _write_if_product(edit: Edit, node: Node, product: Node, gate: Gate) -> None:
    """Make `node` the hardswish of x if `product` is x times the gate of x."""
    for x, y in (product.inputs, product.inputs[::-1]):
        other = edit.private_producer(y)
        if other is not None and gate(edit, other) == x:
            edit.replace(node, replace(node, op=Unary("hardswish"), inputs=(x,)))
            return

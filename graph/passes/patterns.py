"""Passes that recognise operations that exporters write as several nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastrun.graph.core.model import Graph, Node, Shape
from fastrun.graph.core.ops import (
    Affine,
    Binary,
    ChannelShuffle,
    GroupNorm,
    LayerNorm,
    Op,
    Reduce,
    Reshape,
    Transpose,
    Unary,
)
from fastrun.graph.core.shapes import CHANNELS_FIRST, CHANNELS_LAST
from fastrun.graph.passes.edit import Edit


def recognise_gates(graph: Graph) -> Graph:
    """Write `factor * x * gate(x)` as one function: SiLU, hardswish, GELU or Mish."""
    edit = Edit(graph)
    for node in edit:
        factor, terms = _product(edit, node)
        if len(terms) == 1 and _near(factor, 1 / 6) and (x := _relu6_of_plus_3(edit, terms[0])):
            edit.replace(node, replace(node, op=Unary("hardsigmoid", 1 / 6, 0.5), inputs=(x,)))
        for function, expected, gate in _GATED if len(terms) == 2 else ():
            for x, y in (terms, terms[::-1]):
                if _near(factor, expected) and gate(edit, y) == x:
                    edit.replace(node, replace(node, op=Unary(function), inputs=(x,)))
    return edit.done()


def recognise_signs(graph: Graph) -> Graph:
    """Write sign(sign(x) + 1/2), the sign that is one at zero, as one function.

    NaN becomes one, as it does where only signs count.
    """
    edit = Edit(graph)
    for node in edit:
        if node.op == Unary("sign"):
            x = _argument(edit, _sum(edit, node.inputs[0], 0.5), "sign")
            if x:
                edit.replace(node, replace(node, op=Unary("bipolar"), inputs=(x,)))
    return edit.done()


def recognise_layer_norm(graph: Graph) -> Graph:
    """Write the normalisation of the last axis, as exporters write it out, as one operator.

    The axis becomes that of the channels between two transposes.
    """
    edit = Edit(graph)
    for node in edit:
        x, epsilon = _normalised(edit, node)
        shape = edit.shape(node.output) or ()
        if not x or len(shape) not in CHANNELS_LAST:
            continue
        order = CHANNELS_FIRST[len(shape)]
        turned = tuple(shape[axis] for axis in order)
        scale = edit.constant(f"{node.name}.scale", np.ones(shape[-1], np.float32))
        before = edit.put(node, Transpose(order), (x,), turned)
        normal = edit.put(node, LayerNorm(epsilon), (before, scale), turned)
        edit.replace(node, replace(node, op=Transpose(CHANNELS_LAST[len(shape)]), inputs=(normal,)))
    return edit.done()


def recognise_group_norm(graph: Graph) -> Graph:
    """Write instance normalisation of reshaped groups, as exporters write it, as one operator."""
    edit = Edit(graph)
    for node in edit:
        norm = edit.private_producer(node.inputs[0]) if isinstance(node.op, Reshape) else None
        split = edit.producer(norm.inputs[0]) if norm else None
        if norm is None or split is None or not isinstance(split.op, Reshape):
            continue
        shape, grouped = edit.shape(node.output), edit.shape(split.output)
        if not shape or not grouped or not isinstance(norm.op, GroupNorm) or len(shape) > 4:
            continue
        alike = edit.shape(split.inputs[0]) == shape and grouped[0] == shape[0]
        if norm.op.groups != grouped[1] or shape[1] % grouped[1] or not alike or len(shape) < 3:
            continue
        each = shape[1] // grouped[1]
        names = (
            edit.constant(f"{node.name}.{x}", np.repeat(edit.constants[v].reshape(-1), each))
            for x, v in zip(("scale", "shift"), norm.inputs[1:], strict=True)
        )
        edit.merge(norm, node, replace(node, op=norm.op, inputs=(split.inputs[0], *names)))
    return edit.done()


def fold_into_layer_norm(graph: Graph) -> Graph:
    """Let a normalisation of layers or groups scale and shift its channels itself."""
    edit = Edit(graph)
    for node in edit:
        norm = edit.private_producer(node.inputs[0]) if isinstance(node.op, Affine) else None
        if norm is None or not isinstance(norm.op, LayerNorm | GroupNorm) or node.op != Affine():
            continue
        if isinstance(norm.op, GroupNorm) and norm.op.activation:
            continue
        scale, shift = (edit.constants[x].reshape(-1) for x in node.inputs[1:])
        own = edit.constants[norm.inputs[1]].reshape(-1)
        if norm.input(2):
            shift = shift + scale * edit.constants[norm.inputs[2]].reshape(-1)
        names = (
            edit.constant(f"{node.name}.{x}", v)
            for x, v in (("scale", own * scale), ("shift", shift))
        )
        edit.merge(norm, node, replace(node, op=norm.op, inputs=(norm.inputs[0], *names)))
    return edit.done()


def recognise_channel_shuffle(graph: Graph) -> Graph:
    """Write a reshape to (n, groups, c / groups, ...), a swap of axes 1 and 2, and a reshape back
    as a channel shuffle.
    """
    edit = Edit(graph)
    for node in edit:
        swap = edit.private_producer(node.inputs[0]) if isinstance(node.op, Reshape) else None
        split = edit.private_producer(swap.inputs[0]) if swap is not None else None
        if swap is None or split is None or not isinstance(split.op, Reshape):
            continue
        shape, grouped = edit.shape(node.output), edit.shape(split.output)
        if not shape or not grouped or edit.shape(split.inputs[0]) != shape:
            continue
        # The axes after the channels may be split in any way: they stay in order.
        order = Transpose((0, 2, 1, *range(3, len(grouped))))
        if swap.op == order and grouped[0] == shape[0] and grouped[1] * grouped[2] == shape[1]:
            op = ChannelShuffle(grouped[1])
            edit.replace(node, replace(node, op=op, inputs=split.inputs))
    return edit.done()


def merge_moves(graph: Graph) -> Graph:
    """Merge two reshapes in a row, and two transposes in a row.

    The first transpose may have other readers: it stays for them. A transpose that only moves axes
    of one element is a reshape, unless it brings channels first or last. One of some axes, for
    which exporters make one axis of all before and take it apart again, is one of all axes.
    """
    edit = Edit(graph)
    for node in edit:
        if isinstance(node.op, Transpose) and _only_renames(node.op, edit.shape(node.inputs[0])):
            node = replace(node, op=Reshape())
            edit.replace(node, node)
        before = edit.producer(node.inputs[0]) if node.inputs else None
        if before is None or edit.exact(before.output):
            continue
        match before.op, node.op:
            case Reshape(), Reshape() if edit.is_private(before.output):
                edit.merge(before, node, replace(node, inputs=before.inputs))
            case Transpose(order=first), Transpose(order=second):
                op = Transpose(tuple(first[axis] for axis in second))
                edit.replace(node, replace(node, op=op, inputs=before.inputs))
            case Transpose(), Reshape():
                _transpose_apart(edit, before, node)
    return edit.done()


def _transpose_apart(edit: Edit, swap: Node, back: Node) -> None:
    """Write (a, b, m, n) -> (ab, m, n) -> (ab, n, m) -> (a, b, n, m) as one transpose."""
    merge = edit.private_producer(swap.inputs[0])
    if merge is None or not isinstance(merge.op, Reshape) or not edit.is_private(swap.output):
        return
    assert isinstance(swap.op, Transpose)
    names = (merge.inputs[0], merge.output, swap.output, back.output)
    first, merged, turned, last = (edit.shape(x) or () for x in names)
    if len(merged) < 2:
        return
    count = len(first) - len(merged) + 1
    apart = first[:count]
    alike = first == (*apart, *merged[1:]) and last[1 - len(turned) :] == turned[1:]
    if count > 1 and alike and swap.op.order[0] == 0:
        op = Transpose((*range(count), *(count - 1 + axis for axis in swap.op.order[1:])))
        shape = (*apart, *turned[1:])
        if shape == last:
            edit.replace(back, replace(back, op=op, inputs=merge.inputs))
        else:
            moved = edit.put(back, op, merge.inputs, shape)
            edit.replace(back, replace(back, inputs=(moved,)))


def _only_renames(op: Transpose, shape: Shape | None) -> bool:
    """Whether all values stay in their row-major order."""
    rank = len(op.order)
    if shape is None or op.order in (CHANNELS_FIRST.get(rank), CHANNELS_LAST.get(rank)):
        return False
    kept = [axis for axis in op.order if shape[axis] != 1]
    return kept == sorted(kept)


def _product(edit: Edit, node: Node) -> tuple[float, list[str]]:
    """The constant factor of a product and its other factors.

    A factor that is itself a product with no other reader counts by its own factors.
    """
    if node.op == Binary("div") and (number := edit.number(node.inputs[1])):
        factor, given = 1 / number, node.inputs[:1]
    elif node.op == Binary("mul"):
        factor, given = 1.0, node.inputs
    else:
        return 1.0, []
    found: list[str] = []
    for x in given:
        if number := edit.number(x):
            factor *= number
            continue
        inner = edit.private_producer(x)
        some, terms = _product(edit, inner) if inner else (1.0, [])
        factor *= some
        found += terms or [x]
    return factor, found


def _normalised(edit: Edit, node: Node) -> tuple[str, float]:
    """x and epsilon, if `node` is (x - mean) / sqrt(variance + epsilon) along the last axis."""
    if node.op != Binary("div"):
        return "", 0.0
    centred, root = edit.producer(node.inputs[0]), edit.private_producer(node.inputs[1])
    under = edit.private_producer(root.inputs[0]) if root and root.op == Unary("sqrt") else None
    if centred is None or centred.op != Binary("sub") or not under or under.op != Binary("add"):
        return "", 0.0
    epsilon = edit.number(under.inputs[1])
    x, mean = centred.inputs
    square = edit.private_producer(_mean(edit, under.inputs[0]))
    squared = square and (
        square.op == Unary("pow", 2.0)
        or (square.op == Binary("mul") and len(set(square.inputs)) == 1)
        or (square.op == Binary("pow") and edit.number(square.inputs[1]) == 2)
    )
    same = squared and square and square.inputs[0] == centred.output and _mean(edit, mean) == x
    return (x, epsilon) if same and epsilon > 0 else ("", 0.0)


def _mean(edit: Edit, name: str) -> str:
    """The value of which `name` is the mean along the last axis, which stays; "" if it is none."""
    node = edit.private_producer(name)
    shape = edit.shape(node.inputs[0]) if node else None
    if not node or not shape or edit.shape(name) != (*shape[:-1], 1):
        return ""
    return node.inputs[0] if node.op == Reduce("mean", (len(shape) - 1,)) else ""


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-5)


def _sum(edit: Edit, name: str, number: float) -> str:
    """The value to which `name` adds a number, "" if it does not."""
    node = edit.private_producer(name)
    if node is not None and node.op == Binary("add"):
        for x, y in (node.inputs, node.inputs[::-1]):
            if edit.number(y) == number:
                return x
    return ""


def _argument(edit: Edit, name: str, *functions: str) -> str:
    """y, if `name` is functions[0](functions[1](... y)), else ""."""
    for function in functions:
        node = edit.private_producer(name)
        if node is None or not isinstance(node.op, Unary) or node.op.function != function:
            return ""
        name = node.inputs[0]
    return name


def _relu6_of_plus_3(edit: Edit, name: str) -> str:
    return _sum(edit, _argument(edit, name, "relu6"), 3)


def _one_plus_erf(edit: Edit, name: str) -> str:
    scaled = edit.private_producer(_argument(edit, _sum(edit, name, 1), "erf"))
    factor, terms = _product(edit, scaled) if scaled else (0.0, [])
    return terms[0] if len(terms) == 1 and _near(factor, 0.5**0.5) else ""


def _one_plus_tanh(edit: Edit, name: str) -> str:
    """x, if `name` is 1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))."""
    scaled = edit.private_producer(_argument(edit, _sum(edit, name, 1), "tanh"))
    factor, terms = _product(edit, scaled) if scaled else (0.0, [])
    inner = edit.private_producer(terms[0]) if len(terms) == 1 else None
    if inner is None or inner.op != Binary("add") or not _near(factor, (2 / math.pi) ** 0.5):
        return ""
    for x, y in (inner.inputs, inner.inputs[::-1]):
        node = edit.private_producer(y)
        share, cube = _product(edit, node) if node else (0.0, [])
        if _near(share, 0.044715) and (cube == [x] * 3 or [_cubed(edit, z) for z in cube] == [x]):
            return x
    return ""


def _cubed(edit: Edit, name: str) -> str:
    node = edit.private_producer(name)
    if node is None:
        return ""
    to_3 = node.op == Unary("pow", 3.0)
    to_3 = to_3 or (node.op == Binary("pow") and edit.number(node.inputs[1]) == 3)
    return node.inputs[0] if to_3 else ""


def _hardsigmoid(edit: Edit, name: str) -> str:
    node = edit.private_producer(name)
    return node.inputs[0] if node and is_standard_hardsigmoid(node.op) else ""


def is_standard_hardsigmoid(op: Op) -> bool:
    """Whether an operator computes clip(x / 6 + 1 / 2, 0, 1), as the activation does."""
    if not isinstance(op, Unary) or op.function != "hardsigmoid":
        return False
    return _near(op.alpha, 1 / 6) and op.beta == 0.5


# Functions factor * x * gate(x). The last column finds x from the name of gate(x), or gives "".
_GATED: tuple[tuple[str, float, Callable[[Edit, str], str]], ...] = (
    ("hardswish", 1.0, _hardsigmoid),
    ("hardswish", 1 / 6, _relu6_of_plus_3),
    ("silu", 1.0, lambda edit, name: _argument(edit, name, "sigmoid")),
    ("gelu", 0.5, _one_plus_erf),
    ("gelu_tanh", 0.5, _one_plus_tanh),
    ("mish", 1.0, lambda edit, name: _argument(edit, name, "tanh", "softplus")),
)

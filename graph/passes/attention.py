"""A pass that recognises attention as exporters write it: two products with a softmax between.

Queries, keys and values are followed through reshapes, transposes and slices to the tensors of
which they are ranges of channels, so all these moves disappear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastrun.graph.core.model import Array, Graph, Node, Shape
from fastrun.graph.core.ops import (
    Attention,
    Binary,
    Concat,
    Heads,
    Identity,
    MatMul,
    Reshape,
    Rotary,
    Slice,
    Softmax,
    Transpose,
)
from fastrun.graph.core.shapes import CHANNELS_FIRST, CHANNELS_LAST
from fastrun.graph.passes.edit import Edit
from fastrun.graph.passes.rotary import Rotation, rotation
from fastrun.kernels.core.strided import Strided


class _Scores(NamedTuple):
    """What softmax reads: `factor * a @ b + mask`; the mask is None if there is none.

    A tensor that is added may be `computed` instead.
    """

    a: str
    b: str
    factor: float
    mask: Array | None = None
    computed: str = ""


class _Operand(NamedTuple):
    """Queries, keys or values: heads of the tensor `source`, times a factor.

    The channels of the source are its last axis, or axis 1 if they are `first`. Heads may be turned
    by a `rotation`.
    """

    source: str
    first: bool
    heads: Heads
    factor: float
    rotation: Rotation | None = None


def recognise_attention(graph: Graph) -> Graph:
    """Write softmax(scale * q @ k^T + mask) @ v as one operator.

    Masks are constants, or computed where queries, keys and values come from one tensor.
    """
    edit = Edit(graph)
    for node in edit:
        softmax = edit.private_producer(node.inputs[0]) if node.op == MatMul() else None
        shape = edit.shape(node.output) or ()
        if softmax is None or len(node.inputs) != 2 or len(shape) not in (3, 4):
            continue
        if softmax.op != Softmax(len(shape) - 1):
            continue
        scores = _scores(edit, softmax.inputs[0])
        if scores:
            _rewrite(edit, node, scores, shape)
    return edit.done()


def _rewrite(edit: Edit, node: Node, scores: _Scores, shape: Shape) -> None:
    keys = edit.shape(scores.b)
    last = len(shape) - 1
    turned = (*range(last - 1), last, last - 1)
    q = _operand(edit, scores.a)
    k = _operand(edit, scores.b, turned)
    v = _operand(edit, node.inputs[1])
    if not q or not k or not v or not keys:
        return
    heads, mask = shape[-3], scores.mask
    images = 1 if len(shape) == 3 else shape[0]
    if mask is not None:
        mask = _groups(mask, images, (heads, shape[-2], keys[-1]))
        if mask is None:
            return
    alone = q.source == k.source == v.source and not (q.rotation or k.rotation)
    form = _mask_shape(edit, scores, images, (heads, shape[-2], keys[-1]))
    if scores.computed and not (alone and form):
        return
    x, q = _channels_first(edit, node, q, heads)
    context = ""
    if not alone:
        beside = k.source == v.source and not k.rotation
        context, k = _channels_first(edit, node, k, heads)
        if not beside:
            other, v = _alone(edit, node, *_channels_first(edit, node, v, heads), heads)
            own, more = edit.shape(context), edit.shape(other)
            if not own or not more or own[2:] != more[2:]:
                return
            whole = (own[0], own[1] + more[1], *own[2:])
            v = v._replace(heads=replace(v.heads, start=v.heads.start + own[1]))
            context = edit.put(node, Concat(1), (context, other), whole)
    scale = scores.factor * q.factor * k.factor
    op = Attention(heads, scale, q.heads, k.heads, v.heads)
    inputs = [x, context]
    if mask is not None:
        inputs.append(edit.constant(f"{node.name}.mask", mask.astype(np.float32)))
    if scores.computed:
        inputs.append(edit.put(node, Reshape(), (scores.computed,), form))
    before = edit.shape(x)
    assert before
    result = (before[0], heads * v.heads.size, *before[2:])
    found = edit.put(node, op, tuple(inputs), result)
    rank = len(result)
    rows = (result[0], *result[2:], result[1])
    found = edit.put(node, Transpose(CHANNELS_LAST[rank]), (found,), rows)
    # As the readers of the product expect it: they turn it back.
    order = (0, 2, 1, 3) if len(shape) == 4 else (1, 0, 2)
    apart = tuple(shape[axis] for axis in order)
    found = edit.put(node, Reshape(), (found,), apart)
    if v.factor != 1:
        number = edit.constant(f"{node.name}.factor", np.array(v.factor, np.float32))
        found = edit.put(node, Binary("mul"), (found, number), apart)
    edit.replace(node, replace(node, op=Transpose(order), inputs=(found,)))


def _scores(edit: Edit, name: str) -> _Scores | None:
    """What softmax reads, if it is a product with factors and masks."""
    factor, mask = 1.0, np.zeros(())
    masked = False
    while node := edit.private_producer(name):
        if node.op == MatMul() and len(node.inputs) == 2:
            return _Scores(*node.inputs, factor, mask if masked else None)
        if node.op == Binary("add") and not {*node.inputs} & edit.constants.keys():
            return None if masked or factor != 1 else _with_computed(edit, node)
        scaled, added = _factor(edit, node), _added(edit, node)
        if scaled:
            factor, name = factor * scaled, node.inputs[_computed(edit, node)]
        elif added is not None:
            mask, masked, name = mask + factor * added, True, node.inputs[_computed(edit, node)]
        elif isinstance(node.op, Reshape | Identity):
            before, after = edit.shape(node.inputs[0]), edit.shape(name)
            # Groups of images become an axis of their own.
            if not before or not after or before[-3:] != after[-3:]:
                return None
            name = node.inputs[0]
        else:
            return None
    return None


def _with_computed(edit: Edit, node: Node) -> _Scores | None:
    """What softmax reads, if a sum of computed tensors has one product with factors in it."""
    for own, other in (node.inputs, node.inputs[::-1]):
        found = _scores(edit, own) if edit.shape(own) == edit.shape(node.output) else None
        if found and found.mask is None and not found.computed:
            return found._replace(computed=other)
    return None


def _mask_shape(edit: Edit, scores: _Scores, images: int, tail: Shape) -> Shape:
    """The shape (groups, heads or 1, queries or 1, keys) of a computed mask; () if it has none."""
    given = edit.shape(scores.computed) if scores.computed else None
    if not given or len(given) > 4:
        return ()
    shape = (1,) * (4 - len(given)) + given
    pairs = zip(shape[:3], (images, *tail[:2]), strict=True)
    return shape if shape[3] == tail[2] and all(a in (1, b) for a, b in pairs) else ()


def _groups(mask: Array, images: int, tail: Shape) -> Array | None:
    """A mask as (groups, heads or 1, queries, keys); None if it does not repeat over groups."""
    mask = mask.reshape((1,) * max(0, 4 - mask.ndim) + mask.shape)
    lead = math.prod(mask.shape[:-3])
    if mask.shape[:-4] != (1,) * (mask.ndim - 4) or images % lead or mask.shape[-3] not in (
        1, tail[0],
    ):  # fmt: skip
        return None
    wanted = (lead, mask.shape[-3], *tail[1:])
    flat = mask.reshape(lead, *mask.shape[-3:])
    if any(a not in (1, b) for a, b in zip(flat.shape, wanted, strict=True)):
        return None
    return np.ascontiguousarray(np.broadcast_to(flat, wanted))


def _computed(edit: Edit, node: Node) -> int:
    """Which of two operands is computed."""
    return int(node.inputs[0] in edit.constants)


def _factor(edit: Edit, node: Node) -> float:
    """The number by which a node multiplies; 0 if it does not."""
    if node.op == Binary("div"):
        number = edit.number(node.inputs[1])
        return 1 / number if number else 0.0
    if node.op != Binary("mul"):
        return 0.0
    return edit.number(node.inputs[1 - _computed(edit, node)])


def _added(edit: Edit, node: Node) -> Array | None:
    """The constant that a node adds, if the result has the shape of the other operand."""
    if node.op != Binary("add"):
        return None
    place = _computed(edit, node)
    same = edit.shape(node.inputs[place]) == edit.shape(node.output)
    return edit.constants.get(node.inputs[1 - place]) if same else None


def _operand(edit: Edit, name: str, turned: Sequence[int] = ()) -> _Operand | None:
    """The heads that a tensor (images, heads, pixels, values), or one without images, has.

    It is `turned` first.
    """
    moves, factor = list[Node](), 1.0
    while (node := edit.producer(name)) and not edit.exact(name):
        turning = rotation(edit, name)
        if turning:
            inner = _operand(edit, turning.x) if _only_turned(edit, name, moves, turned) else None
            if inner is None or inner.rotation:
                return None
            return inner._replace(factor=factor * inner.factor, rotation=turning)
        scaled = _factor(edit, node)
        if scaled:
            factor, name = factor * scaled, node.inputs[_computed(edit, node)]
            continue
        if not isinstance(node.op, Reshape | Transpose | Slice | Identity):
            break
        moves.append(node)
        name = node.inputs[0]
    shape = edit.shape(name)
    if name in edit.constants or not shape or len(shape) not in CHANNELS_LAST:
        return None
    for first in (False, True):
        order = CHANNELS_FIRST[len(shape)] if first else tuple(range(len(shape)))
        rows = tuple(shape[axis] for axis in CHANNELS_LAST[len(shape)]) if first else shape
        view: Strided | None = Strided.row_major(rows).transpose(order)
        for node in reversed(moves):
            view = _moved(view, node, edit.shape(node.output) or ())
        if view and turned:
            view = view.transpose(tuple(turned))
        if view and (heads := _heads(view, rows)):
            return _Operand(name, first, heads, factor)
    return None


def _only_turned(edit: Edit, name: str, moves: Sequence[Node], turned: Sequence[int]) -> bool:
    """Whether the nodes behind a value do nothing but turn it, and `turned` turns it back."""
    plain = Strided.row_major(edit.shape(name) or ())
    view: Strided | None = plain
    for node in reversed(moves):
        view = _moved(view, node, edit.shape(node.output) or ())
    return view is not None and (view.transpose(tuple(turned)) if turned else view) == plain


def _moved(view: Strided | None, node: Node, shape: Shape) -> Strided | None:
    """The view after a node that moves values; None if strides cannot express it."""
    if view is None:
        return None
    match node.op:
        case Transpose(order=order):
            return view.transpose(order)
        case Slice(starts=starts, sizes=sizes, steps=steps):
            return view.slice(starts, sizes, steps)
        case Reshape():
            return view.reshaped(shape)
    return view


def _heads(view: Strided, rows: Shape) -> Heads | None:
    """The heads of a view (images, heads, pixels, values) of a tensor (images, ..., channels)."""
    images, pixels, channels = rows[0], math.prod(rows[1:-1]), rows[-1]
    shape, strides = view.shape, view.strides
    if len(shape) == 3:
        shape, strides = (1, *shape), (0, *strides)
    (n, heads, m, size), (image, step, pixel, value) = shape, strides
    right = (n, m) == (images, pixels) and (n == 1 or image == pixels * channels)
    right = right and (m == 1 or pixel == channels) and (size == 1 or value == 1)
    step = step if heads > 1 else 0
    inside = view.offset >= 0 and step >= 0 and view.offset + (heads - 1) * step + size <= channels
    return Heads(view.offset, step, size) if right and inside else None


def _channels_first(edit: Edit, node: Node, operand: _Operand, heads: int) -> tuple[str, _Operand]:
    """The operand's tensor with channels as axis 1, where its rotation is done; and its heads."""
    name, shape = operand.source, edit.shape(operand.source)
    assert shape
    if not operand.first:
        order = CHANNELS_FIRST[len(shape)]
        shape = tuple(shape[axis] for axis in order)
        name = edit.put(node, Transpose(order), (name,), shape)
    if turning := operand.rotation:
        of = operand.heads
        factors = (
            edit.constant(f"{node.name}.{x}", values.astype(np.float32))
            for x, values in (("cos", turning.cos), ("sin", turning.sin))
        )
        op, whole = Rotary(heads, of, turning.adjacent), (shape[0], heads * of.size, *shape[2:])
        name = edit.put(node, op, (name, *factors), whole)
        operand = operand._replace(heads=Heads(0, of.size, of.size), rotation=None)
    return name, operand


def _alone(
    edit: Edit, node: Node, name: str, operand: _Operand, heads: int
) -> tuple[str, _Operand]:
    """A tensor with no other channels beside its heads, if these lie together; and the heads."""
    shape, of = edit.shape(name), operand.heads
    size = heads * of.size
    assert shape
    if shape[1] == size or (of.step != of.size and heads > 1):
        return name, operand
    starts, kept = (0, of.start, *(0 for _ in shape[2:])), (shape[0], size, *shape[2:])
    op = Slice(starts, kept, (1,) * len(shape))
    return edit.put(node, op, (name,), kept), operand._replace(heads=replace(of, start=0))

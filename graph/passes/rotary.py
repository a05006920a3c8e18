"""Recognises rotary positions, however an exporter writes them.

Such a tensor is a sum of another one's numbers with constant factors. So the nodes between the two
are followed with, for every number, the places that it comes from and their factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fastrun.graph.core.model import Array, Node, Shape
from fastrun.graph.core.ops import Binary, Concat, Identity, Reshape, Slice, Unary
from fastrun.graph.passes.edit import Edit

# Nodes between the two tensors, and summands of a number, at most.
_NODES, _SUMMANDS = 24, 6
_KINDS = Binary | Concat | Identity | Reshape | Slice | Unary


class Rotation(NamedTuple):
    """A tensor as `x[j] * cos[i, j] + x[pair of j] * sin[i, j]` along its last two axes.

    The pair of a number is beside it if they are `adjacent`, else half the axis away.
    """

    x: str
    cos: Array
    sin: Array
    adjacent: bool


# For every number behind the leading axes: a place in the last two axes of x, and its factor.
_Term = tuple[Array, Array]


def rotation(edit: Edit, name: str) -> Rotation | None:
    """The rotation that a tensor (..., pixels, numbers) is of another one, if it is one."""
    node, shape = edit.producer(name), edit.shape(name) or ()
    outermost = node and (node.op == Binary("add") or isinstance(node.op, Concat | Reshape))
    if not outermost or len(shape) < 3 or shape[-1] % 2:
        return None
    for x in _before(edit, name):
        if edit.shape(x) == shape:
            terms = _terms(edit, name, x, shape)
            found = _turned(x, terms, shape) if terms else None
            if found:
                return found
    return None


def _before(edit: Edit, name: str) -> Iterator[str]:
    """The values from which a value is computed by nodes of these kinds, the nearest first."""
    seen = [name]
    for value in seen:  # which grows
        node = edit.producer(value)
        if node is None or not isinstance(node.op, _KINDS) or len(seen) > _NODES:
            continue
        for x in node.inputs:
            if x not in edit.constants and x not in seen:
                seen.append(x)
                yield x


def _terms(edit: Edit, name: str, x: str, shape: Shape) -> list[_Term] | None:
    """The summands of every number of a value; None if it is no such sum of numbers of `x`."""
    lead = len(shape) - 2
    own, node = edit.shape(name), edit.producer(name)
    if not own or own[:lead] != shape[:lead] or edit.exact(name):
        return None
    if name == x:
        places = np.arange(shape[-2] * shape[-1]).reshape(shape[-2:])
        return [(places, np.ones(places.shape))]
    if node is None or not isinstance(node.op, _KINDS):
        return None
    given = {i: _terms(edit, x_, x, shape) for i, x_ in enumerate(node.inputs)
             if x_ not in edit.constants}  # fmt: skip
    parts = [terms for terms in given.values() if terms]
    if len(parts) < len(given):
        return None
    found = _computed(edit, node, parts, own[lead:], lead)
    return found if found and len(found) <= _SUMMANDS else None


def _computed(
    edit: Edit, node: Node, parts: list[list[_Term]], tail: Shape, lead: int
) -> list[_Term] | None:
    """The summands of a node's result; `parts` are those of its computed operands."""
    first, alone = parts[0], len(parts) == 1
    match node.op:
        case Identity():
            return first
        case Unary("neg"):
            return [(at, -factor) for at, factor in first]
        case Reshape():
            return [(at.reshape(tail), factor.reshape(tail)) for at, factor in first]
        case Slice(starts, sizes, steps):
            axes = zip(starts[lead:], sizes[lead:], steps[lead:], strict=True)
            kept = np.ix_(*(a + step * np.arange(n) for a, n, step in axes))
            return [(at[kept], factor[kept]) for at, factor in first]
        case Concat(axis) if axis >= lead and len(parts) == len(node.inputs):
            most = max(map(len, parts))
            rows = [[*p, *[(p[0][0], np.zeros_like(p[0][1]))] * (most - len(p))] for p in parts]
            columns = zip(*rows, strict=True)
            joined = (
                [np.concatenate(x, axis - lead) for x in zip(*c, strict=True)] for c in columns
            )
            return [(at, factor) for at, factor in joined]
        case Binary("add" | "sub" as function, "") if len(parts) == 2:
            sign = 1 if function == "add" else -1
            both = [*first, *((at, sign * factor) for at, factor in parts[1])]
            return both if all(at.shape == tail for at, _ in both) else None
        case Binary("mul", "") if alone:
            values = next(edit.constants[x] for x in node.inputs if x in edit.constants)
            values = values.reshape((1,) * (lead + len(tail) - values.ndim) + values.shape)
            if set(values.shape[:lead]) <= {1} and all(at.shape == tail for at, _ in first):
                factors = np.broadcast_to(values[(0,) * lead], tail)
                return [(at, factor * factors) for at, factor in first]
    return None


def _turned(x: str, terms: list[_Term], shape: Shape) -> Rotation | None:
    """The rotation of which these are the summands."""
    size = shape[-1]
    own = np.arange(shape[-2] * size).reshape(shape[-2:])
    if any(at.shape != own.shape for at, _ in terms):
        return None
    column = np.arange(size)
    for adjacent in (False, True):
        pairs = own[:, column ^ 1 if adjacent else (column + size // 2) % size]
        known = sum(
            ((at == own) | (at == pairs) | (factor == 0)).astype(int) for at, factor in terms
        )
        if np.all(known == len(terms)):
            cos, sin = (sum(np.where(at == place, factor, 0) for at, factor in terms)
                        for place in (own, pairs))  # fmt: skip
            if np.any(sin):
                return Rotation(x, np.asarray(cos), np.asarray(sin), adjacent)
    return None

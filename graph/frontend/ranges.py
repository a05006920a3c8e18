"""Which operators float32 computes exactly on whole numbers, and the range of what they give."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastrun.graph.core.model import Shape, Tensor
from fastrun.graph.core.ops import (
    ArgReduce,
    Binary,
    Cast,
    Concat,
    CumSum,
    Expand,
    Gather,
    GatherElements,
    GatherND,
    Identity,
    Op,
    Reduce,
    Reshape,
    Slice,
    TopK,
    Transpose,
    Unary,
    Where,
)

# The largest integer up to which float32 holds all.
EXACT = 2**24

Range = tuple[float, float]
TRUTH: Range = (0, 1)
ANY: Range = (-math.inf, math.inf)
_COMPARISONS = ("equal", "greater", "greaterorequal", "less", "lessorequal")
_LOGIC = {"and": "min", "or": "max", "xor": "unequal"}


class Unknown(Exception):
    """A node cannot be computed in float32."""


def computed(
    op: Op, ranges: Sequence[Range | None], shape: Shape, result: Tensor, given: bool
) -> tuple[Op, Range | None]:
    """The operator in float32, and the range of its result if that is a number.

    `ranges` are those of the operands, None for one that is no number; `shape` is that of the
    first. `given` says that the second one is an input as it was given, whose numbers a run
    checks if they are indices, or that it is known to have indices of points inside.

    Raises:
        Unknown: not every value is exact.
    """
    whole = [r for r in ranges if r is not None]
    x = ranges[0]
    match op:
        case Reshape() | Expand() | Transpose() | Slice() | Identity() | Concat():
            return op, _union(_all(ranges))
        case Gather(axis=axis) | GatherElements(axis=axis):
            if len(ranges) > 1 and not given:
                n = shape[axis]
                _check(ranges[1] is not None and -n <= ranges[1][0] and ranges[1][1] < n)
            return op, x
        case GatherND():
            _check(given)
            return op, x
        case Cast():
            return _converted(x, result)
        case Where():
            _check(len(whole) in (1, 3) and ranges[0] is not None)
            return op, _union(whole[1:]) if whole[1:] else None
        case ArgReduce(axis=axis) | TopK(axis=axis):
            _check(shape[axis] <= EXACT)
            return op, (0, shape[axis] - 1)
        case CumSum() | Reduce(function="sum"):
            low, high = _union(_all(ranges))
            terms = math.prod(shape)
            return op, _exact((min(low, 0) * terms, max(high, 0) * terms))
        case Reduce(function="max" | "min"):
            return op, _union(_all(ranges))
        case Unary(function="not" | "isnan"):
            return op, TRUTH
        case Unary(function="neg"):
            low, high = _union(_all(ranges))
            return op, (-high, -low)
        case Binary():
            return _combined(op, ranges)
    raise Unknown


def _converted(x: Range | None, result: Tensor) -> tuple[Op, Range | None]:
    """A conversion; the numbers that float32 has stay."""
    if result.dtype.kind == "f":
        return Identity(), None
    if result.dtype.kind == "b":
        return Binary("unequal"), TRUTH
    limits = np.iinfo(result.dtype)
    if x is None:
        # What is outside of the type is undefined.
        return Unary("trunc"), (limits.min, limits.max)
    _check(limits.min <= x[0] and x[1] <= limits.max)
    return Identity(), x


def _combined(op: Binary, ranges: Sequence[Range | None]) -> tuple[Op, Range]:
    if op.function in _COMPARISONS and ranges == [None, None]:
        return op, TRUTH
    a, b = _all(ranges)
    if op.function in _COMPARISONS:
        # Rounding keeps the order; a small number is equal to itself alone.
        _check(any(max(-low, high) < EXACT for low, high in (a, b)))
        return op, TRUTH
    if op.function in _LOGIC:
        return Binary(_LOGIC[op.function]), TRUTH
    _exact(a), _exact(b)
    match op.function:
        case "add":
            return op, _exact((a[0] + b[0], a[1] + b[1]))
        case "sub":
            return op, _exact((a[0] - b[1], a[1] - b[0]))
        case "mul":
            products = [x * y for x in a for y in b]
            return op, _exact((min(products), max(products)))
        case "max" | "min":
            function = max if op.function == "max" else min
            return op, (function(a[0], b[0]), function(a[1], b[1]))
        case "div":  # rounded towards zero, so down for these
            _check(a[0] >= 0 and b[0] >= 1)
            return Binary("quotient"), (0, a[1] // b[0])
        case "mod":
            _check(b[0] >= 1)
            return op, (0, b[1] - 1)
    raise Unknown


def _check(holds: bool) -> None:
    if not holds:
        raise Unknown


def _all(ranges: Sequence[Range | None]) -> list[Range]:
    """The ranges, if all operands are numbers."""
    known = [r for r in ranges if r is not None]
    _check(len(known) == len(ranges))
    return known


def _union(ranges: Sequence[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _exact(values: Range) -> Range:
    """The range, if float32 holds every number in it."""
    _check(-EXACT <= values[0] <= values[1] <= EXACT)
    return values

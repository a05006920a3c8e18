"""Integers and truth values that float32 holds exactly become float32: kernels compute them.

Truth is 1 and 0. Of integers the range is followed from node to node: comparisons, places of
extremes and small constants have known ones. Where every value on the way is exact, a node that
NumPy would compute becomes one of kernels. Inputs of any integers are rounded to float32 if all
that reads them gets the same from the rounded number: look-ups and comparisons with small numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastrun.graph.core.model import Array, Graph, Node, Tensor, unused
from fastrun.graph.core.ops import (
    ArgReduce,
    Binary,
    Cast,
    Concat,
    CumSum,
    Expand,
    Gather,
    Identity,
    Numpy,
    Op,
    Reduce,
    Reshape,
    Slice,
    Transpose,
    Unary,
    Where,
)

# The largest integer up to which float32 holds all.
EXACT = 2**24

Range = tuple[float, float]
_TRUTH: Range = (0, 1)
_ANY: Range = (-math.inf, math.inf)
_COMPARISONS = ("equal", "greater", "greaterorequal", "less", "lessorequal")
_LOGIC = {"and": "min", "or": "max", "xor": "unequal"}


def with_numbers(graph: Graph) -> Graph:
    """The graph with integers and truth values in float32 where that computes the same."""
    kinds = {t.dtype.kind for t in graph.tensors.values()}
    if graph.grids or not kinds & {*"biu"}:
        return graph
    kept: set[str] = set()
    while True:
        attempt = _Attempt(graph, kept)
        # An input that a node of NumPy reads as well is converted for nothing.
        if not (returned := attempt.returned & {*graph.inputs}):
            return attempt.graph()
        kept |= returned


class _Unknown(Exception):
    """A node cannot be computed in float32."""


class _Attempt:
    """The graph with numbers in float32, but for the inputs in `kept`.

    `returned` are the values that NumPy needs in their own types again.
    """

    def __init__(self, graph: Graph, kept: set[str]) -> None:
        self._graph, self.returned = graph, set[str]()
        self._nodes, self._ranges = list[Node](), dict[str, Range]()
        self._given = set[str]()  # inputs, and the same in other shapes
        self._tensors, self._constants = dict(graph.tensors), dict(graph.constants)
        self._outside, self._whole = dict(graph.outside), list(graph.whole)
        self._names: dict[tuple[str, str], str] = {}
        for name in graph.inputs:
            tensor = graph.tensors[name]
            if name not in kept and name not in graph.outputs and _is_number(tensor):
                self._represent(name, _values(tensor.dtype))
                self._given.add(name)
                self._whole.append(name)
        for node in graph.nodes:
            try:
                self._add(node)
            except _Unknown:
                inputs = tuple(self._own(x) for x in node.inputs)
                self._nodes.append(replace(node, inputs=inputs))

    def graph(self) -> Graph:
        """The new graph."""
        whole = replace(
            self._graph,
            nodes=tuple(self._nodes),
            tensors=self._tensors,
            constants=self._constants,
            outside=self._outside,
            whole=tuple(self._whole),
        )
        return whole.with_nodes(whole.nodes, whole.tensors, whole.constants, whole.grids)

    def _represent(self, name: str, values: Range) -> None:
        """Let a value be float32 from now on."""
        tensor = self._graph.tensors[name]
        self._ranges[name] = values
        self._tensors[name] = Tensor(tensor.shape, np.dtype(np.float32))
        if name in self._graph.inputs or name in self._graph.outputs:
            self._outside.setdefault(name, tensor.dtype)

    def _own(self, name: str) -> str:
        """The name of a value in its own type, for NumPy."""
        if name not in self._ranges:
            return name
        self.returned.add(name)
        return self._named(name, "own", lambda fresh: self._cast(name, fresh))

    def _cast(self, name: str, fresh: str) -> None:
        self._tensors[fresh] = self._graph.tensors[name]
        self._nodes.append(Node(fresh, Numpy(Cast()), (name,), (fresh,)))

    def _named(self, name: str, kind: str, make: Callable[[str], None]) -> str:
        """The value made of another one, once."""
        if (name, kind) not in self._names:
            fresh = unused(f"{name}.{kind}", self._tensors, self._constants)
            self._names[name, kind] = fresh
            make(fresh)
        return self._names[name, kind]

    def _add(self, node: Node) -> None:
        """Add a node that is computed in float32.

        Raises:
            _Unknown: it is not, or it is already.
        """
        if not isinstance(node.op, Numpy) or len(node.outputs) != 1:
            raise _Unknown
        result = self._graph.tensors.get(node.output)
        if result is None or not (_is_number(result) or _is_float(result)):
            raise _Unknown
        fixed = isinstance(node.op.op, Gather) and node.inputs[1] in self._constants
        names = node.inputs[:1] if fixed else node.inputs
        read = [self._operand(x) for x in names]
        op, values = self._computed(node, [known for _, known in read], result)
        inputs = (*(x for x, _ in read), *node.inputs[len(names) :])
        if isinstance(op, Binary) and len(inputs) == 1:
            zero = np.zeros((), np.float32)
            inputs = (*inputs, self._named(node.output, "zero", lambda x: self._put(x, zero)))
        self._nodes.append(replace(node, op=op, inputs=inputs))
        if values is not None:
            self._represent(node.output, values)
        if inputs[0] in self._given and isinstance(op, Reshape | Identity):
            self._given.add(node.output)

    def _put(self, name: str, values: Array) -> None:
        self._constants[name] = values

    def _operand(self, name: str) -> tuple[str, Range | None]:
        """An operand in float32, and the range of a whole number."""
        if not name:
            raise _Unknown
        if name in self._constants:
            values = self._constants[name]
            if values.dtype == np.float32:
                return name, None
            if values.dtype.kind not in "biu" or not values.size:
                raise _Unknown
            low, high = int(values.min()), int(values.max())
            if max(-low, high) >= EXACT:
                raise _Unknown
            new = values.astype(np.float32)
            return self._named(name, "float", lambda x: self._put(x, new)), (low, high)
        tensor = self._tensors.get(name)
        if tensor is None or not _is_float(tensor):
            raise _Unknown
        return name, self._ranges.get(name)

    def _computed(
        self, node: Node, ranges: Sequence[Range | None], result: Tensor
    ) -> tuple[Op, Range | None]:
        """The operator in float32, and the range of its result if that is a number.

        Raises:
            _Unknown: not every value is exact.
        """
        assert isinstance(node.op, Numpy)
        op, whole = node.op.op, [r for r in ranges if r is not None]
        x = ranges[0]
        match op:
            case Reshape() | Expand() | Transpose() | Slice() | Identity() | Concat():
                return op, _union(_all(ranges))
            case Gather(axis=axis):
                if len(ranges) > 1 and node.inputs[1] not in self._given:
                    n = self._shape(node.inputs[0])[axis]
                    _check(ranges[1] is not None and -n <= ranges[1][0] and ranges[1][1] < n)
                return op, x
            case Cast():
                return self._converted(node, x, result)
            case Where():
                _check(len(whole) in (1, 3) and ranges[0] is not None)
                return op, _union(whole[1:]) if whole[1:] else None
            case ArgReduce(axis=axis):
                _check(self._shape(node.inputs[0])[axis] <= EXACT)
                return op, (0, self._shape(node.inputs[0])[axis] - 1)
            case CumSum() | Reduce(function="sum"):
                low, high = _union(_all(ranges))
                terms = math.prod(self._shape(node.inputs[0]))
                return op, _exact((min(low, 0) * terms, max(high, 0) * terms))
            case Reduce(function="max" | "min"):
                return op, _union(_all(ranges))
            case Unary(function="not" | "isnan"):
                return op, _TRUTH
            case Unary(function="neg"):
                low, high = _union(_all(ranges))
                return op, (-high, -low)
            case Binary():
                return self._combined(op, ranges)
        raise _Unknown

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._graph.shape(name)

    def _converted(self, node: Node, x: Range | None, result: Tensor) -> tuple[Op, Range | None]:
        """A conversion; the numbers that float32 has stay."""
        if result.dtype.kind == "f":
            return Identity(), None
        if result.dtype.kind == "b":
            return Binary("unequal"), _TRUTH
        limits = np.iinfo(result.dtype)
        if x is None:
            # What is outside of the type is undefined.
            return Unary("trunc"), (limits.min, limits.max)
        _check(limits.min <= x[0] and x[1] <= limits.max)
        return Identity(), x

    def _combined(self, op: Binary, ranges: Sequence[Range | None]) -> tuple[Op, Range]:
        if op.function in _COMPARISONS and ranges == [None, None]:
            return op, _TRUTH
        a, b = _all(ranges)
        if op.function in _COMPARISONS:
            # Rounding keeps the order; a small number is equal to itself alone.
            _check(any(max(-low, high) < EXACT for low, high in (a, b)))
            return op, _TRUTH
        if op.function in _LOGIC:
            return Binary(_LOGIC[op.function]), _TRUTH
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
                return Binary("quotient"), (0, a[1])
            case "mod":
                _check(b[0] >= 1)
                return op, (0, b[1] - 1)
        raise _Unknown


def _is_number(tensor: Tensor) -> bool:
    """Whether a tensor has integers or truth values that a kernel could read as float32."""
    plain = tensor.dtype.kind in "biu" and tensor.dtype.isbuiltin == 1
    return plain and 0 not in tensor.shape


def _values(dtype: np.dtype[Any]) -> Range:
    """The numbers that an input may have."""
    if dtype.kind == "b":
        return _TRUTH
    limits = np.iinfo(dtype)
    return (limits.min, limits.max) if dtype.itemsize < 4 else _ANY


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype == np.float32 and 0 not in tensor.shape


def _check(holds: bool) -> None:
    if not holds:
        raise _Unknown


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

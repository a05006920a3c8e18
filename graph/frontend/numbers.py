"""Integers and truth values that float32 holds exactly become float32: kernels compute them.

Truth is 1 and 0. Of integers the range is followed from node to node: comparisons, places of
extremes and small constants have known ones. Where every value on the way is exact, a node that
NumPy would compute becomes one of kernels. Inputs of any integers are rounded to float32 if all
that reads them gets the same from the rounded number: look-ups and comparisons with small numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastrun.graph.core.model import Array, Graph, Node, Tensor, unused
from fastrun.graph.core.ops import (
    Binary,
    Cast,
    Concat,
    Gather,
    GatherND,
    Identity,
    Numpy,
    Reshape,
)
from fastrun.graph.frontend.ranges import ANY, EXACT, TRUTH, Range, Unknown, computed


def with_numbers(graph: Graph) -> Graph:
    """The graph with integers and truth values in float32 where that computes the same."""
    kinds = {t.dtype.kind for t in graph.tensors.values()}
    if not kinds & {*"biu"}:
        return graph
    kept: set[str] = set()
    while True:
        attempt = _Attempt(graph, kept)
        # An input that a node of NumPy reads as well is converted for nothing.
        if not (returned := attempt.returned & {*graph.inputs}):
            return attempt.graph()
        kept |= returned


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
            except Unknown:
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
            Unknown: it is not, or it is already.
        """
        if not isinstance(node.op, Numpy) or len(node.outputs) != 1:
            raise Unknown
        result = self._graph.tensors.get(node.output)
        if result is None or not (_is_number(result) or _is_float(result)):
            raise Unknown
        fixed = isinstance(node.op.op, Gather) and node.inputs[1] in self._constants
        names = node.inputs[:1] if fixed else node.inputs
        read = [self._operand(x) for x in names]
        given = len(names) > 1 and names[1] in self._given
        if isinstance(node.op.op, GatherND):
            given = self._points_inside(node.op.op, node)
        shape = self._graph.shape(names[0])
        op, values = computed(node.op.op, [known for _, known in read], shape, result, given)
        inputs = (*(x for x, _ in read), *node.inputs[len(names) :])
        if isinstance(op, Binary) and len(inputs) == 1:
            zero = np.zeros((), np.float32)
            inputs = (*inputs, self._named(node.output, "zero", lambda x: self._put(x, zero)))
        self._nodes.append(replace(node, op=op, inputs=inputs))
        if values is not None:
            self._represent(node.output, values)
        if inputs[0] in self._given and isinstance(op, Reshape | Identity):
            self._given.add(node.output)

    def _points_inside(self, op: GatherND, node: Node) -> bool:
        """Whether the numbers of each axis, which the last axis of the indices has, are inside."""
        sizes = self._graph.shape(node.inputs[0])[op.batch :]
        shape, before = self._graph.shape(node.inputs[1]), self._graph.producers.get(node.inputs[1])
        names = [node.inputs[1]] * shape[-1]
        if before and before.op in (Concat(len(shape) - 1), Numpy(Concat(len(shape) - 1))):
            names = [x for x in before.inputs for _ in range(self._graph.shape(x)[-1])]
        known = [self._operand(x)[1] for x in names]
        return all(r and -n <= r[0] and r[1] < n for r, n in zip(known, sizes, strict=False))

    def _put(self, name: str, values: Array) -> None:
        self._constants[name] = values

    def _operand(self, name: str) -> tuple[str, Range | None]:
        """An operand in float32, and the range of a whole number."""
        if not name:
            raise Unknown
        if name in self._constants:
            values = self._constants[name]
            if values.dtype == np.float32:
                return name, None
            if values.dtype.kind not in "biu" or not values.size:
                raise Unknown
            low, high = int(values.min()), int(values.max())
            if max(-low, high) >= EXACT:
                raise Unknown
            new = values.astype(np.float32)
            return self._named(name, "float", lambda x: self._put(x, new)), (low, high)
        tensor = self._tensors.get(name)
        if tensor is None or not _is_float(tensor):
            raise Unknown
        return name, self._ranges.get(name)


def _is_number(tensor: Tensor) -> bool:
    """Whether a tensor has integers or truth values that a kernel could read as float32."""
    plain = tensor.dtype.kind in "biu" and tensor.dtype.isbuiltin == 1
    return plain and 0 not in tensor.shape


def _values(dtype: np.dtype[Any]) -> Range:
    """The numbers that an input may have."""
    if dtype.kind == "b":
        return TRUTH
    limits = np.iinfo(dtype)
    return (limits.min, limits.max) if dtype.itemsize < 4 else ANY


def _is_float(tensor: Tensor) -> bool:
    return tensor.dtype == np.float32 and 0 not in tensor.shape

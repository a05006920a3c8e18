"""The node that a lowering reads, the nodes that it writes, and the table of lowerings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Array, Node, Shape, Tensor
from fastrun.graph.core.ops import Ints, Op
from fastrun.graph.core.shapes import result_shape


class Unsupported(Exception):
    """Our operators cannot express this use of an operator.

    The message completes the sentence "the node needs ...".
    """


class Site:
    """One ONNX node that is being lowered, and all that is known about its inputs and outputs.

    `outputs` has "" for an output that nothing reads. `fresh` gives a name that no value has.
    """

    def __init__(
        self,
        node: onnx.NodeProto,
        outputs: tuple[str, ...],
        opset: int,
        tensors: Mapping[str, Tensor],
        constants: Mapping[str, Array],
        name: str,
        fresh: Callable[[str], str],
    ) -> None:
        self.operator = node.op_type
        self.domain = node.domain
        self.opset = opset
        self.name = name
        self.inputs = tuple(node.input)
        self.outputs = outputs
        self.nodes: list[Node] = []
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, Array] = {}
        self.filters: dict[str, str] = {}  # constants of `put` with the filters of other ones
        self._attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self._results = tuple(node.output)
        self._known = tensors
        self._fresh = fresh
        self._constants = constants

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute in Python form; text as str, lists as tuples."""
        value = self._attributes.get(name, default)
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        return tuple(value) if isinstance(value, list) else value

    def has(self, index: int) -> bool:
        """Whether an optional input is present."""
        return index < len(self.inputs) and bool(self.inputs[index])

    def tensor(self, index: int) -> Tensor:
        """Shape and type of an input."""
        name = self.inputs[index]
        if name in self._constants:
            return Tensor(self._constants[name].shape, self._constants[name].dtype)
        if name not in self._known:
            raise Unsupported(f"the shape of its input {name!r}")
        return self._known[name]

    def shape(self, index: int) -> Shape:
        """The shape of an input."""
        return self.tensor(index).shape

    def output(self, index: int) -> Tensor:
        """Shape and type of an output."""
        if self._results[index] not in self._known:
            raise Unsupported("an output shape that does not depend on data")
        return self._known[self._results[index]]

    @property
    def result(self) -> Tensor:
        """Shape and type of the first output."""
        return self.output(0)

    def is_constant(self, index: int) -> bool:
        """Whether an input does not depend on data."""
        return self.inputs[index] in self._constants

    def constant(self, index: int, what: str) -> Array:
        """The value of an input that must not depend on data."""
        if not self.is_constant(index):
            raise Unsupported(f"constant {what}")
        return self._constants[self.inputs[index]]

    def ints(self, attribute: str, index: int, what: str) -> Ints | None:
        """Parameters that are an attribute in old opsets and an input in new; None if absent."""
        if attribute in self._attributes:
            return tuple(self.attribute(attribute, ()))
        if not self.has(index):
            return None
        return tuple(int(v) for v in self.constant(index, what).reshape(-1))

    def scalar(self, attribute: str, index: int, default: float) -> float:
        """As `ints`, for one number."""
        if self.has(index):
            value = self.constant(index, attribute).reshape(-1)
            return float(value[0]) if value.size else default
        return float(self.attribute(attribute, default))

    def floats(self, attribute: str, index: int) -> tuple[float, ...]:
        """As `ints`, for numbers that must be given."""
        if attribute in self._attributes:
            return tuple(self.attribute(attribute, ()))
        return tuple(float(v) for v in self.constant(index, attribute).reshape(-1))

    def axis(self, default: int) -> int:
        """The attribute `axis`, counted from the front."""
        return self.from_front(int(self.attribute("axis", default)))

    def from_front(self, axis: int) -> int:
        """An axis of the first input, counted from the front. A negative one counts from the end.

        Raises:
            GraphError: the input has no such axis.
        """
        rank = len(self.shape(0))
        if not -rank <= axis < rank:
            raise self.impossible(f"{self.shape(0)} has no axis {axis}")
        return axis % rank

    def impossible(self, why: str) -> GraphError:
        """The error for a node that contradicts itself."""
        return GraphError(f"node {self.name!r} ({self.operator}) is impossible: {why}")

    def emit(
        self,
        op: Op,
        *inputs: str,
        output: str = "",
        shape: Shape | None = None,
        dtype: np.dtype[Any] | None = None,
    ) -> str:
        """Add a node. Returns the name of its result, a new one unless `output` is given.

        `shape` is needed if the operator and its operands do not determine it, `dtype` if the
        result has another type than the first output.
        """
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        try:
            own = result_shape(op, [self.shape_of(x) for x in inputs if x])
        except ValueError as error:
            raise self.impossible(str(error)) from None
        shape = shape if own is None else own
        assert shape is not None
        k = len(self.nodes)
        name = f"{self.name}.{k}" if k else self.name
        output = output or self._fresh(f"{self.outputs[0]}.{k}")
        self.tensors[output] = Tensor(shape, dtype or self._dtype)
        self.nodes.append(Node(name, op, inputs, (output,)))
        return output

    def put(self, values: Array, filters_of: str = "") -> str:
        """Add a constant for emitted nodes. Returns its name.

        With `filters_of` it has values of that constant, each on the axis of its output channel.
        """
        name = self._fresh(f"{self.outputs[0]}.constant")
        self.constants[name] = values
        if filters_of:
            self.filters[name] = filters_of
        return name

    def finish(self, op: Op, *inputs: str, shape: Shape | None = None) -> None:
        """Add the node that computes the first output."""
        if extra := next(filter(None, self.outputs[1:]), ""):
            raise Unsupported(f"nothing to read its secondary output {extra!r}")
        self.emit(op, *inputs, output=self.outputs[0], shape=shape)

    @property
    def _dtype(self) -> np.dtype[Any]:
        """The element type of the results: as inferred, else the type of the first input."""
        known = self._known.get(self._results[0])
        return known.dtype if known else self.tensor(0).dtype

    def shape_of(self, name: str) -> Shape:
        """The shape of an input, of an emitted result, or of a constant that was put."""
        if name in self.constants:
            return self.constants[name].shape
        if name in self.tensors:
            return self.tensors[name].shape
        return self.shape(self.inputs.index(name))


_LOWERINGS: dict[str, Callable[[Site], None]] = {}


def lower(site: Site) -> None:
    """Emit nodes that compute what the ONNX node computes.

    Raises:
        Unsupported: the operator, or this use of it, is not supported.
    """
    if site.domain:
        raise Unsupported(f"an operator of the domain {site.domain!r}, which is not ONNX's own")
    if site.operator in ("If", "Loop", "Scan"):
        raise Unsupported("control flow that does not depend on data: export the model without")
    if site.operator not in _LOWERINGS:
        raise Unsupported("an operator that is not supported: replace it before export")
    _check_inputs(site)
    _LOWERINGS[site.operator](site)


def _check_inputs(site: Site) -> None:
    """Refuse a node that lacks a required input, or has too many."""
    formal = onnx.defs.get_schema(site.operator, site.opset, site.domain).inputs
    kinds = [x.option for x in formal]
    more = len(site.inputs) - len(kinds)
    if kinds[-1] == onnx.defs.OpSchema.FormalParameterOption.Variadic:
        kinds += kinds[-1:] * more
    for index, kind in enumerate(kinds):
        if kind != onnx.defs.OpSchema.FormalParameterOption.Optional and not site.has(index):
            raise site.impossible(f"its input {index} is missing")
    if len(site.inputs) > len(kinds):
        raise site.impossible(f"it has {len(site.inputs)} inputs instead of {len(kinds)} at most")


def lowers(*operators: str) -> Callable[[Callable[[Site], None]], Callable[[Site], None]]:
    """Register a function for ONNX operators."""

    def register(function: Callable[[Site], None]) -> Callable[[Site], None]:
        _LOWERINGS.update(dict.fromkeys(operators, function))
        return function

    return register

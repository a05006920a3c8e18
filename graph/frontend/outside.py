"""What the caller gives and gets: inputs and outputs, and their element types in the model."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.model import Shape
from fastrun.graph.frontend.file import given_shape, live_nodes, names_read
from fastrun.graph.frontend.floats import other_type, target, to_float32
from fastrun.graph.frontend.qoperators import computes_integers
from fastrun.graph.frontend.quantised import Stored
from fastrun.graph.frontend.values import LARGEST_TENSOR, Values

# Types that the caller may convert from and to: every conversion gives the same result.
_TO_FLOAT = {
    *(TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16),
    *(TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT16, TensorProto.DOUBLE),
}


class Outside:
    """The inputs and outputs of a model.

    `types` are those of the values that have another type for the caller than in the graph
    (`Graph.outside`). `shapes` gives or overrides the shapes of inputs. If the graph computes in
    `float32`, other floating-point types are such types.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        shapes: Mapping[str, Sequence[int]],
        float32: bool,
    ) -> None:
        self.types: dict[str, np.dtype[Any]] = {}
        self._graph, self._shapes, self._float32 = graph, shapes, float32

    def add_inputs(self, values: Values, stored: MutableMapping[str, Stored]) -> tuple[str, ...]:
        """Add the inputs to the values; those that nothing reads may be of any kind.

        Inputs that are integers in the model become `stored` ones too. Returns all names.

        Raises:
            GraphError: there is no such input, or it cannot have such a shape.
            UnsupportedError: an input has open sizes, or is no tensor.
        """
        inputs = [v for v in self._graph.input if v.name not in values.known]
        if unknown := self._shapes.keys() - {v.name for v in inputs}:
            names = ", ".join(v.name for v in inputs)
            raise GraphError(f"the model has no input {min(unknown)!r}: its inputs are {names}")
        for value in inputs:
            values.define(value.name)
            if value.name in values.read:
                element = self._element(value, stored)
                described = helper.make_tensor_type_proto(element, self._shape(value))
                values.set_type(value.name, described)
        return tuple(v.name for v in inputs)

    def keep_types_of_outputs(self, values: Values) -> None:
        """Let outputs have the floating-point types that the model declares."""
        for value in self._graph.output if self._float32 else ():
            declared = other_type(value.type.tensor_type.elem_type)
            known = values.tensors.get(value.name)
            if declared is not None and known is not None and known.dtype == np.float32:
                self.types[value.name] = declared

    def _shape(self, value: onnx.ValueInfoProto) -> Shape:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise UnsupportedError(f"input {value.name!r} is a {kind}: only tensors are supported")
        given = self._shapes.get(value.name)
        try:
            shape = given_shape(value) if given is None else tuple(map(operator.index, given))
        except TypeError:
            raise GraphError(f"input {value.name!r} cannot have shape {given!r}") from None
        if min(shape, default=1) < 0 or math.prod(shape) > LARGEST_TENSOR:
            raise GraphError(f"input {value.name!r} cannot have shape {shape}")
        return shape

    def _element(self, value: onnx.ValueInfoProto, stored: MutableMapping[str, Stored]) -> int:
        """The element type of an input in the graph."""
        name, element = value.name, value.type.tensor_type.elem_type
        other = other_type(element) if self._float32 else None
        if other is not None:
            self.types[name] = other
        elif element in _TO_FLOAT and self._is_converted(name):
            kind = self.types[name] = np.dtype(helper.tensor_dtype_to_np_dtype(element))
            if kind.kind in "ui":
                stored[name] = Stored(None, kind, raw=True)
        else:
            return element
        return TensorProto.FLOAT

    def _is_converted(self, name: str) -> bool:
        """Whether the model only converts an input to float32, or to quantised numbers."""
        readers = [node for node in live_nodes(self._graph) if name in names_read([node])]
        return name not in {v.name for v in self._graph.output} and all(
            (node.op_type == "Cast" and target(to_float32(node)) == TensorProto.FLOAT)
            or node.op_type == "DequantizeLinear"
            or computes_integers(node)
            for node in readers
        )

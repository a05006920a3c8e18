"""Writes operators whose operands or results are truth values and integers.

Where the graph has these as float32, they are converted around ONNX's operator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from fastrun.graph.core.model import Node
from fastrun.graph.core.ops import (
    ArgReduce,
    Binary,
    CumSum,
    Gather,
    GatherElements,
    GatherND,
    TopK,
    Unary,
    Where,
)
from fastrun.graph.to_onnx.nodes import Nodes

_NAMES = {
    "equal": "Equal",
    "greater": "Greater",
    "greaterorequal": "GreaterOrEqual",
    "less": "Less",
    "lessorequal": "LessOrEqual",
    "and": "And",
    "or": "Or",
    "xor": "Xor",
    "not": "Not",
    "isnan": "IsNaN",
}


def write_numbers(to: Nodes, node: Node, inputs: Sequence[str], output: str) -> bool:
    """Write a node, if its operator is one of those; returns whether it is."""
    match node.op:
        case Binary(function="unequal"):
            _converted(to, node, output, "Not", to.put(node.name, "Equal", *inputs))
        case Binary(function="quotient"):
            to.put(node.name, "Floor", to.put(node.name, "Div", *inputs), output=output)
        case Binary(function="mod") if _is_float(to, node.output):
            whole = to.put(node.name, "Floor", to.put(node.name, "Div", *inputs))
            multiple = to.put(node.name, "Mul", whole, inputs[1])
            to.put(node.name, "Sub", inputs[0], multiple, output=output)
        case Unary(function="trunc"):
            size = to.put(node.name, "Floor", to.put(node.name, "Abs", inputs[0]))
            to.put(node.name, "Mul", to.put(node.name, "Sign", inputs[0]), size, output=output)
        case Unary(function="not") if _is_float(to, node.inputs[0]):
            zero = to.number(node.name, 0)
            _converted(to, node, output, "Equal", inputs[0], zero)
        case Unary(function=function) | Binary(function=function) if function in _NAMES:
            _converted(to, node, output, _NAMES[function], *inputs)
        case Where():
            condition = inputs[0]
            if _is_float(to, node.inputs[0]):
                condition = to.put(node.name, "Cast", condition, to=TensorProto.BOOL)
            to.put(node.name, "Where", condition, *inputs[1:], output=output)
        case ArgReduce(function, axis, last):
            keep = len(to.graph.shape(node.output)) == len(to.graph.shape(node.inputs[0]))
            given = {"axis": axis, "keepdims": int(keep), "select_last_index": int(last)}
            _converted(to, node, output, f"Arg{function.capitalize()}", *inputs, **given)
        case TopK(axis, count, largest):
            number = to.constant(f"{node.name}.count", np.array([count], np.int64))
            native = _is_float(to, node.output)
            places = to.fresh(f"{node.name}.places") if native else output
            given = {"axis": axis, "largest": int(largest)}
            to.put_second(node.name, "TopK", *inputs, number, output=places, **given)
            if native:
                to.put(f"{node.name}.cast", "Cast", places, output=output, to=TensorProto.FLOAT)
        case CumSum(axis, exclusive, backwards):
            at = to.constant(f"{node.name}.axis", np.array(axis, np.int64))
            given = {"exclusive": int(exclusive), "reverse": int(backwards)}
            to.put(node.name, "CumSum", *inputs, at, output=output, **given)
        case Gather() | GatherElements() | GatherND():
            indices, kind = inputs[1], type(node.op).__name__
            if _is_float(to, node.inputs[1]):
                indices = to.put(node.name, "Cast", indices, to=TensorProto.INT64)
            op = node.op
            given = {"batch_dims": op.batch} if isinstance(op, GatherND) else {"axis": op.axis}
            to.put(node.name, kind, inputs[0], indices, output=output, **given)
        case _:
            return False
    return True


def _is_float(to: Nodes, name: str) -> bool:
    return to.graph.tensor(name).dtype == np.float32


def _converted(to: Nodes, node: Node, output: str, kind: str, *inputs: str, **given: Any) -> None:
    """Write an operator whose result is float32 in the graph, if it is there."""
    if _is_float(to, node.output):
        value = to.put(node.name, kind, *inputs, **given)
        to.put(f"{node.name}.cast", "Cast", value, output=output, to=TensorProto.FLOAT)
    else:
        to.put(node.name, kind, *inputs, output=output, **given)

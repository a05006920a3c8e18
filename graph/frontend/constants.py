"""Computes the nodes of an ONNX model whose inputs are constant: shapes, unpacked weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Array, Node, Tensor
from fastrun.graph.frontend.file import first_line, label
from fastrun.graph.reference.interpreter import evaluate, results


def by_reference(
    origin: onnx.NodeProto,
    nodes: Sequence[Node],
    tensors: Mapping[str, Tensor],
    constants: Mapping[str, Array],
) -> dict[str, Array]:
    """The values, by name, that `nodes` compute of constants; `origin` was lowered to them.

    `tensors` describes the values.

    Raises:
        GraphError: the node does not fit its inputs.
    """
    found: dict[str, Array] = {}
    for node in nodes:
        operands = [found.get(x, constants.get(x)) for x in node.inputs]
        try:
            with np.errstate(all="ignore"):
                value = evaluate(node, operands, tensors[node.output])
                found[node.output] = value.astype(tensors[node.output].dtype)
        except (ArithmeticError, LookupError, MemoryError, ValueError) as error:
            raise _impossible(origin, error) from None
    return found


def by_onnx(
    node: Node, tensors: Mapping[str, Tensor], constants: Mapping[str, Array]
) -> dict[str, Any]:
    """The values, by name, that a node of an ONNX operator computes of constants.

    Raises:
        GraphError: the node does not fit its inputs.
    """
    values = results(node, [constants.get(x) for x in node.inputs], tensors)
    return {
        y: value.astype(tensors[y].dtype, copy=False) if y in tensors else value
        for y, value in values.items()
    }


def _impossible(node: onnx.NodeProto, error: Exception) -> GraphError:
    return GraphError(f"node {label(node)} cannot be computed: {first_line(error)}")

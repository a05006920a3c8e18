"""Nodes of ONNX that take the place of one that means several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper

from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Array
from fastrun.graph.frontend.file import label
from fastrun.graph.frontend.lowering.site import Unsupported
from fastrun.graph.frontend.values import Values


class Writing:
    """The nodes that take the place of one operator.

    `values` are those that the model has so far, `types` gives the integers' type of one of them.
    """

    def __init__(
        self, node: onnx.NodeProto, values: Values, types: Callable[[str], np.dtype[Any]]
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._node = node
        self._constants = values.constants
        self._types = types
        self._constant = values.constant
        self._fresh = values.fresh
        self._given = {a.name: helper.get_attribute_value(a) for a in node.attribute}

    def _input(self, index: int, needed: bool = True) -> str:
        name = self._node.input[index] if index < len(self._node.input) else ""
        if needed and not name:
            raise self._impossible(f"its input {index} is missing")
        return name

    def _impossible(self, why: str) -> GraphError:
        return GraphError(f"node {label(self._node)} is impossible: {why}")

    def _known(self, index: int, what: str) -> Array:
        name = self._input(index)
        if name not in self._constants:
            raise Unsupported(f"constant {what}")
        return self._constants[name]

    def _put(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or self._fresh(f"{self._node.output[0]}.{len(self.nodes)}")
        name = f"{self._node.name or self._node.output[0]}/{operator}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
        return output

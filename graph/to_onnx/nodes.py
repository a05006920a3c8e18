"""The ONNX nodes and constants that are being written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fastrun.graph.core.model import Array, Graph, unused


class Nodes:
    """ONNX nodes in the order of computing, with the constants that they read.

    Values and nodes get names that neither the graph nor another node has.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._values = {*graph.inputs, *graph.unread, *graph.constants, *graph.tensors}
        self._values.update(name for node in graph.nodes for name in node.outputs)
        self._labels: set[str] = set()

    def fresh(self, name: str) -> str:
        """A name like `name` that no value has."""
        free = unused(name, self._values)
        self._values.add(free)
        return free

    def put(self, label: str, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node called like `label`. Returns its output, a new value unless it is given."""
        output = output or self.fresh(f"{label}.{op.lower()}")
        self._add(label, op, inputs, [output], attributes)
        return output

    def put_second(self, label: str, op: str, *inputs: str, output: str, **attributes: Any) -> None:
        """Add a node of two outputs, the first of which nothing reads."""
        self._add(label, op, inputs, [self.fresh(f"{label}.unread"), output], attributes)

    def _add(
        self,
        label: str,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, Any],
    ) -> None:
        name = unused(label, self._labels)
        self._labels.add(name)
        given = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(helper.make_node(op, inputs, outputs, name, **given))

    def constant(self, name: str, values: Array) -> str:
        """Add a constant under a name like `name`. Returns the name."""
        free = self.fresh(name)
        self.initializers[free] = numpy_helper.from_array(np.asarray(values, order="C"), free)
        return free

    def number(self, label: str, value: float) -> str:
        """Add a float32 number as a constant. Returns its name."""
        return self.constant(f"{label}.number", np.array(value, np.float32))

    def read(self, name: str) -> str:
        """The name of a value; a constant of the graph is written when it is first read."""
        if name in self.graph.constants and name not in self.initializers:
            values = np.asarray(self.graph.constants[name], order="C")
            self.initializers[name] = numpy_helper.from_array(values, name)
        return name

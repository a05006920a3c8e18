"""Decides where quantised values become ONNX's QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from fastrun.graph.core.grid import Grid, weight_axis
from fastrun.graph.core.model import Array, Graph, Node
from fastrun.graph.to_onnx.nodes import Nodes
from fastrun.graph.to_onnx.operators import OPSET, write
from fastrun.kernels.core.dtype import I16

IR_VERSION = 9
IR_OF_NOTES = 10
"""The first version in which nodes have metadata."""

_LARGEST_BIAS = 2**31 - 1


def export_onnx(
    graph: Graph,
    metadata: Mapping[str, str] | None = None,
    notes: Mapping[str, Mapping[str, str]] | None = None,
) -> onnx.ModelProto:
    """The graph as an ONNX model of fixed shapes, with QuantizeLinear and DequantizeLinear (QDQ).

    Nodes and values keep their names. A tensor that is rounded to a grid is quantised and
    dequantised behind its producer; weights with a grid are stored as 8-bit integers, and the
    biases of the layers that read both as 32-bit integers. Advised grids are left out.

    `notes` are metadata of nodes, by the values that they compute in the graph. Viewers show them.

    Raises:
        UnsupportedError: the graph contains a foreign operator.
    """
    graph.check_supported()
    return _Export(graph, notes or {}).model(metadata or {})


class _Export:
    def __init__(self, graph: Graph, notes: Mapping[str, Mapping[str, str]]) -> None:
        self._graph, self._notes = graph, notes
        self._to = Nodes(graph)
        self._grids = {name: grid for name, grid in graph.grids.items() if grid.exact}
        # What the readers of a value read instead.
        self._renamed: dict[str, str] = {}

    def model(self, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The finished model."""
        graph, to = self._graph, self._to
        inputs = [self._input(name) for name in graph.inputs]
        for node in graph.nodes:
            before = len(to.nodes)
            self._add(node)
            for written in to.nodes[before:]:
                for key, value in self._notes.get(node.output, {}).items():
                    written.metadata_props.add(key=key, value=value)
        outputs = [self._described(to.read(name)) for name in graph.outputs]
        used = {*graph.outputs, *(name for node in to.nodes for name in node.input)}
        weights = [tensor for name, tensor in to.initializers.items() if name in used]
        model: onnx.ModelProto = helper.make_model(
            helper.make_graph(to.nodes, graph.name, inputs, outputs, weights),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_OF_NOTES if self._notes else IR_VERSION,
            producer_name="fastrun-toolkit",
        )
        helper.set_model_props(model, dict(metadata))
        return model

    def _described(self, name: str) -> onnx.ValueInfoProto:
        dtype = self._graph.outside.get(name) or self._graph.tensor(name).dtype
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        return helper.make_tensor_value_info(name, kind, self._graph.shape(name))

    def _input(self, name: str) -> onnx.ValueInfoProto:
        value = name
        if name in self._graph.outside:
            kind = helper.np_dtype_to_tensor_dtype(self._graph.tensor(name).dtype)
            value = self._to.put(f"{name}.cast", "Cast", value, to=kind)
        if name in self._grids:
            value = self._rounded(value, self._grids[name], self._to.fresh(f"{name}.rounded"))
        self._renamed[name] = value
        return self._described(name)

    def _add(self, node: Node) -> None:
        """Write a node; its output is rounded, or converted for the caller, by further nodes."""
        inputs = [self._operand(node, i) for i in range(len(node.inputs))]
        output, grid = node.output, self._grids.get(node.output)
        if not grid and output not in self._graph.outside:
            write(self._to, node, inputs, output)
            return
        value = self._to.fresh(f"{output}.raw")
        write(self._to, node, inputs, value)
        if output in self._graph.outside:
            if grid:
                value = self._rounded(value, grid, self._to.fresh(f"{output}.rounded"))
            kind = helper.np_dtype_to_tensor_dtype(self._graph.outside[output])
            self._to.put(f"{output}.cast", "Cast", value, output=output, to=kind)
            self._renamed[output] = value
        elif grid:
            self._rounded(value, grid, output)

    def _operand(self, node: Node, index: int) -> str:
        """What a node reads in the place of one of its inputs."""
        name, axis = node.inputs[index], weight_axis(node.op)
        weights = self._grids.get(node.input(1))
        if name in self._graph.constants and weights and axis is not None and not weights.block:
            if index == 1:
                return self._weights(name, weights, axis)
            if index == 2 and (found := self._bias(node, weights)):
                return found
        return self._renamed.get(name, name) if name in self._renamed else self._to.read(name)

    def _rounded(self, value: str, grid: Grid, output: str) -> str:
        """Quantise and dequantise a value. Returns the result, which is called `output`."""
        scale = self._to.constant(f"{output}.scale", np.array(grid.scale, np.float32))
        zero = self._to.constant(f"{output}.zero", np.array(grid.zero, grid.dtype.numpy))
        label = f"{output}.quantise", f"{output}.dequantise"
        stored = self._to.put(label[0], "QuantizeLinear", value, scale, zero)
        return self._to.put(label[1], "DequantizeLinear", stored, scale, zero, output=output)

    def _weights(self, name: str, grid: Grid, axis: int) -> str:
        """Weights that are stored as integers, with a scale for each output channel."""
        key = f"{name}.{axis}"
        if key not in self._renamed:
            stored = grid.stored(self._graph.constants[name], axis)
            scale = np.asarray(grid.scale, np.float32)
            zero = np.zeros(scale.shape, stored.dtype)
            if grid.dtype is I16:  # bytes less a zero point
                wide = np.moveaxis(stored, axis, 0).reshape(scale.size, -1)
                zero = np.maximum(-wide.min(axis=1), 0).astype(np.uint8)
                along = [-1 if i == axis else 1 for i in range(stored.ndim)]
                stored = (stored + zero.reshape(along)).astype(np.uint8)
            self._renamed[key] = self._dequantised(name, stored, scale, zero, axis)
        return self._renamed[key]

    def _bias(self, node: Node, weights: Grid) -> str:
        """A bias stored as integers, in the scales of the sums to which it is added.

        "" if these integers do not stand for its values.
        """
        x = self._grids.get(node.inputs[0])
        values = self._graph.constants[node.inputs[2]].reshape(-1).astype(np.float64)
        if not x or values.size != np.size(weights.scale):
            return ""
        scale = np.multiply(x.scale, weights.scale, dtype=np.float64).astype(np.float32)
        exact = values / scale
        stored = np.rint(exact)
        if (np.abs(stored) > _LARGEST_BIAS).any() or not np.allclose(stored, exact, 1e-6, 1e-2):
            return ""
        zero = np.zeros(scale.shape, np.int32)
        return self._dequantised(f"{node.name}.bias", stored.astype(np.int32), scale, zero, 0)

    def _dequantised(self, label: str, stored: Array, scale: Array, zero: Array, axis: int) -> str:
        """The values that integers stand for."""
        start = self._to.constant(f"{label}.zero", zero)
        integers = self._to.constant(f"{label}.quantised", stored)
        given = integers, self._to.constant(f"{label}.scale", scale), start
        return self._to.put(f"{label}.dequantise", "DequantizeLinear", *given, axis=axis)

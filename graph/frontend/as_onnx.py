"""Nodes that no kernel computes: left to NumPy, or refused when the network is used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from fastrun.graph.core.model import Node
from fastrun.graph.core.ops import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Foreign,
    Gemm,
    Numpy,
    Onnx,
    Op,
    Pool,
    Recurrent,
    operand,
)
from fastrun.graph.frontend.file import convolves, names_read
from fastrun.graph.frontend.inline import renamed
from fastrun.graph.frontend.opsets import Opsets
from fastrun.graph.frontend.values import Values
from fastrun.graph.reference.by_onnx import is_known

# The inputs that kernels need as constants.
_FIXED: Mapping[type[Op], Sequence[int]] = {
    Conv: (1, 2),
    ConvTranspose: (1, 2),
    BatchNorm: (1, 2, 3, 4),
    Gemm: (2,),
    Recurrent: (1, 2),
}


def with_kernel(node: Node, values: Values) -> Node:
    """The node, left to NumPy if no kernel computes it."""
    names = [x for x in (*node.inputs, *node.outputs) if x and x not in values.constants]
    tensors = [values.tensors[x] for x in names]
    native = all(t.dtype == np.float32 and 0 not in t.shape for t in tensors)
    native = native and values.are_constant(map(node.input, _FIXED.get(type(node.op), ())))
    if isinstance(node.op, ConvTranspose | Pool):  # of images
        native = native and len(values.tensors[node.output].shape) < 5
    return node if native else replace(node, op=Numpy(node.op))


def unlowered(
    node: onnx.NodeProto,
    name: str,
    outputs: Sequence[str],
    opsets: Opsets,
    need: str,
    values: Values,
) -> Node:
    """An ONNX node for NumPy; a foreign one with this `need` if NumPy does not know the operator.

    `outputs` has "" for an output that nothing reads.
    """
    captured = sorted((names_read([node]) - {*node.input}) & values.known)
    inputs = (*node.input, *captured)
    unknown = _unknown(node, opsets)
    if unknown:
        inside = f": {unknown} inside it is unknown" if unknown != node.op_type else ""
        op: Op = _foreign(node, f"{need}{inside}")
    else:
        op = Numpy(replace(_kept(node, inputs, outputs, opsets.ids), need=need))
    return Node(name, op, inputs, tuple(filter(None, outputs)))


def _foreign(node: onnx.NodeProto, need: str) -> Foreign:
    bodies = [a.g for a in node.attribute if a.type == a.GRAPH]
    if "NMS" in node.op_type or "NonMax" in node.op_type:
        need += ": export the model up to its boxes and scores, and choose among boxes behind it"
    return Foreign(node.op_type, need, "Conv" in node.op_type or any(map(convolves, bodies)))


def _unknown(node: onnx.NodeProto, opsets: Opsets) -> str:
    """The first operator that nothing computes, the node's own or one inside it; "" if none."""
    if not is_known(node.op_type, node.domain, opsets[node.domain]):
        return node.op_type
    bodies = (a.g.node for a in node.attribute if a.type == a.GRAPH)
    inside = (_unknown(inner, opsets) for body in bodies for inner in body)
    return next(filter(None, inside), "")


def _kept(
    node: onnx.NodeProto,
    inputs: Sequence[str],
    outputs: Collection[str],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> Onnx:
    """The operator of a node that reads `inputs`; only `outputs` are read of what it computes."""
    names = {x: operand(i) for i, x in reversed([*enumerate(inputs)]) if x}
    copy = renamed(node, names, {})
    copy.name = node.op_type
    for i, y in enumerate(node.output):
        copy.output[i] = f"result {i}" if y and y in outputs else ""
    graph = helper.make_graph(
        [copy],
        node.op_type,
        [helper.make_empty_tensor_value_info(x) for x in names.values()],
        [helper.make_empty_tensor_value_info(y) for y in copy.output if y],
    )
    model = helper.make_model(graph, opset_imports=opsets)
    return Onnx(node.op_type, model.SerializeToString(deterministic=True))

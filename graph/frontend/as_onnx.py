"""Keeps ONNX nodes as they are, for NumPy."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import helper

from fastrun.graph.core.ops import Onnx, operand
from fastrun.graph.frontend.inline import renamed


def kept(
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

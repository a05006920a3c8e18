"""Types and shapes of what a node computes, by ONNX's own inference."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from fastrun.graph.core.errors import GraphError
from fastrun.graph.frontend.file import first_line, label
from fastrun.graph.frontend.opsets import Opsets
from fastrun.graph.frontend.values import Values, type_of

# Inference reads the values of small constants (a target shape, axes), never of weights.
LARGEST_SHAPE_PARAMETER = 1024


def infer(node: onnx.NodeProto, opsets: Opsets, values: Values) -> None:
    """Infer the types of the node's outputs, unless ONNX does not know the operator.

    Raises:
        GraphError: the node does not fit its inputs, or does not exist in its opset.
    """
    if not onnx.defs.has(node.op_type, node.domain):
        return
    version = opsets[node.domain]
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        raise GraphError(f"node {label(node)} does not exist in opset {version}") from None
    # ONNX's own inference of Split aborts the process if `num_outputs` is another number.
    parts = next((a.i for a in node.attribute if a.name == "num_outputs"), len(node.output))
    if parts != len(node.output):
        raise GraphError(
            f"node {label(node)} is impossible: it has {len(node.output)} outputs, not {parts}"
        )
    names = [x for x in node.input if x]
    # ONNX's own inference of Slice aborts the process if a size is 0.
    empty = [x for x in names if 0 in (values.shape(x) or ())]
    if schema.deprecated or (node.op_type == "Slice" and empty):
        return
    constants = {x: values.constants[x] for x in names if x in values.constants}
    if node.op_type == "Range":  # a list of one number counts as the number
        constants = {x: a.reshape(()) if a.size == 1 else a for x, a in constants.items()}
    try:
        if not any(a.HasField("g") for a in node.attribute):
            onnx.checker.check_node(node, opsets.checker)
        inferred = onnx.shape_inference.infer_node_outputs(
            schema,
            node,
            {x: type_of(constants[x]) if x in constants else values.type(x) for x in names},
            {
                x: numpy_helper.from_array(a)
                for x, a in constants.items()
                if a.size <= LARGEST_SHAPE_PARAMETER
            },
            opset_imports=opsets.ids,
            ir_version=opsets.ir_version,
        )
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        ValueError,
    ) as error:
        if not all(values.type(x).tensor_type.elem_type for x in names):
            return  # a type is unknown, or is not a tensor: the node need not be wrong
        raise GraphError(f"node {label(node)} is impossible: {first_line(error)}") from None
    for name, described in inferred.items():
        values.set_type(name, described)

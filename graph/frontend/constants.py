"""Computes the nodes of an ONNX model whose inputs are constant: shapes, unpacked weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Array, Node, Tensor
from fastrun.graph.frontend.file import first_line, label
from fastrun.graph.reference import interpreter as reference

# Operators for which ONNX's reference implementation gives the results of onnxruntime in every
# opset since 7. It is wrong or incomplete for others: Hardmax, LpNormalization, pools, old
# quantisation, and more.
_KNOWN = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr
BitwiseXor Cast CastLike Ceil CenterCropPad Clip Compress Concat ConstantOfShape Cos Cosh CumSum Det
Div DynamicQuantizeLinear Einsum Equal Exp Expand EyeLike Flatten Floor Gather GatherElements
GatherND Greater GreaterOrEqual Identity IsInf IsNaN Less LessOrEqual Log MatMul MatMulInteger Max
Mean MeanVarianceNormalization Min Mod Mul Neg NonZero Not OneHot OptionalHasElement Or Pow
QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape ReverseSequence Round ScatterElements
ScatterND Shrink Sigmoid Sign Sin Sinh Slice Split Sqrt Squeeze Sub Sum Swish Tan Tanh
ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Where Xor
"""
COMPUTED_BY_ONNX = frozenset(_KNOWN.split())


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
                value = reference.evaluate(node, operands, tensors[node.output])
                found[node.output] = value.astype(tensors[node.output].dtype)
        except (ArithmeticError, LookupError, MemoryError, ValueError) as error:
            raise _impossible(origin, error) from None
    return found


def by_onnx(
    node: onnx.NodeProto,
    tensors: Mapping[str, Tensor],
    feeds: Mapping[str, Array],
    opset_ids: Sequence[onnx.OperatorSetIdProto],
) -> dict[str, Array]:
    """The values, by name, that ONNX's reference implementation computes of constants.

    Raises:
        GraphError: the node does not fit its inputs.
    """
    from onnx.reference import ReferenceEvaluator

    outputs = [y for y in node.output if y]
    if node.op_type == "NonZero":  # a number counts as a list of one
        feeds = {x: np.atleast_1d(a) for x, a in feeds.items()}
    try:
        types = {x: helper.np_dtype_to_tensor_dtype(a.dtype) for x, a in feeds.items()}
        graph = helper.make_graph(
            [node],
            "constant",
            [helper.make_tensor_value_info(x, t, feeds[x].shape) for x, t in types.items()],
            [helper.make_empty_tensor_value_info(y) for y in outputs],
        )
        model = helper.make_model(graph, opset_imports=list(opset_ids))
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, dict(feeds))
    except Exception as error:  # ONNX's operators check little: errors of any kind
        raise _impossible(node, error) from None
    values = {y: np.asarray(value) for y, value in zip(outputs, results, strict=True)}
    return {y: a.astype(tensors[y].dtype) if y in tensors else a for y, a in values.items()}


def _impossible(node: onnx.NodeProto, error: Exception) -> GraphError:
    return GraphError(f"node {label(node)} cannot be computed: {first_line(error)}")

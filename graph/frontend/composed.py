"""Decides which ONNX operators are written out as simpler ones, such as LayerNormalization.

ONNX itself defines most of them as functions of simpler operators. The others have a body here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto

_BY_ONNX = {"GroupNormalization", "LayerNormalization", "RMSNormalization"}

_INSTANCE_NORMALIZATION = """
<domain: "", opset_import: ["" : OPSET]>
InstanceNormalization (x, scale, shift) => (y) {
    mean = GlobalAveragePool (x)
    deviation = Sub (x, mean)
    square = Mul (deviation, deviation)
    variance = GlobalAveragePool (square)
    least = Constant <value = float {EPSILON}> ()
    positive = Add (variance, least)
    spread = Sqrt (positive)
    normal = Div (deviation, spread)
    channels = Constant <value = int64[RANK] {1, -1ONES}> ()
    wide_scale = Reshape (scale, channels)
    wide_shift = Reshape (shift, channels)
    scaled = Mul (normal, wide_scale)
    y = Add (scaled, wide_shift)
}
"""
_DEQUANTIZE_LINEAR = """
<domain: "", opset_import: ["" : OPSET]>
DequantizeLinear (x, scale, zero) => (y) {
    steps = Cast <to = 6> (x)
    along = Constant <value = int64[RANK] {SIZES}> ()
    DIFFERENCE
    number = Cast <to = KIND> (difference)
    wide_scale = Reshape (scale, along)
    y = Mul (number, wide_scale)
}
"""
_FROM_ZERO = """
    whole_zero = Cast <to = 6> (zero)
    wide_zero = Reshape (whole_zero, along)
    difference = Sub (steps, wide_zero)
"""


def composition(
    node: onnx.NodeProto, opset: int, types: Sequence[onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """The function of simpler operators that computes `node` of an `opset`, if there is one.

    `types` are the types of the node's inputs.
    """
    if node.op_type in _OURS and not node.domain:
        return _OURS[node.op_type](node, opset, types)
    if node.op_type not in _BY_ONNX or node.domain:
        return None
    schema: Any = onnx.defs.get_schema(node.op_type, opset, node.domain)
    since = [v for v in schema.function_opset_versions if v <= opset]
    since_by_type = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    function = onnx.FunctionProto()
    if since:
        function.ParseFromString(schema.get_function_with_opset_version(since[-1]))
    elif since_by_type:
        known = node.SerializeToString(), [t.SerializeToString() for t in types]
        function.ParseFromString(
            schema.get_context_dependent_function_with_opset_version(since_by_type[-1], *known)
        )
    return function


def _instance_normalization(
    node: onnx.NodeProto, opset: int, types: Sequence[onnx.TypeProto]
) -> onnx.FunctionProto:
    rank = len(types[0].tensor_type.shape.dim)
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    known = {
        "OPSET": str(opset),
        "EPSILON": f"{epsilon:.9g}",
        "RANK": str(rank),
        "ONES": ", 1" * (rank - 2),
    }
    return _parsed(_INSTANCE_NORMALIZATION, known)


def _dequantize_linear(
    node: onnx.NodeProto, opset: int, types: Sequence[onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """The function, with the difference in whole numbers; None for uses without such a form."""
    x, scale = (t.tensor_type for t in types[:2])
    given = {a.name: a.i for a in node.attribute}
    whole = TensorProto.DataType.Name(x.elem_type).removeprefix("U").startswith("INT")
    rank, axis = len(x.shape.dim), given.get("axis", 1)
    sizes = ["1"] * rank
    if len(scale.shape.dim) == 1 and -rank <= axis < rank:
        sizes[axis] = "-1"
    elif scale.shape.dim:
        return None
    if not whole or given.get("block_size") or given.get("output_dtype"):
        return None
    zero = len(node.input) > 2 and node.input[2]
    known = {
        "OPSET": str(opset),
        "RANK": str(rank),
        "SIZES": ", ".join(sizes),
        "KIND": str(scale.elem_type),
        "DIFFERENCE": _FROM_ZERO if zero else "difference = Identity (steps)",
    }
    return _parsed(_DEQUANTIZE_LINEAR, known)


_OURS = {
    "DequantizeLinear": _dequantize_linear,
    "InstanceNormalization": _instance_normalization,
}


def _parsed(text: str, known: Mapping[str, str]) -> onnx.FunctionProto:
    for word, value in known.items():
        text = text.replace(word, value)
    return onnx.parser.parse_function(text)

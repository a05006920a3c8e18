"""Decides which ONNX operators are written out as simpler ones, such as LayerNormalization.

ONNX itself defines most of them as functions of simpler operators. The others have a body here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

_BY_ONNX = {
    "Attention",
    "GroupNormalization",
    "LayerNormalization",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "RotaryEmbedding",
    "SwiGLU",
    "Swish",
}

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


def composition(
    node: onnx.NodeProto, opset: int, types: Sequence[onnx.TypeProto]
) -> onnx.FunctionProto | None:
    """The function of simpler operators that computes `node` of an `opset`, if there is one.

    `types` are the types of the node's inputs.
    """
    if node.op_type == "InstanceNormalization" and not node.domain:
        return _instance_normalization(node, opset, types)
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
    defaults = (a.default_value for a in schema.attributes.values())
    function.attribute_proto.extend(a for a in defaults if a.type != a.UNDEFINED)
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


def _parsed(text: str, known: Mapping[str, str]) -> onnx.FunctionProto:
    for word, value in known.items():
        text = text.replace(word, value)
    return onnx.parser.parse_function(text)

"""Operators that are functions of simpler ones, such as LayerNormalization.

ONNX itself defines them so, all but InstanceNormalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

INSTANCE = "InstanceNormalization"
COMPOSED = {"LayerNormalization", "GroupNormalization", "RMSNormalization", INSTANCE}

_INSTANCE_BODY = """
<domain: "", opset_import: ["" : 17]>
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
    node: onnx.NodeProto, opset: int, types: Sequence[onnx.TypeProto], prefix: str
) -> list[onnx.NodeProto]:
    """The simpler nodes of an `opset` that compute what `node` does, if it is one of `COMPOSED`.

    `types` are those of the node's inputs, `prefix` begins the names of all values between.
    """
    if node.op_type not in COMPOSED or node.domain:
        return []
    if node.op_type == INSTANCE:
        return _inlined(_instance_normalization(node, types[0]), node, prefix)
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
    return _inlined(function, node, prefix)


def _instance_normalization(node: onnx.NodeProto, x: onnx.TypeProto) -> onnx.FunctionProto:
    rank = len(x.tensor_type.shape.dim)
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    known = {"EPSILON": f"{epsilon:.9g}", "RANK": str(rank), "ONES": ", 1" * (rank - 2)}
    text = _INSTANCE_BODY
    for word, value in known.items():
        text = text.replace(word, value)
    return onnx.parser.parse_function(text)


def _inlined(
    function: onnx.FunctionProto, node: onnx.NodeProto, prefix: str
) -> list[onnx.NodeProto]:
    """The nodes of a function with the names and attributes of one use of it."""
    names = dict(zip(function.input, node.input, strict=False))
    names |= dict.fromkeys(function.input[len(node.input) :], "")
    names |= dict(zip(function.output, node.output, strict=False))
    given = {a.name: a for a in node.attribute}
    given = {a.name: a for a in function.attribute_proto} | given

    def renamed(values: Sequence[str]) -> list[str]:
        return [names.get(x, f"{prefix}/{x}" if x else "") for x in values]

    nodes = []
    for i, inner in enumerate(function.node):
        copy = onnx.NodeProto(
            op_type=inner.op_type,
            domain=inner.domain,
            name=f"{prefix}/{inner.op_type}.{i}",
            input=renamed(inner.input),
            output=renamed(inner.output),
        )
        for attribute in inner.attribute:
            source = given.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if source is not None:
                copy.attribute.add().CopyFrom(source)
                copy.attribute[-1].name = attribute.name
        nodes.append(copy)
    return nodes

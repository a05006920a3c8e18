"""Decides which ONNX operators are written out as simpler ones, such as LayerNormalization.

ONNX itself defines most of them as functions of simpler operators. The others have a body here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from fastrun.graph.core.model import Shape
from fastrun.graph.core.ops import Ints
from fastrun.graph.core.shapes import spans, windows

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

# The sum of powers of what a window of LpPool sees, by a convolution of ones.
_LP_POOL = """
<domain: "", opset_import: ["" : 18]>
LpPool (x) => (y) {
    size = Abs (x)
    p = Constant <value = float {POWER}> ()
    powers = Pow (size, p)
    shape = Constant <value = int64[LENGTH] {SHAPE}> ()
    ones = ConstantOfShape <value = float[1] {1}> (shape)
    sums = Conv <WINDOWS> (powers, ones)
    root = Constant <value = float {ROOT}> ()
    y = Pow (sums, root)
}
"""

_GLOBAL_LP_POOL = """
<domain: "", opset_import: ["" : 18]>
GlobalLpPool (x) => (y) {
    size = Abs (x)
    p = Constant <value = float {POWER}> ()
    powers = Pow (size, p)
    axes = Constant <value = int64[LENGTH] {SHAPE}> ()
    sums = ReduceSum (powers, axes)
    root = Constant <value = float {ROOT}> ()
    y = Pow (sums, root)
}
"""

# Where all is zero, the result is.
_LP_NORMALIZATION = """
<domain: "", opset_import: ["" : 18]>
LpNormalization (x) => (y) {
    axis = Constant <value = int64[1] {AXIS}> ()
    norm = ReduceLPOWER (x, axis)
    zero = Constant <value = float {0}> ()
    empty = Equal (norm, zero)
    one = CastLike (empty, norm)
    positive = Add (norm, one)
    y = Div (x, positive)
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
    if node.op_type in ("LpPool", "GlobalLpPool", "LpNormalization") and not node.domain:
        return _of_powers(node, types)
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


def _of_powers(node: onnx.NodeProto, types: Sequence[onnx.TypeProto]) -> onnx.FunctionProto | None:
    """LpPool, GlobalLpPool or LpNormalization; None if its attributes or shape are none."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    shape = tuple(d.dim_value for d in types[0].tensor_type.shape.dim)
    p = given.get("p", 2)
    known = {"POWER": str(p), "ROOT": f"{1 / p:.9g}" if p else ""}
    if node.op_type == "LpNormalization":
        known["AXIS"] = str(given.get("axis", -1))
        return _parsed(_LP_NORMALIZATION, known) if p in (1, 2) else None
    rank, mode = len(shape) - 2, given.get("auto_pad", b"NOTSET").decode()
    if p < 1 or rank < 1 or 0 in shape:
        return None
    if node.op_type == "GlobalLpPool":
        axes = range(2, len(shape))
        known |= {"LENGTH": str(rank), "SHAPE": ", ".join(map(str, axes))}
        return _parsed(_GLOBAL_LP_POOL, known)
    kernel = tuple(given.get("kernel_shape", ()))
    strides, gaps = (tuple(given.get(x, ())) or (1,) * rank for x in ("strides", "dilations"))
    pads = tuple(given.get("pads", ())) or (0,) * 2 * rank
    if not len(kernel) == len(strides) == len(gaps) == len(pads) // 2 == rank:
        return None
    if given.get("ceil_mode", 0) and mode == "NOTSET":
        pads = _with_last_windows(shape[2:], kernel, strides, pads, gaps)
    values = {"group": shape[1], "strides": strides, "dilations": gaps, "kernel_shape": kernel}
    values |= {"pads": pads} if mode == "NOTSET" else {"auto_pad": f'"{mode}"'}
    words = (f"{k} = {[*v] if isinstance(v, tuple) else v}" for k, v in values.items())
    filters = (shape[1], 1, *kernel)
    known |= {"LENGTH": str(len(filters)), "SHAPE": ", ".join(map(str, filters))}
    return _parsed(_LP_POOL, known | {"WINDOWS": ", ".join(words)})


def _with_last_windows(space: Shape, kernel: Ints, strides: Ints, pads: Ints, gaps: Ints) -> Ints:
    """The padding with what `ceil_mode` adds behind."""
    sizes, rank = spans(kernel, gaps), len(space)
    try:
        counts = windows(space, sizes, strides, pads, ceil=True)
    except ValueError:
        return pads  # the convolution refuses it
    ends = (
        max(end, (count - 1) * step + span - size - begin)
        for size, span, step, begin, end, count in zip(
            space, sizes, strides, pads[:rank], pads[rank:], counts, strict=True
        )
    )
    return (*pads[:rank], *ends)


def _parsed(text: str, known: Mapping[str, str]) -> onnx.FunctionProto:
    for word, value in known.items():
        text = text.replace(word, value)
    return onnx.parser.parse_function(text)

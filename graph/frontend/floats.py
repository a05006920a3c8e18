"""Floating-point types of models other than float32: everything computed becomes float32.

Weights and inputs in half precision (float16, bfloat16) lose nothing by that, and results are more
accurate than the model asks for: they are not rounded between nodes. Doubles are rounded. Inputs
and outputs keep the model's types for the caller (`Graph.outside`). What depends on constants
alone, such as arithmetic on shapes, is computed in the model's own types.

That holds for models that multiply by stored weights, which are networks. In others, such as a sum
of doubles that somebody wants exactly, types stay as they are, and NumPy computes them.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from fastrun.graph.frontend.values import Values

_OTHERS = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_NAMES = {"float16", "bfloat16", "float64"}
_WEIGHTY = ("Conv", "Gemm", "MatMul", "LSTM", "GRU")


def is_network(graph: onnx.GraphProto) -> bool:
    """Whether a convolution or product has weights that the model stores."""
    stored = {x.name for x in graph.initializer}
    stored |= {y for node in graph.node if node.op_type == "Constant" for y in node.output}
    # Quantised weights and transposed ones come of these nodes.
    moving = ("DequantizeLinear", "Transpose", "Cast", "Identity")
    stored |= {
        node.output[0]
        for node in graph.node
        if node.op_type in moving and node.output and not stored.isdisjoint(node.input[:1])
    }
    return any(
        any(kind in str(node.op_type) for kind in _WEIGHTY)  # bytes in damaged files
        and not stored.isdisjoint(node.input[1:])
        for node in graph.node
    )


def as_cast(node: onnx.NodeProto, values: Values) -> onnx.NodeProto:
    """A `Cast` for a constant's `CastLike`, which would make it depend on what it is cast like.

    PyTorch casts the zeros of a missing bias so. Other nodes stay as they are.
    """
    if node.op_type != "CastLike" or node.domain or len(node.input) != 2:
        return node
    if node.input[0] not in values.constants:
        return node
    kind = values.type(node.input[1]).tensor_type.elem_type
    if not kind:
        return node
    cast = helper.make_node("Cast", node.input[:1], node.output, name=node.name, to=kind)
    cast.attribute.extend(node.attribute)  # both have the same, beside the type
    return cast


def in_float32(node: onnx.NodeProto, values: Values, integers: Container[str]) -> onnx.NodeProto:
    """Make what a node computes, and the constants that it computes with, float32.

    Nodes of constants alone keep the types of the model, unless these are quantised weights. A
    `Cast` from float32 to itself becomes an `Identity`, but not that of `integers`, which the model
    has in the place of these numbers.
    """
    names = [x for x in node.input if x]
    quantises = node.op_type in ("QuantizeLinear", "DequantizeLinear")
    if values.are_constant(names) and not quantises:
        return node
    for x in names:
        if x in values.constants and values.constants[x].dtype.name in _NAMES:
            with np.errstate(over="ignore"):  # doubles beyond the range become infinite
                values.constants[x] = values.constants[x].astype(np.float32)
    changed = to_float32(node)
    if node.op_type != "Cast" or node.domain or len([*names, *node.output]) != 2:
        return changed
    before = values.tensors.get(names[0]) if names else None
    if before is None or before.dtype != np.float32 or names[0] in integers:
        return changed
    if target(changed) != TensorProto.FLOAT:
        return changed
    return helper.make_node("Identity", node.input, node.output, name=node.name)


def target(node: onnx.NodeProto) -> int:
    """The element type that a `Cast` converts to."""
    return next((a.i for a in node.attribute if a.name == "to"), 0)


def other_type(element: int) -> np.dtype[Any] | None:
    """The type of NumPy for a floating-point type that becomes float32, None for another one."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(element)) if element in _OTHERS else None


def to_float32(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node that makes float32 where the given one makes another floating-point type."""
    if not any(
        a.name in ("to", "dtype", "output_dtype") and a.i in _OTHERS for a in node.attribute
    ):
        return node
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    for attribute in changed.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in _OTHERS:
            attribute.i = TensorProto.FLOAT
    return changed

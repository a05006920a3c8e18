"""Floating-point types of models other than float32: everything computed becomes float32.

Weights and inputs in half precision (float16, bfloat16) lose nothing by that, and results are more
accurate than the model asks for: they are not rounded between nodes. Doubles are rounded. Inputs
and outputs keep the model's types for the caller (`Graph.outside`). What depends on constants
alone, such as arithmetic on shapes, is computed in the model's own types.

That holds for models that multiply by stored weights, which are networks. In others, such as a sum
of doubles that somebody wants exactly, types stay as they are, and NumPy computes them.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from fastrun.graph.core.model import Array

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


def is_other(element: int) -> bool:
    """Whether an element type of ONNX is a floating-point type that becomes float32."""
    return element in _OTHERS


def in_float32(values: Array) -> Array:
    """The values in float32 if they have another floating-point type, else as they are."""
    if values.dtype.name not in _NAMES:
        return values
    with np.errstate(over="ignore"):  # doubles beyond the range become infinite
        return values.astype(np.float32)


def to_float32(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node that makes float32 where the given one makes another floating-point type."""
    if not any(a.name in ("to", "dtype", "output_dtype") and is_other(a.i) for a in node.attribute):
        return node
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    for attribute in changed.attribute:
        if attribute.name in ("to", "dtype", "output_dtype") and is_other(attribute.i):
            attribute.i = TensorProto.FLOAT
    return changed

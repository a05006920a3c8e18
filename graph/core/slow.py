"""Products and convolutions that NumPy computes, and why: there networks lose most time."""

from __future__ import annotations

import numpy as np

from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import Conv, ConvTranspose, Gemm, MatMul, Numpy, Onnx

_HEAVY = {"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"}


def slow_nodes(graph: Graph) -> list[str]:
    """A line for each: `node 'up' (ConvTranspose) runs in NumPy: it needs ...`."""
    return [
        f"node {node.label} runs in NumPy, which is slow: a kernel needs {_need(graph, node)}"
        for node in graph.nodes
        if _is_heavy(node)
    ]


def _is_heavy(node: Node) -> bool:
    if not isinstance(node.op, Numpy):
        return False
    op = node.op.op
    if isinstance(op, Onnx):
        return op.operator in _HEAVY
    return isinstance(op, Conv | ConvTranspose | Gemm | MatMul)


def _need(graph: Graph, node: Node) -> str:
    """What a kernel would need."""
    op = node.op.op if isinstance(node.op, Numpy) else node.op
    if isinstance(op, Onnx) and op.need:
        return op.need
    for name in filter(None, (*node.inputs, *node.outputs)):
        known = graph.tensors.get(name)
        if name not in graph.constants and (known is None or known.dtype != np.float32):
            return f"{name!r} as float32" + (f", not {known.dtype}" if known else "")
    computed = [x for x in node.inputs[1:] if x and x not in graph.constants]
    return f"{computed[0]!r} as a constant" if computed else "one to three spatial axes"

"""How many floating-point operations a node takes by the direct method."""

from __future__ import annotations

import math

from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import (
    Attention,
    Conv,
    ConvTranspose,
    DepthwiseVolume,
    Gemm,
    MatMul,
    Recurrent,
)


def flops(graph: Graph, node: Node) -> int:
    """Two for each multiply-add of a product of matrices or more; 0 for every other node."""
    match node.op:
        case Conv() | DepthwiseVolume():
            weights = graph.shape(node.inputs[1])
            return 2 * math.prod(graph.shape(node.output)) * math.prod(weights[1:])
        case ConvTranspose():
            weights = graph.shape(node.inputs[1])
            return 2 * math.prod(graph.shape(node.inputs[0])) * math.prod(weights[1:])
        case Gemm(transpose_a=transposed):
            depth = graph.shape(node.inputs[0])[0 if transposed else 1]
            return 2 * math.prod(graph.shape(node.output)) * depth
        case MatMul():
            return 2 * math.prod(graph.shape(node.output)) * graph.shape(node.inputs[0])[-1]
        case Attention(heads=heads, k=k, v=v):
            images, _, *pixels = graph.shape(node.output)
            keys = math.prod(graph.shape(node.input(1) or node.inputs[0])[2:])
            return 2 * images * heads * math.prod(pixels) * keys * (k.size + v.size)
        case Recurrent():
            return 2 * math.prod(graph.shape(node.inputs[0])) * graph.shape(node.output)[-1]
    return 0

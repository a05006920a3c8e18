"""Decides which tensors of a quantised network can be bytes, and which operators use integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import Conv, Pad, Pool, Unary
from fastrun.kernels.core.dtype import I16, S8, U8
from fastrun.kernels.core.quantised import Scales
from fastrun.kernels.core.types import Types


def byte_grid(graph: Graph, name: str) -> Grid | None:
    """The grid of an input or a computed tensor, which may then be stored in u8; else None."""
    grid = graph.grids.get(name)
    return grid if grid and grid.dtype is U8 and name not in graph.constants else None


def exact_grid(graph: Graph, name: str) -> Grid | None:
    """The grid to which a tensor must be rounded, so that it is stored in u8; else None."""
    grid = byte_grid(graph, name)
    return grid if grid and grid.exact else None


def integer_weights(graph: Graph, name: str) -> NDArray[Any] | None:
    """The weights `name` as integers of int8 or int16; None if they are not quantised so.

    They must have a scale for each output channel, and be none of those in blocks.
    """
    grid = graph.grids.get(name)
    if not grid or grid.dtype not in (S8, I16) or grid.block or name not in graph.constants:
        return None
    return graph.integers(name)


def counts_signs(graph: Graph, node: Node) -> bool:
    """Whether a convolution multiplies signs by signs, with one magnitude for each filter.

    Then its result in float32 is that of one bit. Its input is 1 or -1, also where it was padded
    with such numbers, or is the maximum of some.
    """
    op, weights = node.op, graph.constants.get(node.inputs[1])
    if not isinstance(op, Conv) or weights is None or any(op.padding) or op.groups > 1:
        return False
    sizes = np.abs(weights.reshape(len(weights), -1))
    return bool((sizes == sizes[:, :1]).all()) and _bipolar(graph, node.inputs[0])


def _bipolar(graph: Graph, name: str) -> bool:
    """Whether all values of a tensor are known to be 1 or -1."""
    producer = graph.producers.get(name)
    match producer.op if producer else None:
        case Unary("bipolar"):
            return True
        case Pad(mode="constant", value=value):
            inside = abs(value) == 1
        case Pool("max", padding=padding, ceil=False):
            inside = not any(padding)
        case _:
            return False
    assert producer is not None
    return inside and _bipolar(graph, producer.inputs[0])


def weight_bits(weights: NDArray[Any]) -> int:
    """The bits of `Types` that integer weights need."""
    low, high = int(weights.min(initial=-1)), int(weights.max(initial=1))
    every = (Types(bits=bits) for bits in range(2, 9))
    return next((x.bits for x in every if -x.bound <= low and high <= x.largest), 9)


def conv_scales(graph: Graph, node: Node, to_bytes: bool) -> Scales:
    """The scales and zero points of a convolution of integers, whose output is u8 or float32."""
    src, weights = graph.grids[node.inputs[0]], graph.grids[node.inputs[1]]
    found = Scales(float(src.scale), int(src.zero), np.asarray(weights.scale, np.float32))
    if not to_bytes:
        return found
    dst, add = graph.grids[node.output], graph.grids.get(node.input(3))
    found = replace(found, dst=float(dst.scale), dst_zero=int(dst.zero))
    return replace(found, add=float(add.scale), add_zero=int(add.zero)) if add else found


def writes_bytes(graph: Graph, node: Node, weights: NDArray[Any]) -> bool:
    """Whether a convolution of integers can round its output: it has a grid of enough range."""
    residual = node.input(3)
    if not all(byte_grid(graph, x) for x in filter(None, (node.output, residual))):
        return False
    bias = graph.constants.get(node.input(2))
    flat = None if bias is None else bias.reshape(-1)
    return conv_scales(graph, node, True).rounds(weights, flat, bool(residual))


def float_reason(graph: Graph, node: Node) -> str:
    """Why a convolution or dense layer cannot compute with integers; "" if it can."""
    grid, name = byte_grid(graph, node.inputs[0]), node.inputs[1]
    if not grid:
        return f"its input {node.inputs[0]!r} is not quantised"
    weights, scales = integer_weights(graph, name), graph.grids.get(name)
    if weights is None or not scales:
        return f"its weights {name!r} are not quantised in 8 bits by output channels"
    # The bias contains the zero point times the sum of the weights.
    most = 2 * 255 * Types(bits=weight_bits(weights)).bound * (weights.size // len(weights))
    if bias := node.input(2):
        if bias not in graph.constants:
            return f"its bias {bias!r} is computed"
        most += np.abs(graph.constants[bias].reshape(-1) / (grid.scale * scales.scale)).max()
    return "" if most < 1 << 31 else "its sums can exceed int32"

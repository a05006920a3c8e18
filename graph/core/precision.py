"""Decides which tensors of a quantised network can be bytes, and which operators use integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Graph, Node
from fastrun.kernels.core.dtype import S8, U8
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
    """The weights `name` as integers of int8; None if they are not quantised so.

    They must have a scale for each output channel, and be none of those in blocks.
    """
    grid = graph.grids.get(name)
    if not grid or grid.dtype is not S8 or grid.block or name not in graph.constants:
        return None
    return graph.integers(name)


def weight_bits(weights: NDArray[Any]) -> int:
    """The bits of `Types` that integer weights need, 9 if one of them is -128."""
    largest = max(int(weights.max(initial=1)), -int(weights.min(initial=-1)))
    return next((b for b in range(2, 9) if largest <= Types(bits=b).largest), 9)


def float_reason(graph: Graph, node: Node) -> str:
    """Why a convolution or dense layer cannot compute with integers; "" if it can."""
    grid, name = byte_grid(graph, node.inputs[0]), node.inputs[1]
    if not grid:
        return f"its input {node.inputs[0]!r} is not quantised"
    weights, scales = integer_weights(graph, name), graph.grids.get(name)
    if weights is None or not scales:
        return f"its weights {name!r} are not quantised in 8 bits by output channels"
    if (bits := weight_bits(weights)) > 8:
        return f"its weights {name!r} contain -128"
    # The bias contains the zero point times the sum of the weights.
    most = 2 * 255 * Types(bits=bits).largest * (weights.size // len(weights))
    if bias := node.input(2):
        if bias not in graph.constants:
            return f"its bias {bias!r} is computed"
        most += np.abs(graph.constants[bias].reshape(-1) / (grid.scale * scales.scale)).max()
    return "" if most < 1 << 31 else "its sums can exceed int32"

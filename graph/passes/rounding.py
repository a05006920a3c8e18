"""Passes that decide where a quantised network rounds: each of them leaves every result as it is.

Rounding does not change values that lie on the grid already. So the tensors that a move makes of a
rounded tensor may be rounded or not. In front of the other passes nothing is rounded twice, so that
moves merge as in any network. Behind them everything that may be is: it is then stored in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastrun.graph.core.grid import Grid, weight_axis
from fastrun.graph.core.model import Graph, Node, unused
from fastrun.graph.core.ops import (
    ChannelShuffle,
    Clip,
    Concat,
    DepthToSpace,
    Expand,
    Gather,
    Identity,
    Op,
    Pad,
    Pool,
    Reshape,
    Resize,
    Slice,
    Transpose,
    Unary,
)
from fastrun.graph.passes.edit import Edit

_Limits = tuple[float, float]
# Half of what 32 bits hold: the other half is for the products, and the zero point times weights.
_LARGEST_BIAS = 2**30


def drop_repeated_rounding(graph: Graph) -> Graph:
    """Round a tensor only once on its way through moves and limits."""
    edit = Edit(graph)
    lies_on = {x: grid for x in graph.inputs if (grid := edit.exact(x))}
    for node in edit:
        grid, moved = edit.exact(node.output), _moved(node, edit)
        before = _common([lies_on.get(x) for x in moved], node)
        if grid and grid == before:
            limited = _limits(node.op) and edit.is_private(moved[0]) and edit.exact(moved[0])
            # In front of limits there may be a convolution, which can apply them.
            del edit.grids[moved[0] if limited else node.output]
        if grid := grid or before:
            lies_on[node.output] = grid
    return edit.done()


def drop_implied_limits(graph: Graph) -> Graph:
    """Remove limits, such as those of a Relu, that the grid of the result has too."""
    edit = Edit(graph)
    for node in edit:
        grid, limits = edit.exact(node.output), _limits(node.op)
        if grid and limits and grid.implies(*limits) and edit.private_producer(node.inputs[0]):
            edit.bypass(node)
    return edit.done()


def spread_rounding(graph: Graph) -> Graph:
    """Round tensors before a move instead of behind it, and behind it as well."""
    edit = Edit(graph)
    for node in reversed(list(edit)):
        grid, moved = edit.exact(node.output), _moved(node, edit)
        free = [x for x in moved if edit.exact(x) != grid]
        if grid and _keeps(node.op, grid) and all(edit.private_producer(x) for x in free):
            edit.grids |= dict.fromkeys(free, grid)
    for node in edit:
        grid = _common([edit.exact(x) for x in _moved(node, edit)], node)
        if grid and not edit.exact(node.output):
            edit.grids[node.output] = grid
    return edit.done()


def round_inputs(graph: Graph) -> Graph:
    """Round inputs by nodes of their own, so that the network is given them as they are."""
    nodes, tensors, grids = list[Node](), dict(graph.tensors), dict(graph.grids)
    new: dict[str, str] = {}
    for x in graph.inputs:
        grid = grids.get(x)
        if grid and grid.exact and x not in graph.outputs:
            rounded = unused(f"{x}.rounded", graph.constants, tensors)
            new[x] = rounded
            nodes.append(Node(rounded, Identity(), (x,), (rounded,)))
            tensors[rounded], grids[rounded] = tensors[x], grids.pop(x)
    for node in graph.nodes:
        nodes.append(replace(node, inputs=tuple(new.get(x, x) for x in node.inputs)))
    return graph.with_nodes(tuple(nodes), tensors, graph.constants, grids) if new else graph


def fit_biases(graph: Graph) -> Graph:
    """Coarsen the weights of channels whose bias would not fit into 32 bits in their steps.

    Trained networks have channels of tiny weights. All that these add is less than a hundredth of
    such a bias; coarser by powers of two, they change the sum by less than the output's rounding.
    """
    edit = Edit(graph)
    for node in edit:
        name, bias = node.input(1), edit.constants.get(node.input(2))
        axis, grid = weight_axis(node.op), edit.grids.get(name)
        x = edit.grids.get(node.input(0))
        if axis is None or bias is None or x is None or grid is None or grid.block:
            continue
        scale = np.asarray(grid.scale, np.float64)
        if bias.size != scale.size or not np.isfinite(bias).all():
            continue
        excess = np.abs(bias.reshape(-1)) / (np.asarray(x.scale) * scale * _LARGEST_BIAS)
        if (excess > 1).any():
            factors = 2.0 ** np.ceil(np.log2(np.maximum(excess, 1)))
            coarse = replace(grid, scale=(scale * factors).astype(np.float32))
            weights = coarse.rounded(edit.constants[name], axis).astype(np.float32)
            inputs = (node.inputs[0], edit.constant(name, weights, coarse), *node.inputs[2:])
            edit.replace(node, replace(node, inputs=inputs))
    return edit.done()


def _common(grids: Sequence[Grid | None], node: Node) -> Grid | None:
    """The grid of all tensors that a node moves, on which its result lies too, if there is one."""
    first = grids[0] if grids and grids.count(grids[0]) == len(grids) else None
    return first if first and _keeps(node.op, first) else None


def _keeps(op: Op, grid: Grid) -> bool:
    """Whether the numbers that an operator may add to those it moves lie on a grid."""
    if isinstance(op, Pad) and op.mode == "constant":
        return grid.contains(op.value)
    return all(math.isinf(limit) or grid.contains(limit) for limit in _limits(op) or ())


def _moved(node: Node, edit: Edit) -> tuple[str, ...]:
    """The tensors whose values a node passes on, or limits; none if it computes new ones.

    Larger values must not become smaller ones, so that rounding gives the same on both sides.
    """
    match node.op:
        case (
            Reshape() | Transpose() | Slice() | ChannelShuffle() | DepthToSpace() | Expand()
            | Gather()
        ):  # fmt: skip
            moved = node.inputs[:1]
        case Identity():
            moved = node.inputs[:1]
        case Pool(function="max") | Resize(mode="nearest"):
            moved = node.inputs[:1]
        case Pad() | Clip() | Unary(function="relu" | "relu6"):
            moved = node.inputs[:1]
        case Concat():
            moved = node.inputs
        case _:
            moved = ()
    return () if any(x in edit.constants for x in moved) else moved


def _limits(op: Op) -> _Limits | None:
    """The limits between which an operator leaves values as they are, and to which it clips."""
    match op:
        case Unary(function="relu"):
            return 0.0, math.inf
        case Unary(function="relu6"):
            return 0.0, 6.0
        case Clip(low=low, high=high):
            return low, high
    return None

"""Passes that decide where a quantised network rounds: each of them leaves every result as it is.

Rounding does not change values that lie on the grid already. So the tensors that a move makes of a
rounded tensor may be rounded or not. In front of the other passes nothing is rounded twice, so that
moves merge as in any network. Behind them everything that may be is: it is then stored in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Graph, Node, unused
from fastrun.graph.core.ops import (
    ChannelShuffle,
    Clip,
    Concat,
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


def drop_repeated_rounding(graph: Graph) -> Graph:
    """Round a tensor only once on its way through moves and limits."""
    edit = Edit(graph)
    lies_on = {x: grid for x in graph.inputs if (grid := edit.exact(x))}
    for node in edit:
        grid, x = edit.exact(node.output), node.input(0)
        before = [lies_on.get(y) for y in _moved(node, edit)]
        if grid and before and before.count(grid) == len(before):
            del edit.grids[node.output]
        elif grid and edit.exact(x) == grid and edit.is_private(x) and _limits_on(grid, node.op):
            # Rounding behind these limits gives the same as in front of them.
            del edit.grids[x]
        if grid := grid or _common(before):
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
        if grid and all(edit.private_producer(x) for x in free):
            edit.grids |= dict.fromkeys(free, grid)
    for node in edit:
        grid = _common([edit.exact(x) for x in _moved(node, edit)])
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


def _common(grids: Sequence[Grid | None]) -> Grid | None:
    """The grid of all tensors, None if they have different ones or one has none."""
    return grids[0] if grids and grids.count(grids[0]) == len(grids) else None


def _moved(node: Node, edit: Edit) -> tuple[str, ...]:
    """The tensors whose values, and no others, a node passes on; none if it computes new ones.

    Larger values must not become smaller ones, so that rounding gives the same on both sides.
    """
    match node.op:
        case Reshape() | Transpose() | Slice() | ChannelShuffle() | Expand() | Gather():
            moved = node.inputs[:1]
        case Identity():
            moved = node.inputs[:1]
        case Pool(function="max") | Resize(mode="nearest"):
            moved = node.inputs[:1]
        case Pad(mode=mode, value=value) if mode != "constant" or value == 0:
            moved = node.inputs[:1]  # every grid of activations has the number 0
        case Concat():
            moved = node.inputs
        case _:
            moved = ()
    return () if any(x in edit.constants for x in moved) else moved


def _limits_on(grid: Grid, op: Op) -> bool:
    """Whether an operator clips to limits that lie on a grid."""
    limits = _limits(op) or ()
    return bool(limits) and all(math.isinf(limit) or grid.contains(limit) for limit in limits)


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

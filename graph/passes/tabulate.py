"""Joins operators that compute one byte from one byte: together they are a table of 256 entries.

Quantisers round between the operators of an activation that a model spells out, such as GELU by
Div, Erf, Add and Mul, and leave some of them in float32. But where all starts from one rounded
tensor, each value of the result is a function of one byte, roundings in between included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import Binary, ByteFunction, Clip, Link, Unary
from fastrun.graph.passes.edit import Edit
from fastrun.kernels.core.dtype import U8

# Functions whose second operand counts elements, or which need several values at once.
_OTHERS = ("prelu",)


def tabulate(graph: Graph) -> Graph:
    """Replace operators between a rounded tensor and another one by a single function of bytes.

    Results stay as they are, roundings in between included.
    """
    if not graph.grids:
        return graph
    edit = Edit(graph)
    places = {node.output: i for i, node in enumerate(edit)}
    for node in reversed(list(edit)):
        if edit.producer(node.output) is not node or not _bytes(edit, node.output):
            continue
        source, inside = _region(edit, node, places)
        if source and (len(inside) > 1 or isinstance(node.op, Binary)):
            links = _links(edit, source, inside)
            edit.replace(node, replace(node, op=ByteFunction(links), inputs=(source,)))
            for inner in inside[:-1]:
                edit.drop(inner)
    return edit.done()


def _region(edit: Edit, last: Node, places: dict[str, int]) -> tuple[str, list[Node]]:
    """The rounded tensor of which a node's result is a function, and the nodes from it, in order.

    "" and no nodes if there is none. The largest such part of the network is taken: its nodes are
    read by no others.
    """
    shape, best = edit.shape(last.output), ("", list[Node]())
    inside, pending = list[Node](), [last.output]
    reads: dict[str, int] = {}
    while pending:
        output = max(pending, key=lambda x: places.get(x, -1))
        if len(pending) == 1 and inside and _bytes(edit, output):
            best = output, inside[::-1]
        node = edit.producer(output)
        outer = output != last.output and edit.uses(output) > reads[output]
        if node is None or outer or not _is_function(edit, node) or edit.shape(output) != shape:
            break
        inside.append(node)
        pending.remove(output)
        for x in node.inputs:
            if x not in edit.constants:
                reads[x] = reads.get(x, 0) + 1
                if x not in pending:
                    pending.append(x)
    return best


def _is_function(edit: Edit, node: Node) -> bool:
    """Whether each value of the result is a function of the values at the same place."""
    op = node.op
    if not isinstance(op, Unary | Clip | Binary) or len(node.outputs) > 1:
        return False
    if isinstance(op, Binary) and op.function in _OTHERS:
        return False
    shape = edit.shape(node.output)
    return all(
        edit.constants[x].size == 1 if x in edit.constants else edit.shape(x) == shape
        for x in node.inputs
    )


def _bytes(edit: Edit, name: str) -> Grid | None:
    """The grid of a tensor that is stored in bytes."""
    grid = edit.exact(name)
    return grid if grid and grid.dtype is U8 and name not in edit.constants else None


def _links(edit: Edit, source: str, nodes: Sequence[Node]) -> tuple[Link, ...]:
    indices, links = {source: 0}, list[Link]()
    for node in nodes:
        operands = (
            float(edit.constants[x].item()) if x in edit.constants else indices[x]
            for x in node.inputs
        )
        grid = edit.exact(node.output) if node is not nodes[-1] else None
        rounding = (float(grid.scale), int(grid.zero)) if grid else None
        assert isinstance(node.op, Unary | Clip | Binary)
        links.append(Link(node.op, tuple(operands), rounding))
        indices[node.output] = len(links)
    return tuple(links)

"""Which numbers the inputs may have that are indices of tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import (
    Expand,
    Gather,
    GatherElements,
    Identity,
    Reshape,
    Slice,
    Transpose,
)


@dataclass(frozen=True)
class Indices:
    """The numbers that an input may have, from `low` to `high`: `node` looks entries up at them."""

    low: int
    high: int
    node: str


def indices(graph: Graph) -> Mapping[str, Indices]:
    """The inputs of a graph that are indices, read by kernels, which do not look at each."""
    found: dict[str, Indices] = {}
    for node in graph.nodes:
        if isinstance(node.op, Gather | GatherElements) and node.inputs[1] not in graph.constants:
            name, size = _source(graph, node), graph.shape(node.inputs[0])[node.op.axis]
            if name in graph.inputs:
                known = found.get(name)
                if known is None or size <= known.high:
                    found[name] = Indices(-size, size - 1, node.label)
    return found


def _source(graph: Graph, node: Node) -> str:
    """The value whose elements the indices of a node are."""
    name, moves = node.inputs[1], Reshape | Identity | Expand | Transpose | Slice
    while (before := graph.producers.get(name)) and isinstance(before.op, moves):
        name = before.inputs[0]
    return name

"""Measures the nodes of a graph that NumPy computes."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np

from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.model import Array, Graph, Node, Tensor
from fastrun.graph.core.ops import Numpy
from fastrun.graph.reference.interpreter import results


def numpy_costs(graph: Graph) -> Iterator[tuple[Node, float | None]]:
    """The nodes that NumPy computes, with the seconds that each takes for normal numbers.

    Integers are 0. The seconds are None where a shape depends on data, or these values are no
    operands.
    """
    for node in graph.nodes:
        if isinstance(node.op, Numpy):
            yield node, _seconds(graph, node)


def _seconds(graph: Graph, node: Node) -> float | None:
    names = [x for x in node.inputs if x and x not in graph.constants]
    if any(x not in graph.tensors for x in names):
        return None
    values = {x: _any(graph.tensors[x]) for x in names}
    operands = [graph.constants.get(x, values.get(x)) for x in node.inputs]
    spent = []
    for _ in range(2):  # the first call also prepares
        begin = perf_counter()
        try:
            results(node, operands, graph.tensors)
        except GraphError:
            return None
        spent.append(perf_counter() - begin)
    return min(spent)


def _any(tensor: Tensor) -> Array:
    values = np.random.default_rng(0).standard_normal(tensor.shape, np.float32)
    return (0 * values if tensor.dtype.kind in "iu" else values).astype(tensor.dtype)

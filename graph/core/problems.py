"""The convolutions of a network, as problems to tune."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import Conv, Foreign, Ints
from fastrun.kernels.core.problem import ConvProblem, ProblemError


class DistinctProblem(NamedTuple):
    """A problem, how often the network has it, and the nodes that pose it, in order."""

    problem: ConvProblem
    occurrences: int
    nodes: tuple[str, ...]


def conv_problem(graph: Graph, node: Node) -> ConvProblem:
    """What a `Conv` node computes; a 1-D convolution is one of height 1.

    Raises:
        UnsupportedError: it is not a 2-D float32 convolution with constant weights.
    """
    assert isinstance(node.op, Conv)
    x, weights = graph.tensor(node.inputs[0]), graph.tensor(node.inputs[1])
    spatial = len(node.op.stride)
    if node.inputs[1] not in graph.constants:
        raise UnsupportedError(
            f"node {node.label}: its weights {node.inputs[1]!r} are computed or an input; "
            "export the model with constant weights"
        )
    for tensor in (x, weights):
        if tensor.dtype != np.float32:
            raise UnsupportedError(
                f"node {node.label}: a {tensor.dtype} convolution is not supported; "
                "convert the model to float32"
            )
    op = node.op
    try:
        return ConvProblem(
            n=x.shape[0],
            c=x.shape[1],
            h=x.shape[2] if spatial == 2 else 1,
            w=x.shape[-1],
            oc=weights.shape[0],
            kernel=_pair(weights.shape[2:], 1),
            stride=_pair(op.stride, 1),
            padding=_pair(op.padding[:spatial], 0) + _pair(op.padding[spatial:], 0),
            dilation=_pair(op.dilation, 1),
            groups=op.groups,
            bias=bool(node.input(2)),
            add=bool(node.input(3)),
            activation=op.activation,
        )
    except ProblemError as error:
        raise UnsupportedError(f"node {node.label}: {error}") from None


def convolutions(graph: Graph) -> list[DistinctProblem]:
    """The distinct convolution problems of a graph, in order of first appearance.

    Raises:
        UnsupportedError: a convolution cannot be expressed; names the node and why.
    """
    nodes: dict[ConvProblem, list[str]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Conv):
            nodes.setdefault(conv_problem(graph, node), []).append(node.name)
        elif isinstance(node.op, Foreign) and node.op.convolves:
            raise UnsupportedError(f"node {node.label} needs {node.op.need}")
    return [DistinctProblem(p, len(names), tuple(names)) for p, names in nodes.items()]


def to_tune(graph: Graph) -> list[DistinctProblem]:
    """The convolutions of an optimised graph.

    Raises:
        UnsupportedError: a convolution cannot be expressed, or there is none.
    """
    problems = convolutions(graph)
    if not problems:
        raise UnsupportedError(f"network {graph.name!r} has no convolution: nothing to tune")
    return problems


def _pair(values: Ints, filler: int) -> tuple[int, int]:
    """(vertical, horizontal); the height of a 1-D convolution is trivial."""
    return (filler, values[0]) if len(values) == 1 else (values[0], values[1])

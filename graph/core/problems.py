"""Decides which problem a node of a network poses, and which distinct problems there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Graph, Node, Shape
from fastrun.graph.core.ops import Attention, Conv, Foreign
from fastrun.graph.core.precision import (
    counts_signs,
    exact_grid,
    float_reason,
    integer_weights,
    weight_bits,
    writes_bytes,
)
from fastrun.graph.core.shapes import pair
from fastrun.kernels.core.attention import AttentionProblem, Problem
from fastrun.kernels.core.problem import ConvProblem, ProblemError


class DistinctProblem(NamedTuple):
    """A problem, how often the network has it, and its nodes in order."""

    problem: Problem
    occurrences: int
    nodes: tuple[str, ...]


def problem_of(
    op: Conv, x: Shape, weights: Shape, bias: bool = False, add: bool = False
) -> ConvProblem:
    """The problem of a convolution, of which these are the shapes of input and weights.

    A 1-D convolution is one of height 1.

    Raises:
        ProblemError: it is no valid convolution.
    """
    rank = len(op.stride)
    return ConvProblem(
        n=x[0],
        c=x[1],
        h=x[2] if rank == 2 else 1,
        w=x[-1],
        oc=weights[0],
        kernel=pair(weights[2:], 1),
        stride=pair(op.stride, 1),
        padding=pair(op.padding[:rank], 0) + pair(op.padding[rank:], 0),
        dilation=pair(op.dilation, 1),
        groups=op.groups,
        bias=bias,
        add=add,
        activation=op.activation,
    )


def conv_problem(graph: Graph, node: Node) -> ConvProblem:
    """The problem of a `Conv` node.

    Raises:
        UnsupportedError: it is not a 2-D float32 convolution with constant weights.
    """
    assert isinstance(node.op, Conv)
    x, weights = graph.tensor(node.inputs[0]), graph.tensor(node.inputs[1])
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
    bias, add = bool(node.input(2)), bool(node.input(3))
    try:
        return problem_of(node.op, x.shape, weights.shape, bias, add)
    except ProblemError as error:
        raise UnsupportedError(f"node {node.label}: {error}") from None


def conv_problems(graph: Graph, node: Node) -> list[ConvProblem]:
    """The problems as which a `Conv` node may run, one for each choice of element types.

    The first is that of float32. Integers follow as far as `float_reason` allows: with
    output in u8 if it has a grid of enough range, and the residual has one too, if there is one;
    with output in float32 unless the output must be u8. One bit follows where signs are multiplied.

    Raises:
        UnsupportedError: as `conv_problem`.
    """
    plain, found = conv_problem(graph, node), list[ConvProblem]()
    if not float_reason(graph, node):
        weights = integer_weights(graph, node.inputs[1])
        assert weights is not None
        to_bytes = writes_bytes(graph, node, weights)
        to_float = not (to_bytes and exact_grid(graph, node.output))
        inputs = f"u8s{weight_bits(weights)}"
        for output in ["u8"] * to_bytes + ["f32"] * to_float:
            found.append(replace(plain, types=f"{inputs}>{output}"))
    if counts_signs(graph, node):
        found.append(replace(plain, types="b1"))
    return [plain, *found]


def attention_problem(graph: Graph, node: Node) -> AttentionProblem:
    """The problem of an `Attention` node."""
    op = node.op
    assert isinstance(op, Attention)
    images, _, *pixels = graph.shape(node.inputs[0])
    beside = graph.shape(node.input(1))[2:] if node.input(1) else pixels
    queries, keys = math.prod(pixels), math.prod(beside)
    mask = bool(node.input(2))
    return AttentionProblem(images, op.heads, queries, op.q.size, keys, op.v.size, mask)


def worth_tuning(graph: Graph, node: Node) -> list[ConvProblem]:
    """The problems of a `Conv` node that are tuned: of integers if its grids are exact.

    With advised grids also that of float32. Times of integers hardly depend on the output's type,
    so one of them is enough.
    """
    plain, *others = conv_problems(graph, node)
    tensors = (node.inputs[0], node.output, node.inputs[1])
    exact = all(grid.exact for x in tensors if (grid := graph.grids.get(x)))
    return others[:1] if others and exact else [plain, *others[:1]]


def convolutions(graph: Graph) -> list[DistinctProblem]:
    """The distinct convolution problems of a graph, in order of first appearance.

    Those of a quantised network compute with integers where they can.

    Raises:
        UnsupportedError: a convolution is no problem; the message names its node and says why.
    """
    nodes: dict[Problem, list[str]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Conv):
            for problem in worth_tuning(graph, node):
                nodes.setdefault(problem, []).append(node.name)
        elif isinstance(node.op, Foreign) and node.op.convolves:
            raise UnsupportedError(f"node {node.label} needs {node.op.need}")
    return _distinct(nodes)


def attentions(graph: Graph) -> list[DistinctProblem]:
    """The distinct problems of attention of an optimised graph, in order of first appearance."""
    nodes: dict[Problem, list[str]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Attention):
            nodes.setdefault(attention_problem(graph, node), []).append(node.name)
    return _distinct(nodes)


def _distinct(nodes: Mapping[Problem, Sequence[str]]) -> list[DistinctProblem]:
    return [DistinctProblem(p, len(names), tuple(names)) for p, names in nodes.items()]


def to_tune(graph: Graph) -> list[DistinctProblem]:
    """The convolutions of an optimised graph, then its problems of attention.

    Raises:
        UnsupportedError: a convolution is no problem, or there is neither.
    """
    problems = [*convolutions(graph), *attentions(graph)]
    if not problems:
        raise UnsupportedError(
            f"network {graph.name!r} has no convolution and no attention: nothing to tune"
        )
    return problems

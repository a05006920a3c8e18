"""Finds the channels of a network that can be divided by factors without changing its outputs.

A convolution whose activation is linear for positive factors can divide its output channels by any
positive numbers, and a convolution that reads them can multiply its weights by the same. What lies
between them may move, pool, concatenate and add channels. Channels that are added have one factor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import (
    Binary,
    ChannelShuffle,
    Concat,
    Conv,
    Identity,
    Pool,
    Resize,
    Slice,
    Unary,
)
from fastrun.graph.core.shapes import is_depthwise
from fastrun.graph.quantise.scope import Scope
from fastrun.kernels.core.problem import slope

Labels = NDArray[np.int64]

FIXED = 0
"""The label of channels that stay as they are."""


@dataclass(frozen=True)
class Channels:
    """Which channels have one factor.

    `labels` has a number for each channel (axis 1) of a tensor: equal numbers, equal factors.
    `layers` are the convolutions whose weights may be changed. Channels between others are `FIXED`.
    """

    labels: Mapping[str, Labels]
    layers: Sequence[Node]

    def of(self, name: str) -> Labels | None:
        """The labels of a tensor; None if none of its channels may be changed."""
        labels = self.labels.get(name)
        return None if labels is None or not labels.any() else labels


def linked(scope: Scope) -> Channels:
    """The channels of a network whose layers have weights and biases of their own."""
    graph = scope.graph
    outputs = {node.output for node in scope.layers if _changeable(graph, node)}
    links = _Links(graph, outputs)
    for name in graph.inputs:
        links.fix(name)
    for node in graph.nodes:
        links.add(node)
    for name in graph.outputs:
        links.fix(name)
    layers = [node for node in scope.layers if node.output in outputs]
    return Channels(links.done(), layers)


def _changeable(graph: Graph, node: Node) -> bool:
    return isinstance(node.op, Conv) and all(graph.uses[x] == 1 for x in node.inputs[1:3] if x)


def _linear(activation: str) -> bool:
    """Whether an activation is linear for positive factors."""
    return activation in ("", "relu") or slope(activation) is not None


class _Links:
    """Labels that become one where channels meet."""

    def __init__(self, graph: Graph, layers: Collection[str]) -> None:
        self._graph, self._layers = graph, layers
        self._labels = dict[str, Labels]()
        self._parents = [FIXED]

    def add(self, node: Node) -> None:
        """Follow the channels through a node."""
        if node.output in self._layers:
            self._convolve(node)
        elif (found := self._passed(node)) is not None:
            self._labels[node.output] = found
        else:
            for name in (*node.inputs, *node.outputs):
                self.fix(name)

    def fix(self, name: str) -> None:
        """Let the channels of a tensor stay as they are."""
        labels = self._of(name)
        self._join(labels, np.zeros_like(labels))
        self._labels[name] = labels

    def done(self) -> dict[str, Labels]:
        """The labels of all tensors, of which those that became one are equal."""
        roots = np.array([self._root(i) for i in range(len(self._parents))])
        return {name: roots[labels] for name, labels in self._labels.items()}

    def _convolve(self, node: Node) -> None:
        op, x, residual = node.op, node.inputs[0], node.input(3)
        assert isinstance(op, Conv)
        if op.groups > 1 and not is_depthwise(self._graph, node):
            self.fix(x)
        count = self._graph.shape(node.output)[1]
        first = len(self._parents)
        self._parents += range(first, first + count)
        self._labels[node.output] = np.arange(first, first + count)
        if residual:
            self._join(self._labels[node.output], self._of(residual))
        if not _linear(op.activation):
            self.fix(node.output)

    def _passed(self, node: Node) -> Labels | None:
        """The labels of the output of a node that keeps factors; None if it does not."""
        shapes = [self._graph.shape(x) for x in (*node.inputs[:1], node.output)]
        if any(len(shape) < 2 for shape in shapes):
            return None
        match node.op:
            case Concat(axis=1):
                return np.concatenate([self._of(x) for x in node.inputs])
            case Pool() | Identity() | Unary(function="relu"):
                return self._of(node.inputs[0])
            case Resize() if shapes[0][:2] == shapes[1][:2]:
                return self._of(node.inputs[0])
            case ChannelShuffle(groups=groups):
                return self._of(node.inputs[0]).reshape(groups, -1).T.reshape(-1)
            case Slice(starts=starts, sizes=sizes, steps=steps):
                places = starts[1] + steps[1] * np.arange(sizes[1])
                return self._of(node.inputs[0])[places]
            case Binary(function="add" | "sub", activation=activation) if _linear(activation):
                if any(self._graph.shape(x) != shapes[1] for x in node.inputs):
                    return None
                labels = [self._of(x) for x in node.inputs]
                self._join(*labels)
                return labels[0]
        return None

    def _of(self, name: str) -> Labels:
        shape = self._graph.shape(name) if name else ()
        return self._labels.get(name, np.zeros(shape[1] if len(shape) > 1 else 0, np.int64))

    def _join(self, some: Labels, others: Labels) -> None:
        for pair in zip(some, others, strict=True):
            low, high = sorted(self._root(i) for i in pair)
            self._parents[high] = low

    def _root(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = self._parents[i]
        return i

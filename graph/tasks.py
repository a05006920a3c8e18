"""What is left to do of a graph: its nodes with the tensors they read, moves absorbed."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from graph.errors import UnsupportedError
from graph.model import Graph, Node, Shape
from graph.ops import ChannelShuffle, Concat, Gemm, Reshape, Slice

Shape4 = tuple[int, int, int, int]


@dataclass(frozen=True)
class Task:
    """A node and the computed tensors it reads, which its own inputs need not be.

    A dense layer reads what its flattened input was before, and a channel shuffle the tensors
    that a concatenation would have put together for it.
    """

    node: Node
    reads: tuple[str, ...]

    @property
    def output(self) -> str:
        """The tensor that is computed."""
        return self.node.output


def tasks(graph: Graph) -> list[Task]:
    """The tasks in topological order.

    Raises:
        UnsupportedError: a node cannot be run: it is foreign or computes anything but float32.
    """
    graph.check_supported()
    found = []
    for node in graph.nodes:
        for name in (*node.inputs, node.output):
            if name and name not in graph.constants and graph.tensor(name).dtype != np.float32:
                raise UnsupportedError(
                    f"node {node.label}: {name!r} is {graph.tensor(name).dtype}; "
                    "only float32 can be computed: convert the model"
                )
        found.append(Task(node, _reads(graph, node)))
    uses = Counter([*graph.outputs, *(x for task in found for x in task.reads)])
    kept = []
    for task in reversed(found):
        if uses[task.output]:
            kept.append(task)
        else:
            uses.subtract(task.reads)
    return kept[::-1]


def shape4(shape: Shape) -> Shape4:
    """A shape as (n, c, h, w) that lies the same way in row-major order."""
    if len(shape) <= 2:
        n, c = (1, 1, *shape)[-2:]
        return n, c, 1, 1
    return shape[0], shape[1], math.prod(shape[2:-1]), shape[-1]


def is_range(graph: Graph, task: Task) -> bool:
    """Whether a slice takes a range of channels and nothing else."""
    op = task.node.op
    assert isinstance(op, Slice)
    before, after = graph.shape(task.reads[0]), graph.shape(task.output)
    others = [a == b for i, (a, b) in enumerate(zip(before, after, strict=True)) if i != 1]
    return (
        len(after) > 1
        and all(others)
        and op.steps[1] == 1
        and not any(start for i, start in enumerate(op.starts) if i != 1)
    )


def _reads(graph: Graph, node: Node) -> tuple[str, ...]:
    reads = tuple(x for x in node.inputs if x and x not in graph.constants)
    before = graph.producers.get(reads[0]) if reads else None
    if before is None:
        return reads
    x, y = before.inputs[0], before.output
    match node.op, before.op:
        case Gemm(transpose_a=False), Reshape() if graph.shape(x)[0] == graph.shape(y)[0]:
            return (x, *reads[1:])
        case ChannelShuffle(groups=2), Concat(axis=1) if len(before.inputs) == 2:
            a, b = before.inputs
            both = a not in graph.constants and b not in graph.constants
            if both and graph.shape(a) == graph.shape(b):
                return before.inputs
    return reads

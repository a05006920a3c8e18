"""Decides the tasks of a graph: its nodes, each with the computed tensors that it reads.

A task may read the inputs of a reshape or concatenation before it. If nothing else reads that
node's result, it is no task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import ChannelShuffle, Concat, Conv, Gemm, Numpy, Reshape, Slice
from fastrun.graph.core.precision import byte_grid


@dataclass(frozen=True)
class Task:
    """A node and the computed tensors that kernels write and it reads.

    These may be others than the inputs of the node. A dense layer reads the tensor before a
    reshape that flattens it. A channel shuffle or a 1x1 convolution may read the inputs of a
    concatenation: the first `parts` tensors are then its input, one after another.
    """

    node: Node
    reads: tuple[str, ...]
    parts: int = 1

    @property
    def output(self) -> str:
        """The tensor that is computed, the first one if there are several."""
        return self.node.output


def tasks(graph: Graph) -> list[Task]:
    """The tasks in topological order.

    Raises:
        UnsupportedError: a node is foreign, or has no kernel and is not left to NumPy.
    """
    graph.check_supported()
    spread = _spread(graph)
    found = []
    for node in graph.nodes:
        if isinstance(node.op, Numpy):
            found.append(Task(node, tuple(dict.fromkeys(filter(graph.is_native, node.inputs)))))
            continue
        for name in (*node.inputs, node.output):
            if name and name not in graph.constants and not graph.is_native(name):
                raise UnsupportedError(
                    f"node {node.label}: {name!r} is {graph.tensor(name)}; kernels compute float32"
                )
        found.append(_task(graph, node, spread))
    uses = Counter([*graph.outputs, *(x for task in found for x in _read(task))])
    kept = []
    for task in reversed(found):
        if any(uses[x] for x in task.node.outputs):
            kept.append(task)
        else:
            uses.subtract(_read(task))
    return kept[::-1]


def _read(task: Task) -> Sequence[str]:
    """The values that a task reads; NumPy reads those, too, that no kernel writes."""
    return task.node.inputs if isinstance(task.node.op, Numpy) else task.reads


def _task(graph: Graph, node: Node, spread: set[str]) -> Task:
    reads = tuple(x for x in node.inputs if x and x not in graph.constants)
    before = graph.producers.get(reads[0]) if reads else None
    if before is None or _rounds(graph, before):
        return Task(node, reads)
    x, y = before.inputs[0], before.output
    match node.op, before.op:
        case Gemm(transpose_a=False), Reshape() if graph.shape(x)[0] == graph.shape(y)[0]:
            return Task(node, (x, *reads[1:]))
        case ChannelShuffle(groups=2), Concat(axis=1) if len(before.inputs) == 2:
            a, b = before.inputs
            both = a not in graph.constants and b not in graph.constants
            if both and graph.shape(a) == graph.shape(b):
                return Task(node, before.inputs, 2)
        case Conv(), Concat() if y in spread:
            return Task(node, (*before.inputs, *reads[1:]), len(before.inputs))
    return Task(node, reads)


def _rounds(graph: Graph, node: Node) -> bool:
    """Whether the result of a node that moves data may have another grid than what it moves."""
    grid = byte_grid(graph, node.output)
    return any(byte_grid(graph, x) != grid for x in node.inputs if x not in graph.constants)


def _spread(graph: Graph) -> set[str]:
    """Concatenations that need no copy: all readers are 1x1 convolutions, which gather the parts.

    Only those with a part that is a range of another tensor: it cannot be computed in its place.
    """

    def is_spread(node: Node) -> bool:
        if node.op != Concat(1) or any(x in graph.constants for x in node.inputs):
            return False
        before = [graph.producers[x].op for x in node.inputs if x in graph.producers]
        readers = graph.readers.get(node.output, ())
        return (
            any(isinstance(op, Slice) for op in before)
            and node.output not in graph.outputs
            and all(_can_gather(graph, reader, node.output) for reader in readers)
            and not _rounds(graph, node)
        )

    return {node.output for node in graph.nodes if is_spread(node)}


def _can_gather(graph: Graph, node: Node, x: str) -> bool:
    """Whether a node is a convolution that can gather the channels of its input `x`.

    It must be 1x1 and not depthwise: such kernels broadcast channels one by one.
    """
    if not isinstance(node.op, Conv) or x in node.inputs[1:]:
        return False
    weights = graph.shape(node.inputs[1])
    return weights[1:] != (1,) * (len(weights) - 1) and max(weights[2:]) == 1

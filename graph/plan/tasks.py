"""Decides the tasks of a graph: its nodes, each with the computed tensors that it reads.

A task may read the inputs of a reshape or concatenation before it. If nothing else reads that
node's result, it is no task. Elementwise operators that follow one another are one task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Graph, Node
from fastrun.graph.core.ops import (
    Affine,
    Binary,
    ChannelShuffle,
    Clip,
    Concat,
    Conv,
    Gemm,
    Numpy,
    Reshape,
    Slice,
    Unary,
    Where,
)
from fastrun.graph.core.precision import byte_grid

# Elementwise operators of one task, and computed tensors that their kernel can read.
CHAIN, CHAIN_READS = 12, 3


@dataclass(frozen=True)
class Task:
    """A node and the computed tensors that kernels write and it reads.

    These may be others than the inputs of the node. A dense layer reads the tensor before a
    reshape that flattens it. A channel shuffle or a 1x1 convolution may read the inputs of a
    concatenation: the first `parts` tensors are then its input, one after another. An elementwise
    operator reads what the operators `before` it in the same task compute, which nothing else
    reads.
    """

    node: Node
    reads: tuple[str, ...]
    parts: int = 1
    before: tuple[Node, ...] = ()

    @property
    def output(self) -> str:
        """The tensor that is computed, the first one if there are several."""
        return self.node.output

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes of the task, in topological order."""
        return (*self.before, self.node)

    @property
    def work(self) -> str:
        """What the task does: `Conv + relu`, `sub + mul + add`."""
        return " + ".join(node.work for node in self.nodes)


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
    return _chained(graph, kept[::-1])


def _chained(graph: Graph, found: list[Task]) -> list[Task]:
    """The tasks, where an elementwise operator is one task with those whose results it alone reads.

    Every value between them is computed, used and forgotten in registers.
    """
    uses = Counter([*graph.outputs, *(x for task in found for x in {*_read(task)})])
    kept = dict[str, Task]()
    for task in found:
        while first := _before(graph, task, kept, uses):
            reads = tuple(dict.fromkeys(x for x in (*first.reads, *task.reads)
                                        if x != first.output))  # fmt: skip
            uses.subtract({*first.reads} & {*task.reads})
            task = replace(task, reads=reads, before=(*first.nodes, *task.before))
            del kept[first.output]
        kept[task.output] = task
    return [*kept.values()]


def _before(
    graph: Graph, task: Task, found: Mapping[str, Task], uses: Mapping[str, int]
) -> Task | None:
    """A task whose kernel can compute the elementwise operators of `task` as well."""
    if not _is_elementwise(graph, task):
        return None
    for name in task.reads:
        first, shape = found.get(name), graph.shape(task.output)
        if not first or uses[name] > 1 or graph.shape(name) != shape:
            continue
        reads = {*first.reads, *task.reads} - {name}
        few = len(reads) <= CHAIN_READS and len(first.nodes) + len(task.nodes) <= CHAIN
        if few and _is_elementwise(graph, first):
            return first
    return None


def _is_elementwise(graph: Graph, task: Task) -> bool:
    """Whether a task computes each element of float32 from one element of each operand."""
    rounded = any(name in graph.grids for name in (*task.reads, task.output))
    return isinstance(task.node.op, Unary | Clip | Binary | Affine | Where) and not rounded


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

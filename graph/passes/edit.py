"""A graph that a pass is rewriting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Array, Graph, Node, Shape, Tensor, unused
from fastrun.graph.core.ops import Identity, Op


class Edit:
    """A mutable copy of a graph. Passes change a graph only through it.

    Iterating gives the nodes in topological order, each in its current form. Nodes may be
    replaced, bypassed or merged during the iteration.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._tensors = dict(graph.tensors)
        self._nodes = {node.output: node for node in graph.nodes}
        self._uses = Counter(graph.uses)
        self.constants = dict(graph.constants)
        self.grids = dict(graph.grids)

    def __iter__(self) -> Iterator[Node]:
        for output in list(self._nodes):
            if output in self._nodes:
                yield self._nodes[output]

    def tensor(self, name: str) -> Tensor:
        """Shape and type of a computed value; they must be known."""
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a value or constant, None if unknown."""
        if name in self.constants:
            return self.constants[name].shape
        return self._tensors[name].shape if name in self._tensors else None

    def dtype(self, name: str) -> np.dtype[np.generic] | None:
        """The element type of a value or constant, None if unknown."""
        if name in self.constants:
            return self.constants[name].dtype
        return self._tensors[name].dtype if name in self._tensors else None

    def producer(self, name: str) -> Node | None:
        """The node that computes a value; None for inputs and constants."""
        return self._nodes.get(name)

    def private_producer(self, name: str) -> Node | None:
        """The node that computes a value, if the value has exactly one use and is not rounded.

        Its reader may then compute in its place.
        """
        return self._nodes.get(name) if self.is_private(name) and not self.exact(name) else None

    def is_private(self, name: str) -> bool:
        """Whether a node computes the value, for exactly one use."""
        return name in self._nodes and self._uses[name] == 1

    def uses(self, name: str) -> int:
        """How often a value is read; being an output of the network counts as one."""
        return self._uses[name]

    def exact(self, name: str) -> Grid | None:
        """The grid to which a value is rounded, or on which weights lie; None if there is none."""
        grid = self.grids.get(name)
        return grid if grid and grid.exact else None

    def number(self, name: str) -> float:
        """The number that a constant consists of; 0 if it has several, or is no constant."""
        values = self.constants.get(name)
        return float(values.reshape(())) if values is not None and values.size == 1 else 0.0

    def constant(self, name: str, values: Array, grid: Grid | None = None) -> str:
        """Add a constant, whose values lie on `grid`. Returns its name, which is like `name`."""
        free = self.fresh(name)
        self.constants[free] = values
        if grid:
            self.grids[free] = grid
        return free

    def fresh(self, name: str) -> str:
        """A name like `name` that no value has."""
        return unused(name, self.constants, self._tensors)

    def replace(self, node: Node, new: Node) -> None:
        """Let another node compute what this one does."""
        self._count(node, -1)
        self._nodes[node.output] = new
        self._count(new, 1)

    def insert(self, new: Node, tensor: Tensor, before: Node) -> None:
        """Put a node in front of another; `tensor` describes its output."""
        nodes = list(self._nodes.items())
        at = [*self._nodes].index(before.output)
        self._nodes = dict([*nodes[:at], (new.output, new), *nodes[at:]])
        self._tensors[new.output] = tensor
        self._count(new, 1)

    def put(self, node: Node, op: Op, inputs: tuple[str, ...], shape: Shape) -> str:
        """Add a node of the element type of `node` in front of it. Returns its result's name."""
        kind = type(op).__name__.lower()
        name = self.fresh(f"{node.output}.{kind}")
        tensor = Tensor(shape, self.tensor(node.output).dtype)
        self.insert(Node(f"{node.name}.{kind}", op, inputs, (name,)), tensor, node)
        return name

    def merge(self, first: Node, second: Node, merged: Node) -> None:
        """Replace two nodes by one in the place of `second`, the only reader of `first`."""
        del self._nodes[first.output]
        self._count(first, -1)
        self.replace(second, merged)

    def drop(self, node: Node) -> None:
        """Remove a node whose output nothing reads any more."""
        del self._nodes[node.output]
        self._count(node, -1)

    def fold(self, node: Node, value: Array) -> None:
        """Let a constant take the place of the node's output; it is rounded as that would be."""
        del self._nodes[node.output]
        self._count(node, -1)
        if grid := self.exact(node.output):
            value = grid.rounded(value).astype(value.dtype)
        self.grids.pop(node.output, None)
        self.constants[node.output] = value

    def bypass(self, node: Node) -> None:
        """Remove a node; the readers of its output read its input instead.

        Inputs and outputs of the network keep their names: a node between the two becomes an
        `Identity`. So does a node whose output is rounded, if others read its input as it is, or
        if that is rounded to another grid. Else the input is rounded.
        """
        source, output = node.inputs[0], node.output
        grid = self.exact(output)
        if grid and grid != self.exact(source) and not self.private_producer(source):
            self.replace(node, replace(node, op=Identity(), inputs=(source,)))
            return
        if output in self.grids and self.private_producer(source):
            self.grids[source] = self.grids[output]
        if output not in self._graph.outputs:
            del self._nodes[output]
            self._count(node, -1)
            self._rename(output, source)
        elif source in self._nodes and source not in self._graph.outputs:
            producer = self._nodes[source]
            if len(producer.outputs) == 1:
                del self._nodes[output]
                self._count(node, -1)
                self._nodes = {
                    (output if key == source else key): (
                        replace(n, outputs=(output,)) if key == source else n
                    )
                    for key, n in self._nodes.items()
                }
                self._rename(source, output)
                if source in self.grids:
                    self.grids[output] = self.grids.pop(source)
        else:
            self.replace(node, replace(node, op=Identity(), inputs=(source,)))

    def done(self) -> Graph:
        """The rewritten graph, without unused nodes and values."""
        nodes = tuple(self._nodes.values())
        return self._graph.with_nodes(nodes, self._tensors, self.constants, self.grids)

    def _rename(self, old: str, new: str) -> None:
        for key, node in self._nodes.items():
            if old in node.inputs:
                inputs: Sequence[str] = [new if x == old else x for x in node.inputs]
                self._nodes[key] = replace(node, inputs=tuple(inputs))
        self._uses[new] += self._uses.pop(old, 0)

    def _count(self, node: Node, change: int) -> None:
        for name in node.inputs:
            if name:
                self._uses[name] += change

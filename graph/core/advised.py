"""A float32 network that may be rounded: where, to which numbers, with how many bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.core.precision import integer_weights, weight_bits


@dataclass(frozen=True)
class Advised:
    """A float32 network whose tensors and weights may be rounded.

    `graph` has float32 weights, and grids that are advice. `rounded` has the same nodes for numbers
    of bits, the largest first: there weights and biases are those of layers in integers.
    """

    graph: Graph
    rounded: Mapping[int, Graph]

    @cached_property
    def weights(self) -> Mapping[tuple[str, str], Graph]:
        """The network whose weights to take, by their name and the types that read them.

        The types are those of input and weights, such as `u8s8`. Zeros need few bits, however many
        there may be.
        """
        found = dict[tuple[str, str], Graph]()
        for graph in self.rounded.values():
            for node in graph.nodes:
                name = node.input(1)
                if isinstance(node.op, Conv) and (word := integer_types(graph, name)):
                    found.setdefault((name, word), graph)
        return found

    def changed(self, name: str) -> Iterator[str]:
        """The weights of this name and the bias beside them: the constants that are rounded."""
        names = (x for node in self.graph.readers[name] for x in node.inputs[1:3])
        return (x for x in names if x in self.graph.constants)

    def each(self, change: Callable[[Graph], Graph]) -> Advised:
        """The network after a change that gives all of them the same nodes."""
        return Advised(change(self.graph), {b: change(g) for b, g in self.rounded.items()})


def integer_types(graph: Graph, name: str) -> str:
    """The types as which integer weights may be read, without that of the output, or ""."""
    integers = integer_weights(graph, name)
    return "" if integers is None else f"u8s{weight_bits(integers)}"

"""The graph of a network: immutable nodes in topological order, known shapes, weights as arrays."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.grid import Grid
from fastrun.graph.core.ops import (
    Activating,
    Binary,
    ByteFunction,
    Conv,
    Foreign,
    Numpy,
    Onnx,
    Op,
    Pool,
    Reduce,
    Unary,
)

Array = NDArray[Any]
Shape = tuple[int, ...]


def unused(name: str, *names: Container[str]) -> str:
    """A name like `name` that is in none of the collections."""
    free, count = name, 1
    while any(free in some for some in names):
        free, count = f"{name}.{count}", count + 1
    return free


@dataclass(frozen=True)
class Tensor:
    """Shape and element type of a value."""

    shape: Shape
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """The bytes that its values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape)) or 'scalar'} {self.dtype}"


@dataclass(frozen=True)
class Node:
    """One operation. An absent optional input is "" or, at the end, left out."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def output(self) -> str:
        """The first output; the only one unless the operator is ONNX's."""
        return self.outputs[0]

    def input(self, index: int) -> str:
        """The name of an input, "" when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    @property
    def label(self) -> str:
        """The node's name in messages: `'layer1.0.conv1' (Conv)`."""
        op = self.op.op if isinstance(self.op, Numpy) else self.op
        own = op.operator if isinstance(op, Foreign | Onnx) else type(op).__name__
        return f"{self.name!r} ({own})"

    @property
    def work(self) -> str:
        """What the node does, epilogue included: `Conv + add + relu`, `max pool`, `Concat`."""
        match self.op:
            case Pool(function=function):
                return f"{function} pool"
            case Foreign(operator=operator):
                return f"{operator} (unsupported)"
            case Numpy(op):
                return f"{replace(self, op=op).work} (NumPy)"
            case Onnx(operator):
                return operator
            case ByteFunction(links):
                return "+".join(str(replace(self, op=link.op).work) for link in links)
            case Unary() | Binary() | Reduce():
                name = self.op.function
            case _:
                name = type(self.op).__name__
        add = "add" if isinstance(self.op, Conv) and self.input(3) else ""
        activation = self.op.activation if isinstance(self.op, Activating) else ""
        return " + ".join(filter(None, [name, add, activation]))


@dataclass(frozen=True)
class Graph:
    """A network.

    `tensors` describes the inputs and the values that nodes compute; only values whose shape
    depends on data, or on a foreign operator, may be missing. `constants` holds weights and
    parameters. `unread` are further inputs of the model, which nothing reads. `outside` has the
    model's element types of inputs and outputs that are float32 here: the model converts them first
    or last of all. Those of these inputs that are integers and truth values are `whole`: they are
    given in the model's type.
    `grids` has the tensors of a quantised network: a computed one is rounded to its grid, weights
    lie on theirs. `notes` are lines that say which parts of a quantised network run in float32
    although the model has integers there, and why.

    Raises:
        GraphError: a node uses a value that no earlier node, input or constant provides, or
            two of them provide the same name.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    constants: Mapping[str, Array]
    unread: tuple[str, ...] = ()
    outside: Mapping[str, np.dtype[Any]] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {*self.inputs, *self.constants}
        for node in self.nodes:
            for name in node.inputs:
                if name and name not in known:
                    raise GraphError(f"node {node.label} uses {name!r} before it exists")
            for name in node.outputs:
                if name in known:
                    raise GraphError(f"node {node.label} computes {name!r}, which exists already")
            known.update(node.outputs)
        if missing := [name for name in self.outputs if name not in known]:
            raise GraphError(f"nothing computes the output {missing[0]!r}")

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that computes each value."""
        return {name: node for node in self.nodes for name in node.outputs}

    @cached_property
    def readers(self) -> Mapping[str, Sequence[Node]]:
        """The nodes that read each value."""
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found[name].append(node)
        return found

    @cached_property
    def uses(self) -> Mapping[str, int]:
        """How often nodes read each value; being an output of the network counts as one."""
        return Counter([*(x for node in self.nodes for x in node.inputs if x), *self.outputs])

    def integers(self, name: str) -> Array:
        """The integers by which the weights `name`, a constant with a grid, are stored.

        The first axis is that of the scales. They are computed once.
        """
        if name not in self._integers:
            self._integers[name] = self.grids[name].stored(self.constants[name])
        return self._integers[name]

    @cached_property
    def _integers(self) -> dict[str, Array]:
        return {}

    def tensor(self, name: str) -> Tensor:
        """Shape and type of a value or constant.

        Raises:
            UnsupportedError: it depends on data, or on an unsupported operator, which the message
                names.
        """
        if name in self.constants:
            return Tensor(self.constants[name].shape, self.constants[name].dtype)
        if name not in self.tensors:
            raise UnsupportedError(f"the shape of {name!r} is unknown: {self._culprit(name)}")
        return self.tensors[name]

    def shape(self, name: str) -> Shape:
        """The shape of a value or constant; raises as `tensor` does."""
        return self.tensor(name).shape

    def is_native(self, name: str) -> bool:
        """Whether a name is that of a computed value or an input that kernels can read and write.

        They need float32, and a known shape without a size of 0.
        """
        tensor = None if name in self.constants else self.tensors.get(name)
        return tensor is not None and tensor.dtype == np.float32 and 0 not in tensor.shape

    @cached_property
    def digest(self) -> str:
        """Thirty-two hex digits of everything but the name and the values of constants and grids.

        Two graphs with equal digests can follow the same plans.
        """
        shapes = [(x, str(self.tensors.get(x))) for x in self.inputs]
        sizes = [(x, a.shape, str(a.dtype)) for x, a in sorted(self.constants.items())]
        grids = [(x, grid.text) for x, grid in sorted(self.grids.items())]
        text = repr((self.nodes, self.outputs, shapes, sizes, *([grids] if grids else ())))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def parameter_count(self) -> int:
        """Floating-point values among the constants."""
        return sum(a.size for a in self.constants.values() if a.dtype.kind == "f")

    def check_supported(self) -> None:
        """Raise if a node cannot be run.

        Raises:
            UnsupportedError: naming the first such node and what it needs.
        """
        foreign = [(n, n.op) for n in self.nodes if isinstance(n.op, Foreign)]
        if foreign:
            (node, op), more = foreign[0], len(foreign) - 1
            others = f" ({more} more nodes are unsupported)" if more else ""
            raise UnsupportedError(f"node {node.label} needs {op.need}{others}")

    def summary(self) -> str:
        """Some lines of text: size, inputs, outputs, and the number of nodes of each kind."""
        lines = [
            f"{self.name}: {len(self.nodes)} nodes, {self.parameter_count():,} parameters",
            *(f"  input {name}: {self.tensor(name)}" for name in self.inputs),
            *(f"  output {name}: {self.tensors.get(name, 'unknown')}" for name in self.outputs),
        ]
        if rounded := sum(grid.exact for name, grid in self.grids.items() if name in self.tensors):
            weights = sum(name in self.constants for name in self.grids)
            lines.append(f"  quantised: {rounded} tensors and {weights} weights in 8 bits")
        counts = Counter(node.work for node in self.nodes)
        return "\n".join(lines + [f"  {n:5} {work}" for work, n in counts.most_common()])

    def with_nodes(
        self,
        nodes: tuple[Node, ...],
        tensors: Mapping[str, Tensor],
        constants: Mapping[str, Array],
        grids: Mapping[str, Grid],
    ) -> Graph:
        """The same network computed by other nodes; unused nodes and values are left out."""
        live = set(self.outputs)
        kept = []
        for node in reversed(nodes):
            if live.intersection(node.outputs):
                kept.append(node)
                live.update(node.inputs)
        live.update(self.inputs, *(node.outputs for node in kept))
        return replace(
            self,
            nodes=tuple(reversed(kept)),
            tensors={name: t for name, t in tensors.items() if name in live},
            constants={name: a for name, a in constants.items() if name in live},
            grids={name: grid for name, grid in grids.items() if name in live},
        )

    def _culprit(self, name: str) -> str:
        """The reason for an unknown shape: the first foreign node on which the value depends."""
        pending, seen = [name], {name}
        while pending:
            node = self.producers.get(pending.pop())
            if node is None:
                continue
            unknown = [x for x in node.inputs if x and x not in self.constants]
            unknown = [x for x in unknown if x not in self.tensors and x not in seen]
            if not unknown:
                if isinstance(node.op, Foreign):
                    return f"node {node.label} needs {node.op.need}"
                return f"that of the result of node {node.label} depends on data"
            seen.update(unknown)
            pending += unknown
        return "nothing computes it"

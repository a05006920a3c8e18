"""Decides which layers of a network are quantised, and which tensors share a grid."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastrun.graph.core.advised import Advised
from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.grid import weight_axis
from fastrun.graph.core.model import Graph, Node, unused
from fastrun.graph.core.ops import (
    Binary,
    ChannelShuffle,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    DepthwiseVolume,
    Expand,
    Gather,
    Gemm,
    Identity,
    MatMul,
    Pad,
    Pool,
    Reshape,
    Resize,
    Slice,
    Transpose,
    Unary,
)


@dataclass(frozen=True)
class Scope:
    """What is quantised in `graph`.

    `layers` are the nodes that compute with integers, in order. Each of `groups` lists tensors
    that share a grid. `ends` has the outputs of the first and the last layers.
    """

    graph: Graph
    layers: Sequence[Node]
    groups: Sequence[Sequence[str]]
    ends: Collection[str]

    def advised(self, rounded: Mapping[int, Graph]) -> Advised:
        """The graph in float32 with grids as advice; `rounded` is it quantised, by numbers of bits.

        The largest number of bits comes first.
        """
        advice = {
            bits: replace(graph, grids={x: replace(g, exact=False) for x, g in graph.grids.items()})
            for bits, graph in rounded.items()
        }
        first = next(iter(advice.values()))
        plain = {x: self.graph.constants[x] for x in first.constants}
        return Advised(replace(first, constants=plain), advice)


def find_scope(graph: Graph, keep: Collection[str] = ()) -> Scope:
    """What can be quantised in an optimised graph; the nodes named in `keep` stay in float32.

    Convolutions and dense layers with constant weights are quantised. So are the tensors that
    they read, and the tensors from which these are computed by operators for which integers
    suffice: sums, products, pools, activations. Operators that only move values do not change the
    grid; a concatenation and its parts share one. Outputs of the network stay in float32.

    Raises:
        GraphError: there is no layer of a name in `keep`, or the graph has grids already.
        UnsupportedError: there is nothing to quantise.
    """
    if graph.grids:
        raise GraphError(f"network {graph.name!r} is quantised already: give the float32 model")
    named = {node.name: is_layer(graph, node) for node in graph.nodes}
    for name in keep:
        if not named.get(name):
            kind = "node" if name not in named else "convolution or dense layer"
            like = [x for x in named if x.startswith(f"{name}.") and named[x]]
            advice = f": give {like[0]!r}" if like else ""
            raise GraphError(
                f"network {graph.name!r} has no {kind} {name!r} to keep in float32{advice}"
            )
    outputs = {node.output for node in _layers(graph, keep)}
    if not outputs:
        raise UnsupportedError(
            f"network {graph.name!r} has no convolution or dense layer with constant weights "
            "to quantise"
        )
    graph = _apart(graph, outputs)
    layers = [node for node in graph.nodes if node.output in outputs]
    return Scope(graph, layers, _groups(graph, layers), _ends(graph, layers))


def _layers(graph: Graph, keep: Collection[str]) -> list[Node]:
    found = {n.output: n for n in graph.nodes if n.name not in keep and _can_be(graph, n)}
    # Weights that something else reads must keep their values.
    shared = {
        name
        for node in graph.nodes
        for i, name in enumerate(node.inputs)
        if name in graph.constants and (i != 1 or node.output not in found)
    }
    return [node for node in found.values() if node.inputs[1] not in shared]


def is_layer(graph: Graph, node: Node) -> bool:
    """Whether a node is a convolution or a dense layer, with constant weights."""
    kinds = Conv | ConvTranspose | DepthwiseVolume | Gemm | MatMul
    return isinstance(node.op, kinds) and node.input(1) in graph.constants


def _can_be(graph: Graph, node: Node) -> bool:
    """Whether a layer can compute with integers: constant weights, a bias per channel or none."""
    op, axis = node.op, weight_axis(node.op)
    if not is_layer(graph, node) or axis is None or isinstance(op, ConvTranspose | DepthwiseVolume):
        return False
    if isinstance(op, Gemm) and (op.alpha, op.beta, op.transpose_a) != (1, 1, False):
        return False
    x, weights, bias = (node.input(i) for i in range(3))
    values = graph.constants[weights]
    if x in graph.constants or values.dtype != np.float32:
        return False
    if isinstance(op, MatMul) and not len(graph.shape(x)) == values.ndim == 2:
        return False
    if bias and (bias not in graph.constants or graph.constants[bias].size != values.shape[axis]):
        return False
    return bool(np.isfinite(values).all())


def _apart(graph: Graph, layers: Collection[str]) -> Graph:
    """Let an `Identity`, which can be rounded, lie between outputs of the network and layers."""
    nodes, tensors, renamed = list[Node](), dict(graph.tensors), dict[str, str]()
    for node in graph.nodes:
        if node.output in layers or _computes(node) or _moves(graph, node):
            node = replace(node, inputs=tuple(renamed.get(x, x) for x in node.inputs))
        nodes.append(node)
        for name in set(node.outputs) & {*graph.outputs}:
            inner = renamed[name] = unused(f"{name}.rounded", tensors, graph.constants)
            tensors[inner] = tensors[name]
            nodes.append(Node(inner, Identity(), (name,), (inner,)))
    return graph.with_nodes(tuple(nodes), tensors, graph.constants, {})


def _moves(graph: Graph, node: Node) -> Sequence[str]:
    """The inputs whose values a node passes on, so that its result has their grid."""
    match node.op:
        case Pad(mode="constant", value=value) if value:
            return ()
        case Identity() if node.inputs[0] in graph.outputs:
            return ()  # it is there to be rounded
        case Concat() if any(x in graph.constants for x in node.inputs):
            return ()
        case Concat():
            return node.inputs
        case Pool(function="max"):
            return node.inputs[:1]
        case (
            Slice() | Transpose() | ChannelShuffle() | DepthToSpace() | Reshape() | Expand()
            | Gather() | Resize() | Pad() | Identity()
        ):  # fmt: skip
            return node.inputs[:1]
    return ()


def _computes(node: Node) -> bool:
    """Whether a node computes 8-bit integers from 8-bit integers of other grids."""
    match node.op:
        case Pool(function="average") | Unary():
            return True
        case Binary(function=function):
            return function in ("add", "sub", "mul", "max", "min")
    return False


def _groups(graph: Graph, layers: Sequence[Node]) -> list[list[str]]:
    """The tensors to be quantised, those of one grid together."""
    wanted = tensors_of(graph, layers)
    groups = {name: [name] for name in wanted}
    for node in graph.nodes:
        if node.output in wanted:
            for name in _moves(graph, node):
                mine, other = groups[node.output], groups.get(name, [])
                if name in wanted and mine is not other:
                    mine += other
                    groups |= dict.fromkeys(other, mine)
    return [group for name, group in groups.items() if group[0] == name]


def tensors_of(graph: Graph, layers: Sequence[Node]) -> dict[str, None]:
    """The tensors to be quantised if these layers compute with integers, in a fixed order."""
    outputs = {node.output for node in layers}
    integers = set(outputs)  # tensors that can be computed from integers alone
    for node in graph.nodes:
        read = _moves(graph, node) or (node.inputs if _computes(node) else ())
        if read and integers.issuperset(read):
            integers.add(node.output)
    found, pending = dict[str, None](), [node.inputs[0] for node in layers]
    while pending:
        name = pending.pop()
        if name in found or name in graph.outputs or name in graph.constants:
            continue
        found[name] = None
        producer = graph.producers.get(name)
        if producer is None:
            continue
        if name in outputs:
            pending += filter(None, [producer.input(3)])
        elif moved := _moves(graph, producer):
            pending += moved
        elif _computes(producer) and name in integers:
            pending += producer.inputs
    return found


def _ends(graph: Graph, layers: Sequence[Node]) -> set[str]:
    """The outputs of layers before which, or behind which, there is no other layer."""
    outputs = {node.output for node in layers}
    behind, before = set[str](), set[str]()
    for node in graph.nodes:
        if node.output in outputs or behind.intersection(node.inputs):
            behind.update(node.outputs)
    for node in reversed(graph.nodes):
        if node.output in outputs or before.intersection(node.outputs):
            before.update(node.inputs)
    first = {node.output for node in layers if not behind.intersection(node.inputs)}
    return first | (outputs - before)

"""A quantised network in float32, and how far its outputs are from those of the original."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Array, Graph, Node, Tensor, unused
from fastrun.graph.core.ops import Binary, Clip, Op, Softmax, Unary
from fastrun.graph.quantise.observe import Batch, Observer


@dataclass(frozen=True)
class Difference:
    """How far an output of a quantised network is from float32.

    `sqnr` is the signal to quantisation noise ratio in decibels, that of the tensor `of`: the
    output, or what a softmax reads that computes it. `agreement` is the share of cases that name
    the same class, by the largest value along `class_axis`; None where there is a single one.
    """

    of: str
    sqnr: float
    agreement: float | None


def class_axis(rank: int) -> int:
    """The axis whose largest value may name a class: that of channels, or the last of three."""
    return 1 if rank in (2, 4) else -1


def scores(graph: Graph) -> dict[str, str]:
    """The tensor to compare for each output: where a softmax computes it, what that one reads.

    A few cases in which the network is unsure decide how far probabilities are from others.
    """
    last = {x: graph.producers.get(x) for x in graph.outputs if not graph.readers.get(x)}
    inner = {x: node.inputs[0] for x, node in last.items() if node and isinstance(node.op, Softmax)}
    return {x: inner.get(x, x) for x in graph.outputs}


def differences(graph: Graph, quantised: Graph, data: Iterable[Batch]) -> dict[str, Difference]:
    """The difference of every output over all batches; raises as `Observer`."""
    compared = scores(graph)
    truth = Observer(graph, compared.values())
    rounded = Observer(simulated(quantised), compared.values())
    axes = {name: class_axis(len(graph.shape(name))) for name in compared.values()}
    sums = {name: np.zeros(4) for name in axes}  # signal, noise, cases, equal cases
    for batch in data:
        found = rounded(batch)
        for name, values in truth(batch).items():
            exact, other = (np.atleast_1d(x).astype(np.float64) for x in (values, found[name]))
            same = exact.argmax(axes[name]) == other.argmax(axes[name])
            sums[name] += (exact**2).sum(), ((exact - other) ** 2).sum(), same.size, same.sum()

    def difference(name: str) -> Difference:
        signal, noise, cases, equal = sums[name]
        sqnr = 10 * math.log10(signal / noise) if signal and noise else math.inf
        shape = graph.shape(name)
        several = len(shape) > 0 and shape[axes[name]] > 1
        return Difference(name, sqnr, float(equal / cases) if several else None)

    return {output: difference(name) for output, name in compared.items()}


def simulated(graph: Graph) -> Graph:
    """The graph without grids, in which a computed tensor with an exact grid is rounded by nodes.

    It runs on kernels of float32. Values half-way between two steps may round differently.
    """
    rounding = _Rounding(graph)
    for name in graph.inputs:
        rounding.input(name)
    for node in graph.nodes:
        rounding.add(node)
    return graph.with_nodes(tuple(rounding.nodes), rounding.tensors, rounding.constants, {})


class _Rounding:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.nodes: list[Node] = []
        self.tensors = dict(graph.tensors)
        self.constants: dict[str, Array] = dict(graph.constants)
        self._renamed: dict[str, str] = {}

    def _grid(self, name: str) -> Grid | None:
        grid = self._graph.grids.get(name)
        return grid if grid and grid.exact else None

    def input(self, name: str) -> None:
        """Round an input, for all nodes that read it."""
        if grid := self._grid(name):
            self._renamed[name] = self._round(name, grid, self._fresh(f"{name}.rounded"), name)

    def add(self, node: Node) -> None:
        """Add a node, and round its output."""
        inputs = tuple(self._renamed.get(x, x) for x in node.inputs)
        grid = self._grid(node.output)
        if not grid:
            self.nodes.append(replace(node, inputs=inputs))
            return
        raw = self._fresh(f"{node.output}.raw")
        self.tensors[raw] = self.tensors[node.output]
        self.nodes.append(replace(node, inputs=inputs, outputs=(raw,)))
        self._round(raw, grid, node.output, node.output)

    def _round(self, raw: str, grid: Grid, output: str, like: str) -> str:
        tensor = self._graph.tensor(like)
        low, high = (bound - int(grid.zero) for bound in grid.dtype.range)
        scale = self._fresh(f"{like}.scale")
        self.constants[scale] = np.array(grid.scale, np.float32)
        steps: list[tuple[Op, tuple[str, ...]]] = [
            (Binary("div"), (scale,)),
            (Unary("round"), ()),
            (Clip(low, high), ()),
            (Binary("mul"), (scale,)),
        ]
        for i, (op, more) in enumerate(steps):
            last = i == len(steps) - 1
            name = output if last else self._fresh(f"{like}.{i}")
            self.tensors[name] = Tensor(tensor.shape, tensor.dtype)
            self.nodes.append(Node(f"{like}.rounding.{i}", op, (raw, *more), (name,)))
            raw = name
        return raw

    def _fresh(self, name: str) -> str:
        return unused(name, self.tensors, self.constants)

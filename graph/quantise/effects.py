"""What rounding tensors does to the outputs of a network: measured on examples, in float32.

The loss is the mean square of the change relative to the mean square of the outputs. Where an
output is a softmax, that of its input counts: it does not depend on how sure the network is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fastrun.graph.build.steps import Arrangement
from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Array, Graph, Node, unused
from fastrun.graph.core.ops import Binary
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import make_plan
from fastrun.graph.quantise.observe import Batch
from fastrun.graph.quantise.simulate import scores
from fastrun.graph.runtime.incremental import Change, Incremental
from fastrun.kernels.core.cpu import Cpu

ROOM = 1 << 30
"""Bytes that the tensors of all examples may take."""


class Effects:
    """A float32 network on examples, in which tensors can be rounded: those named.

    Of the data the first are examples, as many as fit into `ROOM`, and at least one.

    Raises:
        UnsupportedError: a node cannot be run.
    """

    def __init__(self, graph: Graph, names: Collection[str], data: Sequence[Batch]) -> None:
        network, self._places = observable(ending_in_scores(graph), names, Cpu.host())
        count = max(1, min(len(data), ROOM // max(network.size, 1)))
        self._runs = [network.run(batch) for batch in data[:count]]
        self._steps = {name: network.steps[place] for name, place in self._places.items()}

    def step(self, name: str) -> int:
        """Which step computes a tensor. The loss of late ones costs least, and last ones first."""
        return self._steps[name]

    def loss(self, grids: Mapping[str, Grid], examples: int | None = None) -> float:
        """The loss if these tensors are rounded so, and nothing else is; by the first examples."""
        changes = {self._places[name]: _rounding(grid) for name, grid in grids.items()}
        every = [loss(run.after(changes), run.outputs) for run in self._runs[:examples]]
        return sum(every) / len(every)


def ending_in_scores(graph: Graph) -> Graph:
    """The graph whose outputs are the inputs of those softmax that compute some of them."""
    shorter = replace(graph, outputs=tuple(dict.fromkeys(scores(graph).values())))
    return shorter.with_nodes(shorter.nodes, graph.tensors, graph.constants, graph.grids)


def _rounding(grid: Grid) -> Change:
    low, high = (bound - int(grid.zero) for bound in grid.dtype.range)
    scale = np.float32(grid.scale)

    def rounded(values: Array) -> Array:
        steps = np.rint(values / scale).clip(low, high)
        steps *= scale
        return steps

    return rounded


def loss(found: Batch, truth: Batch) -> float:
    """The mean square of the change of all outputs, relative to their mean square.

    The outputs that were found are overwritten: new arrays would take as long as a network.
    """
    change = sum(_square(np.subtract(found[x], y, out=found[x])) for x, y in truth.items())
    return change / max(sum(map(_square, truth.values())), 1e-30)


def _square(values: Array) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def observable(
    graph: Graph, names: Collection[str], cpu: Cpu
) -> tuple[Incremental, dict[str, str]]:
    """The network in float32, and where in it to change each of these tensors.

    A tensor that no step of its own computes, since it is a view of another one or is put together
    from several, is copied for its readers.
    """
    # Tensors with grids are steps' results; weights have none, so that layers compute in float32.
    plain = replace(graph, grids={x: graph.grids[x] for x in names})
    plan, arrangement = _arranged(plain, cpu)
    missing = {*names} - arrangement.ports.keys()
    copies = dict[str, str]()
    if missing:
        wider, copies = _with_copies(plain, missing)
        plan, arrangement = _arranged(wider, cpu)
    return Incremental(arrangement, cpu, plan), {x: copies.get(x, x) for x in names}


def _arranged(graph: Graph, cpu: Cpu) -> tuple[Plan, Arrangement]:
    return make_plan(
        graph, heuristic_choices(cpu), cpu, allowed=lambda _, form: not form.touches_bytes
    )


def _with_copies(graph: Graph, names: Collection[str]) -> tuple[Graph, dict[str, str]]:
    """The graph with copies of these tensors for all that read them, and the copies' names."""
    tensors, constants = dict(graph.tensors), dict(graph.constants)
    nodes, copies = list[Node](), dict[str, str]()
    zero = unused("zero", tensors, constants)
    constants[zero] = np.zeros((), np.float32)

    def copy(name: str) -> None:
        if name in names:
            new = copies[name] = unused(f"{name}.copy", tensors, constants)
            tensors[new] = tensors[name]
            nodes.append(Node(new, Binary("add"), (name, zero), (new,)))

    for name in graph.inputs:
        copy(name)
    for node in graph.nodes:
        nodes.append(replace(node, inputs=tuple(copies.get(x, x) for x in node.inputs)))
        copy(node.output)
    outputs = tuple(copies.get(x, x) for x in graph.outputs)
    wider = graph.with_nodes(tuple(nodes), tensors, constants, graph.grids)
    return replace(wider, outputs=outputs), copies

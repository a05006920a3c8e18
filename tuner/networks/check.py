"""Compares the steps of a network, one by one, with float64."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastrun.graph.build.steps import Port
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.dtype import U8
from fastrun.tuner.networks.outputs import distance

# Two ways to compute a value in float64 differ by less, relative to its rms.
_SAME = 1e-7
# Values behind a name that are looked at.
_NEAR = 12


@dataclass(frozen=True)
class Checked:
    """A step of a network and how far its result is from float64.

    `own` is the error of the step alone: its true result is computed of what it really read.
    `total` is the difference from what the network computes in float64 from its inputs on. Both
    are rms, relative to the rms of the truth.
    """

    node: str
    work: str
    algorithm: str
    output: str
    own: float
    total: float


def check_steps(
    graph: Graph, network: Executable, inputs: Mapping[str, Array]
) -> tuple[list[Checked], dict[str, Array]]:
    """Every step that computes, in order, and the results of all of them by name.

    `graph` is the optimised graph that the network runs.

    Raises:
        InputError: the inputs do not fit.
    """
    steps = [(step, port) for step in network.steps if (port := step.result)]
    found = dict(inputs)
    for name, stored in network.trace(inputs).items():
        ports = [port for _, port in steps if port.name == name]
        found[name] = _numbers(graph, ports[0], stored) if ports else stored
    truth = reference.every_value(graph, inputs)
    derived = dict(found)
    checked = []
    for step, port in steps:
        name = port.name
        alone = _of_what_it_read(graph, name, derived)
        own, total = (distance(right, found[name]) for right in (alone, truth[name]))
        checked.append(Checked(step.name, step.work, step.algorithm, name, own, total))
    return checked, found


def first_beyond(checked: Sequence[Checked], limit: float) -> Checked | None:
    """The first step whose own error is above a limit."""
    return next((one for one in checked if not one.own <= limit), None)


def names_before(
    graph: Graph, original: Graph, names: Sequence[str], inputs: Mapping[str, Array]
) -> dict[str, str]:
    """The tensors of the graph that is not yet optimised, by those of the optimised one.

    Where nodes were joined, the result has the name of one of them: it is the value of the first
    node behind that name that computes the same. Those that have no such value are left out.
    """
    truth, before = reference.every_value(graph, inputs), reference.every_value(original, inputs)
    found = {}
    for name in names:
        nodes = deque([name] if name in before else [])
        seen = set(nodes)
        while nodes and len(seen) < _NEAR:
            x = nodes.popleft()
            same = before[x].size == truth[name].size
            if same and distance(truth[name], before[x].reshape(truth[name].shape)) < _SAME:
                found[name] = x
                break
            further = [node.output for node in original.readers.get(x, ())]
            nodes += [y for y in further if y not in seen]
            seen.update(further)
    return found


def _numbers(graph: Graph, port: Port, stored: Array) -> Array:
    """The numbers that the elements of a tensor stand for.

    A step without a kernel of bytes leaves float32, which is rounded when it becomes bytes.
    """
    grid = graph.grids.get(port.name)
    if port.placement.dtype is not U8 or not grid:
        return grid.rounded(stored) if grid and grid.exact else stored
    return (stored.astype(np.float64) - grid.zero) * grid.scale


def _of_what_it_read(graph: Graph, name: str, found: dict[str, Array]) -> Array:
    """The true value of a tensor for inputs of its node as `found`, which gains those it lacks.

    A tensor is not found if no step leaves it in memory: the result of a reshape, say, or the one
    between two operators in one kernel.
    """
    operands: list[Array | None] = []
    node = graph.producers[name]
    for x in node.inputs:
        if x in graph.constants:
            operands.append(graph.constants[x])
        elif x and x not in found:
            found[x] = _of_what_it_read(graph, x, found)
            operands.append(found[x])
        else:
            operands.append(found.get(x))
    return reference.rounded_results(graph, node, operands)[name]

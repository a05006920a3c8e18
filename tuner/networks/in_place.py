"""The work of a process that times whole networks: it compares two plans step by step, or races.

A step in a network takes another time than alone: its weights are out of cache, its input may be,
and the code of other steps has run meanwhile. So two plans run in turns, and the times of their
steps are compared in place.
"""

from __future__ import annotations

import functools
import pickle
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.build.steps import Step
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import follow_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.measure.cores import pin
from fastrun.tuner.measure.timing import Protocol, interleave
from fastrun.tuner.networks.outputs import difference, limit, normal_inputs

# The tensors that a step computes.
Outputs = tuple[str, ...]

# The numbers of runs in a turn: the first one finds the caches as the other plan left them.
_COLD, _WARM = 1, 2

_PROTOCOL = Protocol(block=0.02)


@dataclass(frozen=True)
class PickledNetwork:
    """The file of a pickled graph, and a core for each thread."""

    file: Path
    cores: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """The times of two plans that ran in turns: seconds of each step, and of whole runs.

    A step is named by the tensors that it computes; a step in bands computes two. Moves are left
    out. `agrees` says whether both plans compute the same.
    """

    agrees: bool
    base: Mapping[Outputs, Sequence[float]] = field(default_factory=dict)
    other: Mapping[Outputs, Sequence[float]] = field(default_factory=dict)
    base_runs: Sequence[float] = ()
    other_runs: Sequence[float] = ()


def compare(network: PickledNetwork, base: str, other: str, seconds: float) -> Comparison:
    """Run two plans in turns for about `seconds`."""
    pair = _loaded(network, (base, other))
    outputs = [executable.run(_inputs(network.file)) for executable in pair]
    if not difference(*outputs) <= limit(_graph(network.file)):
        return Comparison(agrees=False)
    once = sum(executable.seconds() for executable in pair)
    found: tuple[list[NDArray[np.float64]], ...] = [], []
    for _ in range(min(50, max(5, round(seconds / (once * (_COLD + _WARM)))))):
        for executable, rows in zip(pair, found, strict=True):
            executable.seconds(_COLD)
            rows.append(executable.step_seconds(_WARM))
    steps = [np.concatenate(rows) for rows in found]
    own = [_by_output(executable, rows) for executable, rows in zip(pair, steps, strict=True)]
    runs = [tuple(rows.sum(axis=1).tolist()) for rows in steps]
    return Comparison(True, own[0], own[1], runs[0], runs[1])


def race_plans(
    network: PickledNetwork, plans: Sequence[str], rounds: int, seed: int
) -> list[Sequence[float]]:
    """Seconds per run of each plan, in interleaved rounds; sample i of every plan is of round i.

    A plan that does not compute the same as the first one has no samples.
    """
    executables = _loaded(network, plans)
    outputs = [executable.run(_inputs(network.file)) for executable in executables]
    most = limit(_graph(network.file))
    right = [i for i, found in enumerate(outputs) if difference(outputs[0], found) <= most]
    calls = [executables[i].seconds for i in right]
    timings = dict(zip(right, interleave(calls, rounds, _PROTOCOL, seed), strict=True))
    return [timings[i].samples if i in timings else () for i in range(len(plans))]


@functools.cache
def _graph(file: Path) -> Graph:
    graph: Graph = pickle.loads(file.read_bytes())
    return graph


def _loaded(network: PickledNetwork, plans: Sequence[str]) -> list[Executable]:
    # On one core nothing is compiled by other processes, which must not be started here.
    pin(network.cores[:1])
    executables = [_executable(network, plan) for plan in plans]
    kept = {_identity(step) for step in executables[0].steps if isinstance(step, Step)}
    for key in _weights.keys() - kept:
        del _weights[key]
    pin(network.cores)
    return executables


@functools.lru_cache(2)
def _executable(network: PickledNetwork, plan: str) -> Executable:
    graph, cpu, parsed = _graph(network.file), Cpu.host(), Plan.parse(plan)
    arrangement = follow_plan(graph, parsed, cpu)
    return Executable.of(arrangement, cpu, len(network.cores), parsed, _packed)


def _packed(step: Step) -> Array:
    """The packed weights of a step. Plans share those of equal steps."""
    key = _identity(step)
    if key not in _weights:
        _weights[key] = step.packed()
    return _weights[key]


def _identity(step: Step) -> tuple[str, str]:
    return step.output, step.program.ir_hash


# The weights of the first plan that was loaded last. The next plans share most of them.
_weights: dict[tuple[str, str], Array] = {}


@functools.cache
def _inputs(file: Path) -> Mapping[str, Array]:
    return normal_inputs(_graph(file))


def _by_output(executable: Executable, runs: NDArray[np.float64]) -> dict[Outputs, Sequence[float]]:
    found: defaultdict[Outputs, NDArray[np.float64]] = defaultdict(lambda: np.zeros(len(runs)))
    for step, column in zip(executable.steps, runs.T, strict=True):
        if step.computes:
            found[tuple(step.forms) or (step.output,)] += column
    return {outputs: tuple(samples.tolist()) for outputs, samples in found.items()}

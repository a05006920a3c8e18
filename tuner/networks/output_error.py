"""Keeps the error of a network's outputs, not only that of each layer, within the user's limit.

How the errors of layers add up depends on the network and on its weights: in a chain of equal
layers their squares add, a residual that passes by makes each of them smaller. So it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.problems import convolutions
from fastrun.graph.plan.choices import Choice
from fastrun.graph.planner import make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import summation_error
from fastrun.tuner.networks.measured_choices import guessed_choices
from fastrun.tuner.networks.outputs import difference, normal_inputs
from fastrun.tuner.records.record import Limits

# How many limits of the layers are tried, each at most half of the one before.
_ATTEMPTS = 4
# The share of the limit that is aimed at, since errors change by jumps with the limit of layers.
_AIM = 0.9
# What is compared with has layers that err by this share of the limit, if that is possible.
_EXACT = 0.02

Load = Callable[[Limits], tuple[Executable, str]]
"""A network whose layers are within limits, and a remark about it."""


def within_outputs(
    graph: Graph, limits: Limits, cpu: Cpu, threads: int, load: Load
) -> tuple[Executable, str, Limits]:
    """The network whose outputs are within the limit of the error, a remark, its layers' limits.

    On normal inputs the outputs are compared with those of schedules that err by a fiftieth of the
    limit, or as little as possible. Where they differ by more than the limit, the layers get half
    of it or less; after four such limits the exact schedules run. Quantised networks are not
    compared: a value between two numbers may go either way.

    Raises:
        UnsupportedError: a node cannot be run, or no schedule of a layer is within the limits.
    """
    most, layer = limits.error, limits.error
    if most is None or layer is None or graph.grids:
        return *load(limits), limits
    exact, inputs = _exact(graph, limits, cpu, threads), normal_inputs(graph)
    truth = _numbers(exact.run(inputs))
    problems = [p for p, _, _ in convolutions(graph) if isinstance(p, ConvProblem)]
    least = [0.0, *(_exact_error(p, most) for p in problems)]
    for _ in range(_ATTEMPTS):
        own = replace(limits, error=layer)
        network, remark = load(own)
        error = difference(truth, network.run(inputs))
        if error <= most:
            return network, remark, own
        layer = max(layer * min(0.5, _AIM * most / error), *least)
    own = replace(limits, error=_EXACT * most)
    return exact, remark, own


def _numbers(outputs: Mapping[str, Any]) -> dict[str, Array]:
    """The outputs that are floating-point numbers; others hang on comparisons of such."""
    return {x: y for x, y in outputs.items() if getattr(y, "dtype", None) and y.dtype.kind == "f"}


def _exact(graph: Graph, limits: Limits, cpu: Cpu, threads: int) -> Executable:
    """The network by schedules that err far less than the limit, if there are any."""

    def choose(p: Problem) -> Sequence[Choice]:
        if not isinstance(p, ConvProblem):
            return guessed_choices(cpu, threads, limits)(p)
        assert limits.error is not None
        least = _exact_error(p, limits.error)
        return guessed_choices(cpu, threads, replace(limits, error=least))(p)

    plan, made = make_plan(graph, choose, cpu, threads=threads, max_weights=limits.weights)
    return Executable.of(made, cpu, threads, plan)


def _exact_error(p: ConvProblem, most: float) -> float:
    """What a layer of float32 may err by; sums of products in order are always possible."""
    return max(_EXACT * most, 1.01 * summation_error(replace(p, types=""), None))

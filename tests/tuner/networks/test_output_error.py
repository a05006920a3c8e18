"""The limit of the error is that of the outputs, however the errors of layers add up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fastrun.graph.core.model import Graph
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.networks.load import load
from fastrun.tuner.networks.output_error import within_outputs
from fastrun.tuner.networks.outputs import difference, normal_inputs
from fastrun.tuner.records.record import NO_LIMITS, Limits
from tests.graph.test_networks_run import residual
from tests.support.graph_models import model, node, normal
from tests.support.quantised_graphs import quantised

CPU = Cpu.host()


def built(graph: Graph) -> Executable:
    plan, made = make_plan(graph, heuristic_choices(CPU), CPU)
    return Executable.of(made, CPU, 1, plan)


def erring(graph: Graph, error: Callable[[float], float], asked: list[float]) -> object:
    """Loads a network whose outputs err by a function of the layers' limit."""

    def of(limits: Limits) -> tuple[Executable, str]:
        assert limits.error is not None
        asked.append(limits.error)
        last = graph.producers[graph.outputs[0]].inputs[1]
        values = graph.constants[last] * np.float32(1 + error(limits.error))
        wrong = replace(graph, constants={**graph.constants, last: values})
        return built(wrong), "a remark"

    return of


@pytest.fixture(scope="module")
def chain() -> Graph:
    nodes = [node("Conv", "x w", "a"), node("Conv", "a v", "y")]
    weights = {"w": normal(8, 4, 3, 3), "v": normal(8, 8, 1, 1)}
    return optimise(load_network(model(nodes, weights, shape=(1, 4, 8, 8))))


@pytest.mark.parametrize(
    ("error", "limits"),
    [
        (lambda limit: 0.5 * limit, 1),  # residuals make errors smaller
        (lambda limit: 4 * limit, 2),  # they add up
        (lambda limit: limit if limit < 1e-4 else 0.01, 2),
        (lambda limit: 0.01, 4),  # whatever the layers do
    ],
)
def test_layers_get_a_lower_limit_where_errors_add_up(
    chain: Graph, error: Callable[[float], float], limits: int
) -> None:
    asked: list[float] = []
    load_within = erring(chain, error, asked)
    network, remark, own = within_outputs(chain, Limits(1e-3), CPU, 1, load_within)  # type: ignore[arg-type]
    inputs = normal_inputs(chain)
    assert difference(built(chain).run(inputs), network.run(inputs)) <= 1e-3
    assert asked == sorted(asked, reverse=True)
    assert (len(asked), asked[0]) == (limits, 1e-3)
    assert own.error == (asked[-1] if limits < 4 else 0.02 * 1e-3)
    assert remark == "a remark"


def test_without_a_limit_and_with_grids_nothing_is_compared(chain: Graph) -> None:
    network = built(chain)

    def same(limits: Limits) -> tuple[Executable, str]:
        return network, ""

    assert within_outputs(chain, NO_LIMITS, CPU, 1, same) == (network, "", NO_LIMITS)
    limits = Limits(1e-9)
    assert within_outputs(quantised(chain), limits, CPU, 1, same) == (network, "", limits)


def test_a_loaded_network_keeps_the_limit() -> None:
    exact = load(residual(), policy="heuristic", max_error=7e-7)
    inputs = normal_inputs(optimise(load_network(residual())))
    truth = exact.run(inputs)
    for limit in (1e-3, 2e-6):
        found = load(residual(), policy="heuristic", max_error=limit).run(inputs)
        assert difference(truth, found) <= limit

"""Changes of tensors and weights, behind which alone a network runs again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from fastrun.graph.core.model import Array, Graph
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.incremental import Incremental
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.native.team import Team
from tests.graph.test_networks_run import concatenations, residual
from tests.support.graph_models import model, node, normal
from tests.support.quantised_graphs import normal_inputs

CPU = Cpu.host()


def by_numpy() -> onnx.ModelProto:
    """A product whose first factor NumPy computes, between two convolutions."""
    nodes = [
        node("Conv", "x w", "a"),
        node("CumSum", "a axis", "b"),
        node("Mul", "a b", "c"),
        node("Conv", "c v", "y"),
    ]
    constants = {"w": normal(8, 4, 1, 1), "v": normal(4, 8, 3, 3), "axis": np.array(1)}
    return model(nodes, constants, shape=(1, 4, 8, 8))


def prepared(source: onnx.ModelProto) -> tuple[Graph, Incremental]:
    graph = optimise(load_network(source))
    plan, arrangement = make_plan(graph, heuristic_choices(CPU), CPU)
    return graph, Incremental(arrangement, CPU, plan)


def doubled(x: Array) -> Array:
    return 2 * x


@pytest.mark.parametrize("source", [residual, concatenations, by_numpy])
def test_outputs_after_a_change_do_not_depend_on_those_before(source: object) -> None:
    assert callable(source)
    graph, network = prepared(source())
    inputs = normal_inputs(graph)
    run = network.run(inputs)
    truth, names = run.outputs["y"], [*network.steps]
    assert np.allclose(truth, reference.run(graph, inputs)["y"], rtol=1e-3, atol=1e-4)
    np.random.default_rng(0).shuffle(names)
    assert len(names) > 3
    for name in names:
        found = run.after({name: doubled})["y"]
        assert np.array_equal(found, network.run(inputs).after({name: doubled})["y"])
        assert not np.allclose(found, truth, rtol=1e-3, atol=1e-4)
    assert np.array_equal(run.again(0)["y"], truth)


def test_a_changed_input_gives_what_a_run_of_it_gives() -> None:
    graph, network = prepared(residual())
    inputs = normal_inputs(graph)
    found = network.run(inputs).after({"x": doubled})["y"]
    assert np.array_equal(found, network.run({"x": 2 * inputs["x"]}).outputs["y"])


def test_weights_are_others_for_a_while_in_all_runs() -> None:
    graph, network = prepared(residual())
    runs = [network.run(normal_inputs(graph, seed)) for seed in (0, 1)]
    layer = graph.readers["w5"][0]
    weights = graph.constants["w5"][:, ::-1]
    other = replace(graph, constants={**graph.constants, "w5": weights})
    truth = reference.run(other, normal_inputs(graph, 1))["y"]
    with network.weighing(layer.output, weights, None):
        step = network.steps[layer.output]
        first, second = (run.again(step)["y"] for run in runs)
        assert np.allclose(second, truth, rtol=1e-3, atol=1e-4)
        assert not np.allclose(first, runs[0].outputs["y"], rtol=1e-3)
    for run in runs:
        assert np.array_equal(run.again(step)["y"], run.outputs["y"])


def test_only_what_follows_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, network = prepared(residual())
    calls, plain = [0], Team.run

    def counted(self: Team, *given: object, **named: object) -> float:
        calls[0] += 1
        return plain(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Team, "run", counted)
    run = network.run({"x": normal(2, 3, 33, 29)})
    steps = calls[0]
    for name, step in sorted(network.steps.items(), key=lambda place: -place[1]):
        calls[0] = 0
        run.after({name: doubled})
        assert calls[0] == steps - step

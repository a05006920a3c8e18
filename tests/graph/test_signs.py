"""Convolutions of signs by signs run with one bit, and nothing else does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.kernels.core.cpu import Cpu
from tests.support.execution import relative_error
from tests.support.graph_models import model, normal

CPU = Cpu.host()


def network(factor: float = 0.5, ones: float = 1.0, equal: bool = True) -> onnx.ModelProto:
    """Signs, padded with ones, are multiplied by signs times a magnitude for each filter."""
    draw = np.random.default_rng(5)
    weights = np.sign(draw.standard_normal((24, 40, 3, 3))).astype(np.float32)
    weights *= draw.uniform(0.01, 0.1, (24, 1, 1, 1)).astype(np.float32)
    if not equal:
        weights[3, 7] *= 2
    nodes = [
        helper.make_node("Sign", ["x"], ["s"]),
        helper.make_node("Add", ["s", "half"], ["h"]),
        helper.make_node("Sign", ["h"], ["b"]),
        helper.make_node("Pad", ["b", "pads", "one"], ["p"]),
        helper.make_node("Conv", ["p", "w", "bias"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    constants = {
        "half": np.float32(factor),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "one": np.float32(ones),
        "w": weights,
        "bias": normal(24),
    }
    return model(nodes, constants, shape=(1, 40, 9, 8))


@pytest.mark.parametrize(
    ("changes", "counted"),
    [({}, True), ({"factor": 0.0}, False), ({"ones": 0.0}, False), ({"equal": False}, False)],
)
def test_signs_are_counted(changes: dict[str, float], counted: bool) -> None:
    graph = optimise(load_network(network(**changes)))  # type: ignore[arg-type]
    plan, arrangement = make_plan(graph, heuristic_choices(CPU), CPU)
    algorithms = {step.algorithm.partition("(")[0] for step in arrangement.steps}
    assert ("binary" in algorithms) == counted
    x = normal(1, 40, 9, 8)
    x[:, ::4] = 0
    found = Executable.of(arrangement, CPU, 2, plan).run({"x": x})["y"]
    assert relative_error(found, reference.run(graph, {"x": x})["y"]) < 5e-6


def test_the_function_is_written_as_onnx() -> None:
    graph = optimise(load_network(network()))
    x = {"x": normal(1, 40, 9, 8)}
    again = optimise(load_network(export_onnx(graph)))
    assert "binary" in str(make_plan(again, heuristic_choices(CPU), CPU)[0].forms)
    truth = reference.run(graph, x)["y"]
    assert relative_error(reference.run(again, x)["y"], truth) < 1e-6

"""Steps compared with float64: which one is named, and what it is charged with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastrun.graph.core.model import Graph
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.main import main
from fastrun.tuner.networks.check import check_steps, first_beyond
from fastrun.tuner.networks.outputs import normal_inputs
from tests.support.commands import fresh_cache
from tests.support.graph_models import model, node, normal
from tests.support.quantised_models import layer


def three_layers(factor: float = 1.0) -> onnx.ModelProto:
    """Three convolutions, a concatenation and a pool; `factor` is on the second's weights."""
    nodes = [
        node("Conv", "x a", "first", pads=[1] * 4),
        node("Relu", "first", "r"),
        node("Conv", "r b", "second", pads=[1] * 4),
        node("Concat", "r second", "both", axis=1),
        node("MaxPool", "both", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p c", "y"),
    ]
    weights = {
        "a": normal(16, 4, 3, 3),
        "b": np.float32(factor) * normal(16, 16, 3, 3),
        "c": normal(8, 32, 1, 1),
    }
    return model(nodes, weights)


def network(graph: Graph, threads: int = 1) -> Executable:
    cpu = Cpu.host()
    plan, arrangement = make_plan(graph, heuristic_choices(cpu), cpu, threads=threads)
    return Executable.of(arrangement, cpu, threads, plan)


def test_single_numbers_are_compared_like_others() -> None:
    """Scales that are computed have no axes, and are off by their rounding."""
    nodes = [
        node("ReduceMax", "x", "largest", keepdims=0),
        node("Div", "largest levels", "scale"),
        node("Div", "x scale", "y"),
    ]
    graph = optimise(load_network(model(nodes, {"levels": np.array(255, np.float32)})))
    checked, _ = check_steps(graph, network(graph), normal_inputs(graph))
    assert {"scale"} <= {one.output for one in checked}
    assert first_beyond(checked, 1e-6) is None


@pytest.mark.parametrize("threads", [1, 2])
def test_right_steps_are_near_float64(threads: int) -> None:
    graph = optimise(load_network(three_layers()))
    running, inputs = network(graph, threads), normal_inputs(graph)
    checked, found = check_steps(graph, running, inputs)
    assert {"second", "y"} <= {one.output for one in checked}
    assert all(one.own <= one.total + 1e-6 < 1e-4 for one in checked)
    assert first_beyond(checked, 1e-4) is None
    np.testing.assert_array_equal(found["y"], running.run(inputs)["y"])


def test_the_wrong_step_is_named_and_its_readers_are_not() -> None:
    graph = optimise(load_network(three_layers()))
    wrong = network(optimise(load_network(three_layers(factor=1.25))))
    checked, _ = check_steps(graph, wrong, normal_inputs(graph))
    first = first_beyond(checked, 1e-3)
    assert first is not None
    assert first.output == "second"
    assert first.own == pytest.approx(0.25, rel=1e-3)
    last = checked[-1]
    assert last.output == "y"
    assert last.own < 1e-4 < 1e-2 < last.total


def test_bytes_are_compared_as_the_numbers_they_stand_for() -> None:
    graph = optimise(load_network(layer()))
    checked, _ = check_steps(graph, network(graph), normal_inputs(graph))
    assert checked
    assert all(one.own < 0.02 for one in checked)


def test_what_is_rounded_behind_a_step_is_compared_rounded() -> None:
    """Softmax has no kernel of bytes; most of its values lie near half a step."""
    steps = {"xs": np.float32(0.02), "ys": np.float32(1 / 255), "z": np.uint8(0)}
    nodes = [
        node("QuantizeLinear", "x xs z", "q"),
        node("DequantizeLinear", "q xs z", "n"),
        node("Softmax", "n", "probabilities"),
        node("QuantizeLinear", "probabilities ys z", "p"),
        node("DequantizeLinear", "p ys z", "y"),
        node("MaxPool", "y", "most", kernel_shape=[2, 2]),
    ]
    graph = optimise(load_network(model(nodes, steps, shape=(1, 4, 8, 512), output="most")))
    checked, _ = check_steps(graph, network(graph), normal_inputs(graph))
    assert "Softmax" in {one.work for one in checked}
    assert all(one.own < 1e-3 for one in checked)


def test_the_command_compares_with_another_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_cache(tmp_path / "cache", monkeypatch)
    file = tmp_path / "net.onnx"
    onnx.save(three_layers(), file)
    assert main(["check", str(file), "--against", "onnxruntime"]) == 0
    assert "agree with onnxruntime's" in capsys.readouterr().out
    assert main(["check", str(file), "--limit", "1e-12", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["first"]["wrong"] == document["steps"][0]["output"]

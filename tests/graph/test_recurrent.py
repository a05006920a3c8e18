"""LSTM, GRU and RNN: a kernel for all steps where there is one, against NumPy's layers."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import fastrun
from fastrun.graph.core.model import Array
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.corrected import CORRECTED
from fastrun.graph.reference.interpreter import run
from fastrun.graph.to_onnx.model import export_onnx
from tests.support.graph_models import normal
from tests.support.peer import assert_same, by_onnxruntime

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, WIDTH, HIDDEN = 6, 3, 10, 9


def layer(
    kind: str, ways: int = 1, states: str = "", batch_first: bool = False, **given: Any
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one layer; `states` are inputs: hidden, then cell."""
    gates = GATES[kind]
    weights = {
        "w": normal(ways, gates * HIDDEN, WIDTH), "r": 0.4 * normal(ways, gates * HIDDEN, HIDDEN),
        "b": normal(ways, 2 * gates * HIDDEN),
    }  # fmt: skip
    if ways == 2:
        given["direction"] = "bidirectional"
    names = ["x", "w", "r", "b", "", *states.split()]
    outputs = ["y", "h", "c"][: 3 if kind == "LSTM" else 2]
    if batch_first:
        given["layout"] = 1
    node = helper.make_node(kind, names, outputs, hidden_size=HIDDEN, **given)
    first, state = (STEPS, BATCH), (ways, BATCH)
    if batch_first:
        first, state = first[::-1], state[::-1]
    shapes = {"x": (*first, WIDTH)} | dict.fromkeys(states.split(), (*state, HIDDEN))
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, s) for x, s in shapes.items()],
        [helper.make_empty_tensor_value_info(y) for y in outputs],
        [onnx.numpy_helper.from_array(v, x) for x, v in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made), {x: normal(*s) for x, s in shapes.items()}


def truth(m: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    names = [v.name for v in m.graph.output]
    found = ReferenceEvaluator(m, new_ops=[*CORRECTED]).run(None, inputs)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize(
    "given",
    [
        ("LSTM", 2, "h0 c0", False, {}),
        ("LSTM", 1, "", True, {"direction": "reverse"}),
        ("GRU", 2, "h0", True, {"linear_before_reset": 1}),
        ("GRU", 1, "", False, {}),
        ("RNN", 2, "h0", False, {"activations": ["Relu", "Relu"]}),
    ],
    ids=str,
)
def test_a_kernel_does_all_steps(given: tuple[Any, ...]) -> None:
    *what, attributes = given
    m, inputs = layer(*what, **attributes)
    expected = truth(m, inputs)
    network = fastrun.load(m, policy="heuristic", threads=2)
    assert all(step.algorithm != "numpy" for step in network.steps)
    assert_same(network.run(inputs), expected, str(given))
    graph = optimise(import_onnx(m))
    for g in (import_onnx(m), graph):
        assert_same(run(g, inputs), expected, str(given))
    written = export_onnx(graph)
    onnx.checker.check_model(written)
    assert_same(by_onnxruntime(written, inputs) or {}, expected, "written")


@pytest.mark.parametrize(
    "given",
    [
        ("LSTM", {"clip": 0.5}),
        ("LSTM", {"input_forget": 1}),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}),
    ],
    ids=str,
)
def test_numpy_does_what_has_no_kernel(given: tuple[str, dict[str, Any]]) -> None:
    kind, attributes = given
    m, inputs = layer(kind, **attributes)
    network = fastrun.load(m, policy="heuristic")
    assert [step.algorithm for step in network.steps] == ["numpy"]
    assert_same(network.run(inputs), truth(m, inputs), str(given))

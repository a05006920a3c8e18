"""Operators that ONNX's reference implementation lacks or has wrong agree with onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from fastrun.graph.core.model import Array
from fastrun.graph.onnx_backend import Backend
from tests.support.agreement import assert_close
from tests.support.graph_models import normal

onnxruntime = pytest.importorskip("onnxruntime")


def compared(
    operator: str, inputs: dict[str, Array], outputs: list[str], opset: int, **attributes: Any
) -> None:
    """Run one node of these inputs, "" in front of a name for an absent one, in both."""
    given = {name: x for name, x in inputs.items() if x is not None}
    names = [name if name in given else "" for name in inputs]
    described = [
        helper.make_tensor_value_info(x, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for x, a in given.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(operator, names, outputs, **attributes)], operator, described,
        [helper.make_empty_tensor_value_info(y) for y in outputs],
    )  # fmt: skip
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = onnxruntime.InferenceSession(
        source.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, given)
    found = Backend.prepare(source).run([*given.values()])
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("case", ["plain", "lengths", "activations"])
def test_recurrent_layers(operator: str, direction: str, case: str) -> None:
    gates, both = GATES[operator], 2 if direction == "bidirectional" else 1
    inputs: dict[str, Any] = {
        "x": normal(5, 3, 4),
        "w": normal(both, gates * 6, 4),
        "r": normal(both, gates * 6, 6, seed=1),
        "b": normal(both, 2 * gates * 6),
        "lengths": None,
        "h": normal(both, 3, 6),
    }
    attributes: dict[str, Any] = {"hidden_size": 6, "direction": direction}
    if operator == "LSTM":
        inputs |= {"c": normal(both, 3, 6, seed=2), "p": normal(both, 18)}
    if case == "lengths":
        inputs["lengths"] = np.int32([5, 2, 3])
    if case == "activations":
        attributes |= {"clip": 0.7}
        names = {"RNN": ["Softsign"], "GRU": ["HardSigmoid", "LeakyRelu"],
                 "LSTM": ["HardSigmoid", "Tanh", "ScaledTanh"]}[operator]  # fmt: skip
        alphas = {"RNN": [], "GRU": [0.3, 0.1], "LSTM": [0.25, 1.5]}[operator]
        betas = {"RNN": [], "GRU": [0.4], "LSTM": [0.45, 0.5]}[operator]
        attributes["activations"] = names * both
        if alphas:
            attributes |= {"activation_alpha": alphas * both, "activation_beta": betas * both}
        if operator == "GRU":
            attributes["linear_before_reset"] = 1
    outputs = ["y", "yh"] + ["yc"] * (operator == "LSTM")
    compared(operator, inputs, outputs, 14, **attributes)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    grid = 1.3 * np.tanh(normal(2, 6, 5, 2))
    if mode == "cubic" and padding != "zeros":
        grid = 0.5 * grid  # outside, PyTorch and onnxruntime differ
    inputs = {"x": normal(2, 3, 5, 7), "grid": grid.astype(np.float32)}
    compared(
        "GridSample", inputs, ["y"], 20, mode=mode, padding_mode=padding, align_corners=corners
    )


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("most", [3, 100])
def test_non_max_suppression(centred: int, most: int) -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 4, (2, 60, 4)).astype(np.float32)
    boxes[0, 5] = boxes[0, 6]
    inputs = {
        "boxes": boxes,
        "scores": rng.uniform(0, 1, (2, 3, 60)).astype(np.float32),
        "most": np.int64([most]),
        "overlap": np.float32([0.3]),
        "least": np.float32([0.2]),
    }
    compared("NonMaxSuppression", inputs, ["y"], 11, center_point_box=centred)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_first_values(axis: int, largest: int) -> None:
    ties = np.round(normal(9, 9) * 2)  # of equal values the first ones come first
    inputs = {"x": ties, "k": np.int64([4])}
    compared("TopK", inputs, ["values", "indices"], 20, axis=axis, largest=largest)
    whole = {"x": ties.astype(np.int64), "k": np.int64([9])}
    compared("TopK", whole, ["values", "indices"], 20, axis=axis, largest=largest)


def test_slices_at_places_of_each_image() -> None:
    inputs = {"x": normal(2, 3, 5, 4), "places": np.int64([[[0, -1]], [[2, 3]]])}
    compared("GatherND", inputs, ["y"], 20, batch_dims=1)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_values_put_at_places(reduction: str) -> None:
    places = np.int64([[1, -1, 3], [0, 2, 1]])
    if reduction != "none":
        places[:, 2] = places[:, 0]  # twice at one place
    inputs = {"x": normal(2, 4), "places": places, "values": normal(2, 3, seed=1)}
    compared("ScatterElements", inputs, ["y"], 20, axis=1, reduction=reduction)


@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 1], "pads": [1, 0, 0, 2]}])
def test_windows_added_up(attributes: dict[str, Any]) -> None:
    attributes = {**attributes, "dilations": [1, 2]}
    columns = 4 * 4 if len(attributes) == 1 else 3 * 6
    inputs = {"x": normal(2, 3 * 6, columns), "image": np.int64([5, 8]), "block": np.int64([2, 3])}
    compared("Col2Im", inputs, ["y"], 20, **attributes)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_of_moved_taps(groups: int) -> None:
    inputs = {
        "x": normal(2, 4, 7, 6),
        "w": normal(6, 4 // groups, 3, 2),
        "offset": 2 * normal(2, 2 * 3 * 2 * 2, 4, 6),
        "b": normal(6),
        "mask": normal(2, 2 * 3 * 2, 4, 6, seed=1),
    }
    compared(
        "DeformConv", inputs, ["y"], 19,
        group=groups, offset_group=2, strides=[2, 1], pads=[1, 0, 1, 1], kernel_shape=[3, 2],
    )  # fmt: skip

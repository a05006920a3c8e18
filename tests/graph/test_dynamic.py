"""Dynamic quantisation: scales of each run, and products of integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import fastrun
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.ops import Numpy
from fastrun.graph.core.precision import float_reason
from fastrun.graph.core.problems import conv_problems
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.passes.products import convolve_dense
from tests.support.agreement import assert_close
from tests.support.graph_models import node, normal

RNG = np.random.default_rng(3)


def model(
    nodes: list[onnx.NodeProto],
    shape: tuple[int, ...],
    constants: dict[str, Array],
    output: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of x to y, with operators of onnxruntime's own domain."""
    graph = helper.make_graph(
        nodes,
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=ids, ir_version=8)


def scaled(operator: str, before: str = "", **attributes: Any) -> list[onnx.NodeProto]:
    """What `quantize_dynamic` writes for a layer: quantise, sum, scale, add the bias."""
    first = [node(before, "x", "a")] if before else []
    return [
        *first,
        node("DynamicQuantizeLinear", "a" if before else "x", "q s z"),
        node(operator, "q w z wz", "i", **attributes),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Mul", "s ws", "factor"),
        node("Mul", "f factor", "p"),
        node("Add", "p b", "y"),
    ]


def weights(*shape: int, kind: Any = np.int8, zero: int = 0) -> dict[str, Array]:
    low, high = (-127, 128) if kind is np.int8 else (0, 256)
    stored = RNG.integers(low, high, shape).astype(kind)
    return {"w": stored, "wz": np.array(zero, kind), "ws": np.float32(0.01)}


def computed(m: onnx.ModelProto, x: Array) -> tuple[Array, Graph]:
    network = fastrun.load(m)
    return network.run(x)["y"], optimise(import_onnx(m))


def assert_same(m: onnx.ModelProto, x: Array) -> Graph:
    """The network computes what the file means: values of ties may differ by one step."""
    truth = ReferenceEvaluator(m).run(None, {"x": x})[0]
    found, graph = computed(m, x)
    step = np.ptp(np.append(x, 0)) / 255 * 0.01 * 127
    different = np.abs(found - truth) > 1e-5 * np.abs(truth).max()
    assert different.mean() < 0.02
    np.testing.assert_allclose(found, truth, atol=2.1 * step)
    assert not [n.label for n in graph.nodes if isinstance(n.op, Numpy)]
    return graph


def in_integers(graph: Graph) -> bool:
    graph = convolve_dense(graph)
    layers = [n for n in graph.nodes if n.work.startswith(("Conv", "Gemm", "MatMul"))]
    assert layers
    return not any(float_reason(graph, n) for n in layers)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_product(per_channel: bool) -> None:
    constants = {**weights(24, 20), "b": normal(20)}
    if per_channel:
        constants |= {"wz": np.zeros(20, np.int8), "ws": np.linspace(1e-3, 1e-2, 20, dtype="f4")}
    m = model(scaled("MatMulInteger"), (1, 7, 24), constants)
    assert in_integers(assert_same(m, normal(1, 7, 24) + np.float32(0.3)))


@pytest.mark.parametrize(("rows", "image"), [(5, (5, 24, 1, 1)), (40, (1, 24, 1, 40))])
def test_many_rows_are_pixels_of_one_image(rows: int, image: tuple[int, ...]) -> None:
    m = model(scaled("MatMulInteger"), (rows, 24), {**weights(24, 20), "b": normal(20)})
    graph = convolve_dense(assert_same(m, normal(rows, 24)))
    assert [graph.shape(n.inputs[0]) for n in graph.nodes if n.work.startswith("Conv")] == [image]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("before", ["", "Relu"])
def test_a_convolution_with_values_of_both_signs_and_of_one(before: str, padding: int) -> None:
    constants = {**weights(6, 5, 3, 3), "b": normal(6, 1, 1)}
    nodes = scaled("ConvInteger", before, pads=[padding] * 4)
    graph = assert_same(model(nodes, (1, 5, 9, 8), constants), normal(1, 5, 9, 8))
    # The zero point outside of the picture is no number that a plan could know.
    assert in_integers(graph) == bool(before or not padding)
    lowest = any("min" in n.work for n in graph.nodes)
    assert lowest == (not before)


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("before", ["", "Relu"])
def test_weights_with_zero_points_of_their_own(before: str, kind: Any) -> None:
    """Also where integers less the middle of their type are -128."""
    constants = {**weights(24, 20, kind=kind), "b": normal(20)}
    constants["w"][3, :2] = np.iinfo(kind).min, np.iinfo(kind).max
    for zero in (np.array(101, kind), np.linspace(90, 127, 20).astype(kind)):
        m = model(scaled("MatMulInteger", before), (5, 24), {**constants, "wz": zero})
        assert in_integers(assert_same(m, normal(5, 24)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("padding", [0, 1])
def test_filters_with_zero_points_of_their_own(padding: int, groups: int) -> None:
    constants = {**weights(6, 4 // groups, 3, 3, kind=np.uint8), "b": normal(6, 1, 1)}
    constants["wz"] = np.array([90, 140, 128, 101, 154, 0], np.uint8)
    nodes = scaled("ConvInteger", "Relu", pads=[padding] * 4, group=groups)
    graph = assert_same(model(nodes, (1, 4, 9, 8), constants), normal(1, 4, 9, 8))
    [conv] = [n for n in graph.nodes if n.work.startswith("Conv")]
    assert {p.types for p in conv_problems(graph, conv)} == {"", "u8s9>f32"}


def test_zeros_are_quantised_to_zeros() -> None:
    constants = {**weights(24, 20), "b": normal(20)}
    m = model(scaled("MatMulInteger"), (5, 24), constants)
    found, _ = computed(m, np.zeros((5, 24), np.float32))
    np.testing.assert_allclose(found, np.broadcast_to(constants["b"], (5, 20)))


def test_sums_that_are_returned_are_exact() -> None:
    constants = {"w": np.full((300, 4), 127, np.int8)}
    nodes = [node("DynamicQuantizeLinear", "x", "q s z"), node("MatMulInteger", "q w", "y")]
    x = normal(2, 300) + np.float32(2)
    m = model(nodes, (2, 300), constants, TensorProto.INT32)
    truth = ReferenceEvaluator(m).run(None, {"x": x})[0]
    found, _ = computed(m, x)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, truth)


def own(op: str, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, ["y"], "own", domain="com.microsoft", **attributes)


@pytest.mark.parametrize("operator", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_the_operators_that_onnxruntime_joins(operator: str) -> None:
    constants = {**weights(24, 20), "b": normal(20)}
    first: list[onnx.NodeProto] = []
    if operator == "DynamicQuantizeMatMul":
        joined = own(operator, ["x", "w", "ws", "wz", "b"])
    else:
        first = [node("DynamicQuantizeLinear", "x", "q s z")]
        joined = own(operator, ["q", "w", "s", "ws", "z", "wz", "b"])
    x = normal(5, 24)
    parts = model(scaled("MatMulInteger"), (5, 24), constants)
    found, graph = computed(model([*first, joined], (5, 24), constants), x)
    assert_close(found, computed(parts, x)[0])
    assert in_integers(graph)


def test_an_lstm_of_rounded_weights() -> None:
    hidden, size, directions = 4, 6, 2
    w, r = (RNG.integers(-127, 128, (2, n, 4 * hidden)).astype(np.int8) for n in (size, hidden))
    constants = {"w": w, "r": r, "b": normal(2, 8 * hidden), "one": np.float32([0.01, 0.02])}
    constants |= {"none": np.zeros(2, np.int8)}
    inputs = ["x", "w", "r", "b", "", "", "", "", "one", "none", "one", "none"]
    given = {"hidden_size": hidden, "direction": "bidirectional"}
    m = model([own("DynamicQuantizeLSTM", inputs, **given)], (5, 1, size), constants)
    scale = constants["one"].reshape(directions, 1, 1)
    plain = {"w": (w * scale).transpose(0, 2, 1), "r": (r * scale).transpose(0, 2, 1)}
    plain = {**constants, **{x: a.astype(np.float32) for x, a in plain.items()}}
    truth = model([node("LSTM", "x w r b", "y", **given)], (5, 1, size), plain)
    x = normal(5, 1, size)
    step = np.ptp(np.append(x, 0)) / 255
    found, _ = computed(m, x)
    np.testing.assert_allclose(found, fastrun.load(truth).run(x)["y"], atol=2 * step)

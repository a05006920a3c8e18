"""Products as convolutions and dense layers, and transposes that move nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fastrun.graph.core.ops import Conv, Gemm, MatMul, Transpose
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.passes.products import convolve_products, densify, sink_transposes
from fastrun.graph.reference import interpreter as reference
from fastrun.tuner.networks.load import load
from tests.support.execution import relative_error
from tests.support.graph_models import Weights, model, node, normal

# What follows a depthwise convolution in ConvNeXt, but for the normalisation.
BLOCK = [
    node("Conv", "x depthwise", "d", group=6, pads=[1, 1, 1, 1]),
    node("Transpose", "d", "t", perm=[0, 2, 3, 1]),
    node("MatMul", "t wide", "a"),
    node("Add", "a bias", "b"),
    node("Relu", "b", "c"),
    node("MatMul", "c narrow", "e"),
    node("Mul", "gamma e", "f"),
    node("Transpose", "f", "g", perm=[0, 3, 1, 2]),
    node("Add", "x g", "y"),
]
WEIGHTS: Weights = {
    "depthwise": normal(6, 1, 3, 3),
    "wide": normal(6, 24),
    "bias": normal(24),
    "narrow": normal(24, 6),
    "gamma": normal(6),
}


def ran(source: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """The network gives the results of the graph, on several threads."""
    graph, x = import_onnx(source), normal(*shape)
    network = load(source, threads=2, policy="heuristic")
    expected = reference.run(graph, {"x": x})["y"]
    assert relative_error(network.run({"x": x})["y"], expected) < 1e-4


def test_a_block_with_channels_last_is_three_convolutions() -> None:
    source = model(BLOCK, WEIGHTS, shape=(2, 6, 9, 11))
    graph = optimise(import_onnx(source))
    assert [n.work for n in graph.nodes] == ["Conv", "Conv + relu", "Conv + add"]
    ran(source, (2, 6, 9, 11))


@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 3, 4, 5)])
def test_products_of_tensors_are_convolutions(shape: tuple[int, ...]) -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("Add", "a b", "c"),
        node("Softmax", "c", "s", axis=-1),
        node("MatMul", "s v", "y"),
    ]
    source = model(nodes, {"w": normal(5, 8), "b": normal(8), "v": normal(8, 3)}, shape=shape)
    graph = optimise(import_onnx(source))
    assert not [n for n in graph.nodes if isinstance(n.op, MatMul)]
    assert len([n for n in graph.nodes if isinstance(n.op, Conv)]) == 2
    ran(source, shape)


def test_transposes_between_layouts_are_no_work() -> None:
    nodes = [node("MatMul", "x w", "a"), node("Softmax", "a", "y", axis=-1)]
    source = model(nodes, {"w": normal(64, 48)}, shape=(1, 20, 20, 64))
    network = load(source, policy="heuristic")
    works = [step["work"] for step in network.profile()]
    assert "Transpose" not in works
    assert any("Softmax" in work for work in works)


@pytest.mark.parametrize(
    ("nodes", "weights", "shape"),
    [
        # The matrix is computed, or comes first, or there is one for each image.
        ([node("MatMul", "x x", "y")], {}, (2, 4, 4)),
        ([node("MatMul", "w x", "y")], {"w": normal(4, 4)}, (2, 4, 4)),
        ([node("MatMul", "x w", "y")], {"w": normal(2, 4, 3)}, (2, 4, 4)),
        ([node("MatMul", "x w", "y")], {"w": normal(4)}, (2, 4, 4)),
        ([node("MatMul", "x w", "y")], {"w": normal(4, 3)}, (2, 2, 2, 4, 4)),
    ],
)
def test_other_products_stay(
    nodes: list[onnx.NodeProto], weights: Weights, shape: tuple[int, ...]
) -> None:
    graph = import_onnx(model(nodes, weights, shape=shape))
    assert convolve_products(graph).nodes == graph.nodes


@pytest.mark.parametrize("function", ["Relu", "Exp", "Clip", "Mul", "Sub", "PRelu"])
def test_arithmetic_comes_before_what_brings_channels_last(function: str) -> None:
    inputs = {"Clip": "t low high", "Mul": "c t", "Sub": "c t", "PRelu": "t c"}.get(function, "t")
    nodes = [node("Transpose", "x", "t", perm=[0, 2, 3, 1]), node(function, inputs, "y")]
    weights = {"c": normal(5, 4), "low": np.float32(-1), "high": np.float32(1)}
    graph = import_onnx(model(nodes, weights, shape=(2, 4, 3, 5)))
    sunk = sink_transposes(graph)
    assert isinstance(sunk.nodes[-1].op, Transpose)
    x = normal(2, 4, 3, 5)
    results = (reference.run(g, {"x": x})["y"] for g in (graph, sunk))
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize(
    "nodes",
    [
        # Two that read it, and a tensor that widens.
        [node("Relu", "t", "a"), node("Add", "a t", "y")],
        [node("Add", "t wide", "y")],
    ],
)
def test_where_a_transpose_has_to_stay(nodes: list[onnx.NodeProto]) -> None:
    turn = node("Transpose", "x", "t", perm=[0, 2, 3, 1])
    graph = import_onnx(model([turn, *nodes], {"wide": normal(3, 2, 3, 5, 4)}, shape=(2, 4, 3, 5)))
    sunk = sink_transposes(graph)
    x = normal(2, 4, 3, 5)
    results = (reference.run(g, {"x": x})["y"] for g in (graph, sunk))
    np.testing.assert_array_equal(*results)
    assert not isinstance(sunk.nodes[-1].op, Transpose)


def test_a_residual_in_another_order_is_added_by_the_convolution() -> None:
    """As in a transformer: the stream is (n, tokens, c), and several nodes read it."""
    nodes = [
        node("Relu", "x", "s"), node("MatMul", "s v", "p"), node("Add", "p s", "r"),
        node("MatMul", "r w", "q"), node("Add", "r q", "y"),
    ]  # fmt: skip
    weights = {"v": normal(6, 6), "w": normal(6, 6)}
    graph = import_onnx(model(nodes, weights, shape=(2, 5, 6)))
    done, x = optimise(graph), normal(2, 5, 6)
    np.testing.assert_allclose(*(reference.run(g, {"x": x})["y"] for g in (graph, done)))
    assert [n.work for n in done.nodes if n.work != "Transpose"] == ["relu", *["Conv + add"] * 2]


@pytest.mark.parametrize("kernel", [(1, 1), (3, 5)])
def test_a_convolution_of_the_whole_image_is_a_dense_layer(kernel: tuple[int, int]) -> None:
    nodes = [node("Conv", "x w b", "c"), node("Sigmoid", "c", "y")]
    source = model(nodes, {"w": normal(9, 6, *kernel), "b": normal(9)}, shape=(2, 6, *kernel))
    graph = optimise(import_onnx(source))
    assert [n.op for n in graph.nodes if isinstance(n.op, Conv | Gemm)] == [
        Gemm(transpose_b=True, activation="sigmoid")
    ]
    ran(source, (2, 6, *kernel))


@pytest.mark.parametrize("attributes", [{"group": 2}, {"pads": [1, 1, 1, 1]}])
def test_other_convolutions_stay(attributes: dict[str, object]) -> None:
    channels = 6 // int(attributes.get("group", 1))  # type: ignore[call-overload]
    nodes = [node("Conv", "x w", "y", **attributes)]
    graph = import_onnx(model(nodes, {"w": normal(4, channels, 3, 3)}, shape=(1, 6, 3, 3)))
    assert densify(graph).nodes == graph.nodes


def test_many_rows_of_a_dense_layer_are_pixels() -> None:
    """`nn.MultiheadAttention` flattens tokens; its products are tuned as convolutions."""
    nodes = [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "r"), node("Gemm", "r v", "y")]
    weights = {"w": normal(7, 6), "b": normal(7), "v": normal(7, 5)}
    source = model(nodes, weights, shape=(40, 6))
    done = optimise(import_onnx(source))
    works = [n.work for n in done.nodes if n.work not in ("Transpose", "Reshape")]
    assert works == ["Conv + relu", "Conv"]
    ran(source, (40, 6))


def test_layer_norm_between_products_moves_nothing() -> None:
    nodes = [
        node("MatMul", "x v", "p"), node("LayerNormalization", "p g b", "n", axis=-1),
        node("MatMul", "n w", "q"), node("Add", "q p", "y"),
    ]  # fmt: skip
    weights = {"v": normal(6, 20), "g": normal(20), "b": normal(20), "w": normal(20, 20)}
    source = model(nodes, weights, opset=17, shape=(2, 5, 6))
    ran(source, (2, 5, 6))
    network = load(source, policy="heuristic")
    assert [s.work for s in network.steps if s.computes] == ["Conv", "LayerNorm", "Conv + add"]

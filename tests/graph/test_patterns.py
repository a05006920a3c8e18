"""Operations that exporters write as several nodes are recognised, and nothing else is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import ChannelShuffle, Gemm, Transpose, Unary
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.fuse import fuse_bias
from fastrun.graph.passes.patterns import merge_moves, recognise_channel_shuffle, recognise_gates
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from tests.support.graph_models import Weights, model, node, normal

NUMBERS = {
    "three": np.float32(3),
    "six": np.array([6], np.float32),
    "sixth": np.float32(1 / 6),
    "zero": np.float32(0),
    "four": np.float32(4),
    "half": np.float32(0.5),
    "one": np.float32(1),
    "root": np.float32(2**0.5),
    "inverse": np.float32(0.5**0.5),
}
PLUS = node("Add", "c three", "p")
ERF = [node("Div", "x root", "r"), node("Erf", "r", "e"), node("Add", "one e", "g")]
SCALED = node("Mul", "inverse x", "r")
GATE = node("Clip", "p zero six_", "g")


def imported(
    nodes: list[onnx.NodeProto], weights: Weights, shape: tuple[int, ...] = (1, 4, 8, 8)
) -> Graph:
    return import_onnx(model(nodes, weights, shape=shape))


def assert_equal_results(a: Graph, b: Graph) -> None:
    x = 5 * normal(*a.shape("x"))
    with np.errstate(divide="ignore"):
        expected, result = (run(graph, {"x": x})["y"] for graph in (a, b))
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "tail",
    [
        [node("HardSigmoid", "c", "h", alpha=1 / 6), node("Mul", "c h", "y")],
        [node("HardSigmoid", "c", "h", alpha=1 / 6), node("Mul", "h c", "y")],
        [PLUS, GATE, node("Div", "g six", "h"), node("Mul", "c h", "y")],
        [PLUS, GATE, node("Mul", "g sixth", "h"), node("Mul", "h c", "y")],
        [PLUS, GATE, node("Mul", "c g", "m"), node("Div", "m six", "y")],
        [node("Add", "three c", "p"), GATE, node("Mul", "g c", "m"), node("Mul", "sixth m", "y")],
    ],
)
def test_every_way_to_write_hardswish(tail: list[onnx.NodeProto]) -> None:
    weights = NUMBERS | {"w": normal(4, 4, 3, 3), "six_": np.float32(6)}
    graph = imported([node("Conv", "x w", "c"), *tail], weights)
    recognised = recognise_gates(graph)
    assert [n.work for n in recognised.nodes] == ["Conv", "hardswish"]
    assert [n.work for n in optimise(graph).nodes] == ["Conv + hardswish"]
    assert_equal_results(graph, recognised)


@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("silu", [node("Sigmoid", "x", "s"), node("Mul", "s x", "y")]),
        ("mish", [node("Softplus", "x", "s"), node("Tanh", "s", "t"), node("Mul", "x t", "y")]),
        ("gelu", [ERF[0], *ERF[1:3], node("Mul", "x g", "m"), node("Mul", "m half", "y")]),
        ("gelu", [ERF[0], *ERF[1:3], node("Mul", "half x", "m"), node("Mul", "g m", "y")]),
        ("gelu", [SCALED, *ERF[1:3], node("Mul", "half g", "m"), node("Mul", "m x", "y")]),
    ],
)
def test_functions_that_gate_their_argument(name: str, tail: list[onnx.NodeProto]) -> None:
    graph = imported(tail, NUMBERS)
    recognised = recognise_gates(graph)
    assert [n.work for n in recognised.nodes] == [name]
    assert_equal_results(graph, recognised)


@pytest.mark.parametrize(
    "tail",
    [
        [node("Sigmoid", "x", "s"), node("Tanh", "x", "t"), node("Mul", "s t", "y")],
        [node("Sigmoid", "x", "s"), node("Mul", "s s", "y")],
        [node("Sigmoid", "x", "s"), node("Mul", "s x", "m"), node("Add", "m s", "y")],
        [ERF[0], *ERF[1:3], node("Mul", "x g", "y")],
        [node("Erf", "x", "e"), ERF[2], node("Mul", "x g", "m"), node("Mul", "m half", "y")],
    ],
)
def test_what_resembles_them(tail: list[onnx.NodeProto]) -> None:
    graph = imported(tail, NUMBERS)
    recognised = recognise_gates(graph)
    assert not {"silu", "gelu"} & {n.work for n in recognised.nodes}
    assert_equal_results(graph, recognised)


@pytest.mark.parametrize(
    "tail",
    [
        [node("HardSigmoid", "x", "h"), node("Mul", "x h", "y")],
        [node("HardSigmoid", "x", "h", alpha=1 / 6), node("Mul", "r h", "y")],
        [node("Add", "x four", "p"), GATE, node("Div", "g six", "h"), node("Mul", "x h", "y")],
        [node("Add", "x three", "p"), GATE, node("Div", "g four", "h"), node("Mul", "x h", "y")],
        [node("Add", "x three", "p"), GATE, node("Div", "six g", "h"), node("Mul", "x h", "y")],
    ],
)
def test_what_resembles_hardswish(tail: list[onnx.NodeProto]) -> None:
    nodes = [node("Relu", "x", "r"), node("Identity", "r", "z"), *tail]
    graph = imported(nodes, NUMBERS | {"six_": np.float32(6)})
    recognised = recognise_gates(graph)
    assert "hardswish" not in [n.work for n in recognised.nodes]
    assert_equal_results(graph, recognised)


def shuffle(grouped: list[int], order: list[int], shape: tuple[int, ...]) -> Graph:
    weights = {"split": np.array(grouped), "merge": np.array(shape)}
    nodes = [
        node("Reshape", "x split", "a"),
        node("Transpose", "a", "b", perm=order),
        node("Reshape", "b merge", "y"),
    ]
    return imported(nodes, weights, shape)


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("pixels", [[5, 4], [20]])
def test_channel_shuffle(groups: int, pixels: list[int]) -> None:
    order = [0, 2, 1, 3, 4][: 3 + len(pixels)]
    graph = shuffle([2, groups, 12 // groups, *pixels], order, (2, 12, 5, 4))
    recognised = recognise_channel_shuffle(graph)
    assert [n.op for n in recognised.nodes] == [ChannelShuffle(groups)]
    assert_equal_results(graph, recognised)


@pytest.mark.parametrize(
    ("grouped", "order"),
    [
        ([2, 3, 4, 5, 4], [0, 1, 2, 4, 3]),
        ([2, 12, 5, 2, 2], [0, 2, 1, 3, 4]),
        ([1, 4, 6, 5, 4], [0, 2, 1, 3, 4]),
        ([2, 4, 3, 5, 4], [0, 2, 1, 4, 3]),
    ],
)
def test_what_resembles_a_channel_shuffle(grouped: list[int], order: list[int]) -> None:
    graph = shuffle(grouped, order, (2, 12, 5, 4))
    assert len(recognise_channel_shuffle(graph).nodes) == 3


def test_moves_in_a_row_become_one() -> None:
    nodes = [
        node("Transpose", "x", "a", perm=[1, 0, 3, 2]),
        node("Transpose", "a", "b", perm=[0, 2, 3, 1]),
        node("Flatten", "b", "c"),
        node("Unsqueeze", "c axes", "y"),
    ]
    graph = imported(nodes, {"axes": np.array([0])}, (2, 3, 4, 5))
    merged = merge_moves(graph)
    assert [n.work for n in merged.nodes] == ["Transpose", "Reshape"]
    assert merged.nodes[0].op == Transpose((1, 3, 2, 0))
    assert_equal_results(graph, merged)


@pytest.mark.parametrize(
    ("order", "bias", "dense"),
    [
        ("m b", (6,), True),
        ("b m", (1, 6), True),
        ("m b", (5, 6), False),
        ("m b", (1,), False),
    ],
)
def test_dense_layers(order: str, bias: tuple[int, ...], dense: bool) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", order, "y")]
    graph = imported(nodes, {"w": normal(4, 6), "b": normal(*bias)}, (5, 4))
    fused = fuse_bias(graph)
    assert [n.op == Gemm() for n in fused.nodes] == ([True] if dense else [False, False])
    assert_equal_results(graph, fused)


def test_a_bias_of_a_batch_of_matrices() -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", "b m", "y")]
    for bias, fuses in (((5,), True), ((1, 1, 5), True), ((4, 5), False), ((4, 1), False)):
        graph = imported(nodes, {"w": normal(6, 5), "b": normal(*bias)}, (2, 4, 6))
        fused = fuse_bias(graph)
        assert len(fused.nodes) == (1 if fuses else 2)
        assert_equal_results(graph, fused)


def test_the_gate_of_squeeze_and_excite_stays() -> None:
    """A hardsigmoid that scales another tensor is not a hardswish."""
    nodes = [
        node("GlobalAveragePool", "x", "c"),
        node("HardSigmoid", "c", "h", alpha=1 / 6),
        node("Mul", "x h", "y"),
    ]
    graph = imported(nodes, {})
    optimised = optimise(graph)
    assert [n.work for n in optimised.nodes] == ["average pool", "hardsigmoid", "mul"]
    assert optimised.nodes[1].op == Unary("hardsigmoid", pytest.approx(1 / 6), 0.5)
    assert_equal_results(graph, optimised)


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_layer_normalisation_written_out(square: str) -> None:
    """As PyTorch exports it before opset 17; the scale and shift behind join it."""
    nodes = [
        node("ReduceMean", "x", "m", axes=[-1]),
        node("Sub", "x m", "d"),
        node("Pow", "d two", "s") if square == "Pow" else node("Mul", "d d", "s"),
        node("ReduceMean", "s", "v", axes=[-1]),
        node("Add", "v epsilon", "a"),
        node("Sqrt", "a", "r"),
        node("Div", "d r", "n"),
        node("Mul", "n scale", "p"),
        node("Add", "p shift", "y"),
    ]
    weights: Weights = {"two": np.float32(2), "epsilon": np.float32(1e-5), "scale": normal(5),
                        "shift": normal(5)}  # fmt: skip
    graph = import_onnx(model(nodes, weights, opset=13, shape=(2, 3, 5)))
    done = optimise(graph)
    assert [n.work for n in done.nodes if n.work != "Transpose"] == ["LayerNorm"]
    assert_equal_results(graph, done)

"""Activations become part of the operator that computes their input."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from fastrun.graph.core.model import Graph
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.fuse import fuse_activation
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ACTIVATIONS
from tests.support.execution import relative_error
from tests.support.graph_models import Weights, batch_norm, model, node, normal

CPU = Cpu.host()

# As exporters write them, from h to y.
WRITTEN: dict[str, list[onnx.NodeProto]] = {
    "relu": [node("Relu", "h", "y")],
    "relu6": [node("Clip", "h zero six", "y")],
    "sigmoid": [node("Sigmoid", "h", "y")],
    "hardsigmoid": [node("HardSigmoid", "h", "y", alpha=1 / 6)],
    "hardswish": [node("HardSwish", "h", "y")],
    "tanh": [node("Tanh", "h", "y")],
    "leaky0.1": [node("LeakyRelu", "h", "y", alpha=0.1)],
    "silu": [node("Sigmoid", "h", "s"), node("Mul", "h s", "y")],
    "gelu": [
        node("Div", "h root", "s"),
        node("Erf", "s", "e"),
        node("Add", "e one", "g"),
        node("Mul", "h g", "t"),
        node("Mul", "t half", "y"),
    ],
    "gelu_tanh": [
        node("Pow", "h three", "c"),
        node("Mul", "c share", "d"),
        node("Add", "h d", "i"),
        node("Mul", "i slope", "s"),
        node("Tanh", "s", "e"),
        node("Add", "e one", "g"),
        node("Mul", "h half", "t"),
        node("Mul", "t g", "y"),
    ],
}
NUMBERS: Weights = {
    "three": np.float32(3),
    "share": np.float32(0.044715),
    "slope": np.float32((2 / np.pi) ** 0.5),
    "zero": np.float32(0),
    "half": np.float32(0.5),
    "one": np.float32(1),
    "root": np.float32(2**0.5),
    "six": np.float32(6),
}

IMAGE, ROWS, SQUARES = (2, 4, 7, 9), (3, 20), (2, 3, 4, 4)
RELU = node("Relu", "x", "r")

# What computes h, how many nodes of the optimised graph do, and the shape of x.
PRODUCERS: dict[str, tuple[list[onnx.NodeProto], Weights, int, tuple[int, ...]]] = {
    "convolution": ([node("Conv", "x w", "h")], {"w": normal(6, 4, 3, 3)}, 1, IMAGE),
    "transposed": (
        [node("ConvTranspose", "x w b", "h", strides=[2, 2])],
        {"w": normal(4, 5, 3, 2), "b": normal(5)},
        1,
        IMAGE,
    ),
    "normalised": (
        [RELU, node("BatchNormalization", "r scale shift mean variance", "h")],
        batch_norm(4),
        2,
        IMAGE,
    ),
    "sum": ([RELU, node("Add", "r x", "h")], {}, 2, IMAGE),
    "product": ([RELU, node("Mul", "r k", "h")], {"k": normal(4, 1, 1)}, 2, IMAGE),
    "dense": ([node("Gemm", "x w b", "h")], {"w": normal(20, 7), "b": normal(7)}, 1, ROWS),
    "matrices": ([RELU, node("MatMul", "x r", "h")], {}, 2, SQUARES),
    "biased": (
        [RELU, node("MatMul", "x r", "m"), node("Add", "b m", "h")],
        {"b": normal(4)},
        2,
        SQUARES,
    ),
}


def optimised(nodes: list[onnx.NodeProto], weights: Weights, shape: tuple[int, ...]) -> Graph:
    """The graph after all passes; natively it gives the results of the graph before, in float64."""
    graph = import_onnx(model(nodes, {**NUMBERS, **weights}, shape=shape))
    after = optimise(graph)
    plan, arrangement = make_plan(after, heuristic_choices(CPU), CPU)
    x = {"x": normal(*shape)}
    (truth,) = reference.run(graph, x).values()
    (found,) = Executable.of(arrangement, CPU, 1, plan).run(x).values()
    assert relative_error(found, truth) < 1e-4
    return after


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("producer", PRODUCERS)
def test_every_producer_applies_every_activation(producer: str, activation: str) -> None:
    nodes, weights, count, shape = PRODUCERS[producer]
    graph = optimised([*nodes, *WRITTEN[activation]], weights, shape)
    assert len(graph.nodes) == count
    assert graph.nodes[-1].work.endswith(f" + {activation}")
    assert graph.outputs == ("y",)


W = {
    "w": normal(6, 4, 3, 3),
    "v": normal(6, 4, 3, 3),
    "k": normal(4, 4, 1, 1),
    "four": np.array([2, 3, -1]),
}
CONV, OTHER = node("Conv", "x w", "a"), node("Conv", "x v", "b")
CONCAT = node("Concat", "a b", "h", axis=1)
POOL = node("MaxPool", "a", "h", kernel_shape=[3, 3], pads=[1] * 4)
MOVED = [node("Reshape", "a four", "m"), node("Transpose", "m", "h", perm=[0, 2, 1])]


@pytest.mark.parametrize(
    ("nodes", "activation", "fuses"),
    [
        ([CONV, OTHER, CONCAT], "silu", True),
        ([CONV, *MOVED], "relu6", True),
        ([CONV, POOL], "relu", True),
        ([CONV, POOL], "sigmoid", False),
        ([CONV, POOL], "silu", False),
        ([node("Conv", "x k", "a"), node("Tanh", "x", "b"), CONCAT], "relu", False),
        ([CONV, node("Relu", "a", "b"), CONCAT], "relu", False),
        ([CONV, node("Concat", "a a", "h", axis=1)], "relu", False),
    ],
    ids=["concatenation", "moved", "maximum", "costly", "not monotonous", "not computed",
         "already has one", "read twice"],
)  # fmt: skip
def test_activations_pass_what_only_moves(
    nodes: list[onnx.NodeProto], activation: str, fuses: bool
) -> None:
    graph = optimised([*nodes, *WRITTEN[activation]], W, IMAGE)
    last = graph.nodes[-1].work
    assert (activation not in last) == fuses
    assert sum(f"Conv + {activation}" == n.work for n in graph.nodes) >= int(fuses)


def test_a_hardsigmoid_of_other_slope_stays() -> None:
    nodes = [CONV, node("HardSigmoid", "a", "y")]
    graph = fuse_activation(import_onnx(model(nodes, W)))
    assert [n.work for n in graph.nodes] == ["Conv", "hardsigmoid"]

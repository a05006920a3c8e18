"""Operators that compute one byte from one byte become a table, and results stay as they are."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import ByteFunction
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import PASSES, optimise
from fastrun.graph.passes.tabulate import tabulate
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.kernels.core.cpu import Cpu
from tests.support.graph_models import node
from tests.support.quantised_models import model

CPU = Cpu.host()
SCALE = {"s": np.float32(1 / 16), "t": np.float32(1 / 32), "z": np.uint8(128)}


def rounded(x: str, y: str, scale: str) -> list[onnx.NodeProto]:
    """`y` is `x` on the grid of a scale."""
    return [
        node("QuantizeLinear", f"{x} {scale} z", f"{y}.q"),
        node("DequantizeLinear", f"{y}.q {scale} z", y),
    ]


def gelu(more: list[onnx.NodeProto]) -> onnx.ModelProto:
    """GELU as quantisers leave it: Div and Erf in float32, roundings between the others."""
    nodes = [
        *rounded("x", "a", "s"),
        node("Div", "a root", "b"),
        node("Erf", "b", "c"),
        *rounded("c", "d", "t"),
        node("Add", "d one", "e"),
        *rounded("e", "f", "t"),
        node("Mul", "a f", "g"),
        *rounded("g", "h", "s"),
        node("Mul", "h half", "i"),
        *rounded("i", "j", "s"),
        *more,
    ]
    numbers = {"root": math.sqrt(2), "one": 1.0, "half": 0.5}
    constants = SCALE | {x: np.float32(value) for x, value in numbers.items()}
    return model(nodes, constants | {"wide": np.float32([[1], [2], [3], [4]])[..., None]})


def before(m: onnx.ModelProto) -> Graph:
    """The optimised network without tables."""
    graph = load_network(m)
    for run in PASSES:
        if run is not tabulate:
            graph = run(graph)
    return graph


def functions(graph: Graph) -> list[ByteFunction]:
    return [node.op for node in graph.nodes if isinstance(node.op, ByteFunction)]


X = {"x": np.random.default_rng(0).uniform(-9, 9, (1, 4, 6, 6)).astype(np.float32)}


def test_a_spelled_out_activation_is_one_table() -> None:
    m = gelu([node("Identity", "j", "y")])
    graph = optimise(m_graph := load_network(m))
    (whole,) = functions(graph)
    assert [link.op.function for link in whole.links] == ["div", "erf", "add", "mul", "mul"]  # type: ignore[union-attr]
    truth = reference.run(m_graph, X)["y"]
    assert np.array_equal(reference.run(graph, X)["y"], truth)
    plan, made = make_plan(graph, heuristic_choices(CPU), CPU)
    assert np.array_equal(Executable.of(made, CPU, 1, plan).run(X)["y"], truth.astype(np.float32))
    assert len(plan.forms) < len(before(m).nodes)


def test_a_table_is_written_as_the_operators_that_it_stands_for() -> None:
    graph = optimise(load_network(gelu([node("Identity", "j", "y")])))
    again = optimise(load_network(export_onnx(graph)))
    assert functions(again) == functions(graph)
    assert np.array_equal(reference.run(again, X)["y"], reference.run(graph, X)["y"])


@pytest.mark.parametrize(
    ("more", "lengths"),
    [
        # What something else reads is computed on its own.
        ([node("Mul", "j f", "y")], [3, 1]),
        # Numbers that differ by channel are no part of a table.
        ([node("Mul", "j wide", "k"), *rounded("k", "l", "s"), node("Identity", "l", "y")], [5]),
        # A single sum with a number is a table too.
        (
            [
                node("MaxPool", "j", "k", kernel_shape=[3, 3]),
                node("Add", "k one", "l"),
                *rounded("l", "m", "s"),
                node("Identity", "m", "y"),
            ],
            [5, 1],
        ),
    ],
)
def test_a_table_ends_where_it_must(more: list[onnx.NodeProto], lengths: list[int]) -> None:
    m = gelu(more)
    graph = optimise(load_network(m))
    assert [len(one.links) for one in functions(graph)] == lengths
    assert np.array_equal(reference.run(graph, X)["y"], reference.run(before(m), X)["y"])

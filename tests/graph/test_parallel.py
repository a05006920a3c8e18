"""Convolutions side by side that are added become one, and nothing else does."""

from __future__ import annotations

import onnx
import pytest

from fastrun.graph.core.ops import Conv
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.merge_parallel import merge_parallel
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference import interpreter as reference
from fastrun.tuner.networks.load import load
from tests.support.execution import relative_error
from tests.support.graph_models import Weights, batch_norm, model, node, normal

WIDE = node("Conv", "x wide bias", "a", pads=[1, 1, 1, 1])
SMALL = node("Conv", "x small", "b")
SCALE = node("BatchNormalization", "x scale shift mean variance", "c")
WEIGHTS: Weights = {
    "wide": normal(4, 4, 3, 3), "small": normal(4, 4, 1, 1), "bias": normal(4), **batch_norm(4),
}  # fmt: skip


def assert_one_convolution(nodes: list[onnx.NodeProto], weights: Weights) -> None:
    source = model(nodes, weights, shape=(2, 4, 9, 11))
    graph = optimise(import_onnx(source))
    assert [type(n.op) for n in graph.nodes] == [Conv]
    x = {"x": normal(2, 4, 9, 11)}
    truth = reference.run(import_onnx(source), x)["y"]
    assert relative_error(reference.run(graph, x)["y"], truth) < 1e-6
    assert relative_error(load(source, policy="heuristic").run(x)["y"], truth) < 1e-4


@pytest.mark.parametrize("order", ["a b", "b a"])
def test_two_sizes_of_filter(order: str) -> None:
    assert_one_convolution([WIDE, SMALL, node("Add", order, "y")], WEIGHTS)


def test_repvgg_s_block() -> None:
    sums = [node("Add", "a b", "s"), node("Add", "s c", "t"), node("Relu", "t", "y")]
    assert_one_convolution([WIDE, SMALL, SCALE, *sums], WEIGHTS)


def test_in_groups_strided_and_off_centre() -> None:
    nodes = [
        node("Conv", "x wide", "a", pads=[2, 1, 0, 1], strides=[2, 1], group=2),
        node("Conv", "x small bias", "b", pads=[1, 0, 0, 0], strides=[2, 1], group=2),
        node("Add", "a b", "y"),
    ]
    weights = {"wide": normal(6, 2, 4, 3), "small": normal(6, 2, 3, 1), "bias": normal(6)}
    assert_one_convolution(nodes, weights)


def test_a_scale_beside_groups_and_dilation() -> None:
    wide = node("Conv", "x wide", "a", pads=[2, 2, 2, 2], dilations=[2, 2], group=2)
    nodes = [wide, SCALE, node("Add", "c a", "y")]
    assert_one_convolution(nodes, {**WEIGHTS, "wide": normal(4, 2, 3, 3)})


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        # Read twice; another input; an activation between; a filter that sticks out; a residual.
        ([WIDE, SMALL, node("Add", "a b", "s"), node("Add", "s b", "y")], {}),
        ([WIDE, node("Conv", "a small", "b"), node("Add", "a b", "y")], {}),
        ([WIDE, SMALL, node("Relu", "b", "r"), node("Add", "a r", "y")], {}),
        (
            [
                node("Conv", "x wide", "a", pads=[0, 0, 2, 2]),
                node("Conv", "x wide", "b", pads=[1, 1, 1, 1]),
                node("Add", "a b", "y"),
            ],
            {},
        ),
        (
            [
                node("Conv", "x wide", "a", pads=[2, 2, 2, 2], dilations=[2, 2]),
                node("Conv", "x wide", "b", pads=[1, 1, 1, 1]),
                node("Add", "a b", "y"),
            ],
            {},
        ),
        ([WIDE, node("Add", "a x", "y")], {}),
        ([WIDE, node("Conv", "x each", "b", group=4), node("Add", "a b", "y")],
         {"each": normal(4, 1, 1, 1)}),
        ([WIDE, node("Conv", "x one", "b"), node("Add", "a b", "y")],
         {"one": normal(1, 4, 1, 1)}),
    ],
)  # fmt: skip
def test_others_stay(nodes: list[onnx.NodeProto], weights: Weights) -> None:
    graph = import_onnx(model(nodes, {**WEIGHTS, **weights}, shape=(2, 4, 9, 11)))
    assert merge_parallel(graph).nodes == graph.nodes

"""Transposed convolutions as convolutions of phases, or as dense layers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from fastrun.graph.core.model import Graph
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.passes.transposed import PRODUCTS, _Axis, convolve_transposed
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference.interpreter import run
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.kernels.core.cpu import Cpu
from tests.support.graph_models import model, node, normal

CPU = Cpu.host()


def graph_of(x: tuple[int, ...], weights: tuple[int, ...], **attributes: object) -> Graph:
    nodes = [node("ConvTranspose", "x w b", "c", **attributes), node("Relu", "c", "y")]
    values = {"w": normal(*weights), "b": normal(weights[1] * attributes.get("group", 1))}
    return import_onnx(model(nodes, values, shape=x))


def operators(graph: Graph) -> list[str]:
    return [type(n.op).__name__ for n in graph.nodes]


def checked(graph: Graph) -> Graph:
    """The graph after all passes; it must give the same results, as kernels and as ONNX too."""
    inputs = {"x": normal(*graph.shape("x"), seed=5)}
    truth = run(graph, inputs)["y"]
    fast = optimise(graph)
    np.testing.assert_allclose(run(fast, inputs)["y"], truth, rtol=1e-6, atol=1e-6)
    plan, arrangement = make_plan(fast, heuristic_choices(CPU), CPU)
    found = Executable.of(arrangement, CPU, 1, plan).run(inputs)["y"]
    assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()
    again = import_onnx(export_onnx(fast))
    np.testing.assert_allclose(run(again, inputs)["y"], truth, rtol=1e-6, atol=1e-6)
    return fast


PHASES = ["Conv", "DepthToSpace"]
CASES = [
    # DCGAN, U-Net, feature pyramid, a stride for each axis, one axis, results that end in a phase
    ((1, 80, 5, 4), (80, 6, 4, 4), {"strides": [2, 2], "pads": [1] * 4}, PHASES),
    ((2, 256, 3, 4), (256, 5, 2, 2), {"strides": [2, 2]}, PHASES),
    (
        (1, 128, 4, 5),
        (128, 9, 3, 3),
        {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]},
        PHASES,
    ),
    ((1, 90, 4, 5), (90, 7, 5, 6), {"strides": [2, 3], "pads": [1, 0, 2, 3]}, PHASES),
    ((1, 64, 9), (64, 8, 16), {"strides": [4], "pads": [6, 6]}, PHASES),
    ((1, 128, 6, 5), (128, 9, 3, 3), {"strides": [2, 2], "pads": [1] * 4}, [*PHASES, "Slice"]),
    ((1, 64, 6, 5), (64, 9, 3, 3), {"pads": [1] * 4}, ["Conv"]),
    # Half a stride is cut off on both axes, or on one
    ((2, 128, 3, 5), (128, 3, 8, 8), {"strides": [4, 4], "pads": [2] * 4}, PHASES),
    ((1, 128, 3, 5), (128, 5, 4, 6), {"strides": [2, 3], "pads": [1, 0, 1, 3]}, PHASES),
    ((2, 128, 5, 3), (128, 5, 6, 4), {"strides": [3, 2], "pads": [0, 1, 3, 1]}, PHASES),
    ((1, 128, 4, 5), (128, 6, 8, 2), {"strides": [4, 2], "pads": [2, 0, 2, 0]}, PHASES),
    ((1, 256, 7), (256, 6, 4), {"strides": [2], "pads": [1, 1]}, PHASES),
    # One input pixel
    ((1, 40, 1, 1), (40, 6, 4, 4), {}, ["Reshape", "Gemm", "Reshape"]),
    (
        (17, 20, 1, 1),
        (20, 3, 3, 4),
        {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
        ["Reshape", "Transpose", "Conv", "Transpose", "Reshape"],
    ),
    # Few products, gaps between taps, groups, dilation: as they are
    ((1, 1024, 3, 4), (1024, 2, 1, 1), {"strides": [2, 2]}, ["ConvTranspose"]),
    ((1, 7, 5, 4), (7, 6, 4, 4), {"strides": [2, 2]}, ["ConvTranspose"]),
    ((1, 256, 5, 4), (256, 2, 4, 4), {"strides": [2, 2], "group": 2}, ["ConvTranspose"]),
    ((1, 256, 5, 4), (256, 9, 2, 2), {"dilations": [2, 2]}, ["ConvTranspose"]),
]


@pytest.mark.parametrize(("x", "weights", "attributes", "expected"), CASES)
def test_becomes(x, weights, attributes, expected) -> None:
    assert operators(checked(graph_of(x, weights, **attributes))) == expected


def test_every_tap_is_read_once() -> None:
    """For kernels, strides and paddings of all kinds, against the definition."""
    for inputs, kernel, stride, begin in product((1, 4), range(1, 7), range(1, 5), range(4)):
        outputs = (inputs - 1) * stride + kernel - begin
        if outputs < 1:
            continue
        axis = _Axis.of(inputs, outputs, kernel, stride, begin)
        found = {
            (axis.low + j + i, j * stride + phase): tap
            for j in range(axis.count)
            for phase in range(stride)
            for i, tap in enumerate(axis.taps[phase])
            if tap >= 0 and 0 <= axis.low + j + i < inputs and j * stride + phase < outputs
        }
        wanted = {
            (i, i * stride + tap - begin): tap
            for i in range(inputs)
            for tap in range(kernel)
            if 0 <= i * stride + tap - begin < outputs
        }
        assert found == wanted, (inputs, kernel, stride, begin)


@pytest.mark.parametrize(("kernel", "stride", "pad"), [(4, 2, 1), (8, 4, 2), (6, 2, 2), (2, 2, 0)])
def test_no_zeros_among_the_taps(kernel: int, stride: int, pad: int) -> None:
    made = {"strides": [stride] * 2, "pads": [pad] * 4}
    graph = convolve_transposed(graph_of((1, 256, 4, 5), (256, 3, kernel, kernel), **made))
    (conv,) = [n for n in graph.nodes if type(n.op).__name__ == "Conv"]
    weights = graph.constants[conv.inputs[1]]
    assert weights.shape == (3 * stride**2, 256, kernel // stride, kernel // stride)
    assert np.all(weights)


def test_products_decide() -> None:
    """At stride 2 a 2x2 filter has one product of each channel for an output."""
    for channels, kind in ((PRODUCTS - 1, "ConvTranspose"), (PRODUCTS, "DepthToSpace")):
        graph = graph_of((1, channels, 3, 3), (channels, 4, 2, 2), strides=[2, 2])
        assert kind in operators(convolve_transposed(graph))

"""Quantised ONNX models mean what onnxruntime computes of them in its exact mode."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import fastrun
from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.grid import Grid, weight_axis
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.core.precision import float_reason
from fastrun.graph.core.problems import conv_problems
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.kernels.core.dtype import I16, S8, U8
from tests.graph.test_rounding import assert_weights_lie_on_grids
from tests.support.agreement import assert_close
from tests.support.graph_models import node, normal
from tests.support.model_mutants import mutant
from tests.support.quantised_models import exact, layer, model, quantised
from tests.support.random_graphs import Network

SCALE = int(os.environ.get("FASTRUN_TEST_SCALE", "1"))


def own(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node of onnxruntime's own domain."""
    made = node(op, inputs, outputs, **attributes)
    made.domain = "com.microsoft"
    return made


def apart(found: Array, truth: Array) -> tuple[float, float]:
    """The share of values that differ, and the largest difference over the largest value."""
    size = float(np.abs(truth).max(initial=1e-6))
    difference = np.abs(found - truth.astype(np.float64)) / size
    return float((difference > 1e-4).mean()), float(difference.max(initial=0))


def checked(m: onnx.ModelProto, x: Array | None = None, share: float = 0.02) -> Graph:
    """The optimised graph, which computes the model's result but for a share of ties."""
    graph = import_onnx(m)
    if x is None:
        x = normal(*graph.shape("x"))
    truth = exact(m, {"x": x})["y"]
    better = optimise(graph)
    for g in (graph, better):
        found = run(g, {"x": x})["y"]
        assert found.shape == truth.shape
        different, largest = apart(found, truth)
        assert different <= share, f"{different} differ, by up to {largest}"
        assert largest < 0.1
    assert_weights_lie_on_grids(better)
    return better


def kinds(graph: Graph) -> list[str]:
    return [n.work for n in graph.nodes]


def test_random_networks_by_onnxruntime_s_quantiser(tmp_path: Path) -> None:
    shares, integers, refusals = list[float](), 0, list[str]()
    for seed in range(16 * SCALE):
        network = Network(seed)
        if network.model().opset_import[0].version < 13:
            continue  # older opsets have no scales per channel
        with np.errstate(all="ignore"):
            m = quantised(network.model(), network.inputs, tmp_path, random.Random(seed))
            try:
                graph = import_onnx(m)
                better = optimise(graph)
                graph.check_supported()
            except GraphError as refused:
                refusals.append(str(refused))
                continue
            truth = exact(m, network.inputs)
            for g in (graph, better):
                found = run(g, network.inputs)
                for name, value in truth.items():
                    share, largest = apart(found[name], value)
                    shares.append(share)
                    assert largest < 0.1, f"seed {seed}: {largest}"
        assert_weights_lie_on_grids(better)
        integers += sum(grid.dtype == U8 for grid in better.grids.values())
    # Infinite values, and integers between which a Resize interpolates.
    assert all("scale is inf" in why or "(Resize)" in why for why in refusals)
    assert len(refusals) < len(shares) / 10
    assert np.mean(shares) < 0.01
    assert integers > 3 * len(shares)


def test_a_layer() -> None:
    graph = checked(layer())
    assert kinds(graph) == ["Identity", "Conv + relu"]
    x, y = (graph.grids[n.output] for n in graph.nodes)
    assert (x, y) == (Grid(float(np.float32(0.02)), 117, U8), Grid(float(np.float32(0.1)), 100, U8))
    weights = graph.nodes[1].inputs[1]
    stored = graph.grids[weights].stored(graph.constants[weights])
    initial = {i.name: onnx.numpy_helper.to_array(i) for i in layer().graph.initializer}
    np.testing.assert_array_equal(stored, initial["w"])
    assert graph.grids[weights].dtype == S8
    assert not graph.notes


def test_a_relu_that_the_zero_point_implies_vanishes() -> None:
    assert kinds(checked(layer(yz=np.uint8(0)))) == ["Identity", "Conv"]


def test_signed_activations_are_stored_unsigned() -> None:
    signed = {"xz": np.int8(-11), "yz": np.int8(-128)}
    graph = checked(layer(**signed))
    assert kinds(graph) == ["Identity", "Conv"]
    assert [graph.grids[n.output].zero for n in graph.nodes] == [117, 0]


@pytest.mark.parametrize(
    "changed",
    [
        {"w": np.random.default_rng(1).integers(0, 256, (5, 4, 3, 3)).astype(np.uint8),
         "wz": np.full(5, 128, np.uint8)},
        {"ws": np.float32(0.01), "wz": np.int8(0)},
        {"ws": np.float32([0.01]), "wz": np.int8([0])},
        {"axis": -4},
        {"b": np.int32([3, 2, 1, 0, -1]), "bs": np.float32(0.5), "bz": np.int32(0)},
    ],
)  # fmt: skip
def test_other_forms_of_weights(changed: dict[str, Any]) -> None:
    graph = checked(layer(**changed))
    assert graph.grids[graph.nodes[1].inputs[1]].dtype == S8


@pytest.mark.parametrize("zero", [7, 101, 255])
def test_weights_with_zero_points_are_integers_of_nine_bits(zero: int) -> None:
    w = np.random.default_rng(1).integers(0, 256, (5, 4, 3, 3)).astype(np.uint8)
    w[:, 0, 0, :2] = 0, 255
    changed = {"w": w, "wz": np.uint8([zero, 128, 90, 140, 0])}
    graph = checked(layer(**changed))
    weights = graph.nodes[1].inputs[1]
    assert graph.grids[weights].dtype == I16
    np.testing.assert_array_equal(
        graph.integers(weights), w.astype(int) - changed["wz"].astype(int).reshape(5, 1, 1, 1)
    )
    assert [p.types for p in conv_problems(graph, graph.nodes[1])] == ["", "u8s9>u8"]
    again = checked(export_onnx(graph))
    np.testing.assert_array_equal(again.integers(again.nodes[1].inputs[1]), graph.integers(weights))


@pytest.mark.parametrize("zero", [3, -4])
def test_weights_with_zero_points_stay_in_eight_bits_if_they_fit(zero: int) -> None:
    w = np.random.default_rng(1).integers(-124, 125, (5, 4, 3, 3)).astype(np.int8)
    graph = checked(layer(w=w, wz=np.int8([0, 0, zero, 0, 0])))
    assert graph.grids[graph.nodes[1].inputs[1]].dtype == S8


@pytest.mark.parametrize(
    ("kernel", "groups"), [((1, 1, 1), 1), ((3, 1, 1), 1), ((3, 3, 3), 1), ((2, 3, 1), 2)]
)
def test_volumes_compute_with_integers(kernel: tuple[int, ...], groups: int) -> None:
    draw = np.random.default_rng(0)
    plain = layer(
        w=draw.integers(-127, 128, (6, 4 // groups, *kernel)).astype(np.int8),
        ws=draw.uniform(0.005, 0.02, 6).astype(np.float32),
        wz=np.zeros(6, np.int8),
        b=draw.integers(-2000, 2000, 6).astype(np.int32),
        bs=np.full(6, 1e-4, np.float32),
        bz=np.zeros(6, np.int32),
    )
    del plain.graph.node[4].attribute[:]
    plain.graph.node[4].attribute.append(helper.make_attribute("group", groups))
    plain.graph.input[0].type.CopyFrom(
        helper.make_tensor_type_proto(TensorProto.FLOAT, (1, 4, 5, 6, 6))
    )
    graph = checked(plain)
    layers = [n for n in graph.nodes if isinstance(n.op, Conv)]
    assert layers
    assert not any(float_reason(graph, n) for n in layers)


@pytest.mark.parametrize(
    ("kernel", "shape", "attributes"),
    [
        ((4, 4), (1, 32, 5, 4), {"strides": [2, 2], "pads": [1] * 4}),
        ((3, 3), (1, 32, 5, 4), {"strides": [2, 2], "output_padding": [1, 1]}),
        ((5, 5), (1, 16, 4, 4), {"pads": [2] * 4}),
        ((8,), (1, 32, 9), {"strides": [4], "pads": [2, 2]}),
        ((4, 4), (1, 40, 1, 1), {}),
        ((3, 3), (20, 40, 1, 1), {"pads": [1, 0, 0, 1]}),
    ],
)
def test_transposed_convolutions_compute_with_integers(
    kernel: tuple[int, ...], shape: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    draw = np.random.default_rng(0)
    w = draw.integers(-127, 128, (shape[1], 5, *kernel)).astype(np.int8)
    plain = layer(w=w, axis=1, ws=draw.uniform(0.001, 0.004, 5).astype(np.float32))
    node = plain.graph.node[4]
    node.op_type = "ConvTranspose"
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())
    plain.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, shape))
    graph = checked(plain)
    layers = [n for n in graph.nodes if isinstance(n.op, Conv)]
    assert layers
    assert not any(float_reason(graph, n) for n in layers)
    assert "ConvTranspose" not in " ".join(kinds(graph))


UNFIT = {
    "another axis": {"axis": 1, "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8)},
    "16 bits": {"w": np.full((5, 4, 3, 3), 999, np.int16), "wz": np.zeros(5, np.int16)},
}


@pytest.mark.parametrize("name", UNFIT)
def test_layers_that_stay_in_float_say_so(name: str) -> None:
    graph = checked(layer(**UNFIT[name]))
    assert len(graph.notes) == 1
    words = {"another axis": "axis 1", "16 bits": "int16"}
    assert graph.notes[0].startswith("node 'conv' (Conv) runs in float32: its ")
    assert words[name] in graph.notes[0]
    assert graph.nodes[1].inputs[1] not in graph.grids


def test_sums_that_may_exceed_32_bits_stay_in_float() -> None:
    k = 2**31 // (255 * 127) + 1
    numbers = {"s": np.float32(1e-4), "z": np.int8(0)}
    nodes = [node("DequantizeLinear", "w s z", "v"), node("Gemm", "x v", "y")]
    for size, notes in ((k, 1), (k - 1, 0)):
        m = model(nodes, {**numbers, "w": np.full((size, 1), 127, np.int8)}, (1, size))
        graph = import_onnx(m)
        assert len(graph.notes) == notes
        assert all("'y' (Gemm) runs in float32: its sums may exceed" in n for n in graph.notes)


def test_biases_that_exceed_32_bits_coarsen_tiny_weights() -> None:
    """As in the dead channels of trained networks; the bias is not quantised there."""
    ws = np.float32([0.01, 1e-12, 0.01, 0.02, 1e-9])
    bias = np.float32([3, 2, -1, 0, -4])
    changed = {"ws": ws, "b": (bias / 1e-4).astype(np.int32), "bs": np.float32(1e-4)}
    graph = checked(layer(**changed, bz=np.int32(0)), share=0)
    weights = graph.nodes[1].inputs[1]
    scale = np.asarray(graph.grids[weights].scale, np.float64)
    assert (np.abs(bias) / (scale * np.float32(0.02)) <= 2**30).all()
    assert scale[[0, 2, 3]].tolist() == ws[[0, 2, 3]].tolist()
    assert not graph.notes
    assert not any(float_reason(graph, n) for n in graph.nodes if isinstance(n.op, Conv))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"xs": np.float32(0)}, "'q' .QuantizeLinear. cannot be used: its scale is 0.0"),
        ({"xs": np.float32(-0.1)}, "'q' .QuantizeLinear. .* its scale is -0.1"),
        ({"ws": np.float32([1, 2, np.nan, 1, 1])}, "'dw' .DequantizeLinear. .* its scale is nan"),
        ({"ws": np.float32([1, 2, np.inf, 1, 1])}, "'dw' .* its scale is inf"),
        ({"ws": np.float32([1, 2, 1e-42, 1, 1])}, "'dw' .*e-42: scales are positive normal"),
        ({"wz": np.zeros(5, np.uint8)}, "'dw' .* zero point is uint8, its integers are int8"),
        ({"wz": np.zeros(4, np.int8)}, "'dw' .* 5 scales and 4 zero points"),
        ({"ws": np.ones(4, np.float32), "wz": np.zeros(4, np.int8)}, r"'dw' .* \(4,\) scales for"),
        ({"axis": 4}, "'dw' .* axis 4 of"),
        ({"axis": -5}, "'dw' .* axis -5 of"),
        ({"bz": np.zeros(5, np.int8)}, "'db' .* zero point is int8, its integers are int32"),
        ({"yz": np.float32(3)}, "'qy' "),
    ],
)
def test_unusable_scales_and_zero_points(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message) as refused:
        import_onnx(layer(**changed)).check_supported()
    assert "\n" not in str(refused.value)
    with pytest.raises(GraphError):
        fastrun.load(layer(**changed), policy="heuristic")


def test_scales_may_be_computed() -> None:
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"), node("DequantizeLinear", "q s z", "y"),
    ]  # fmt: skip
    for some in (nodes, [node("ReduceMax", "x", "s", keepdims=0), node("QuantizeLinear", "x s",
                 "q"), node("DequantizeLinear", "q s", "y")]):  # fmt: skip
        source, x = model(some, {}), np.abs(normal(1, 4, 6, 6))
        (expected,) = ReferenceEvaluator(source).run(None, {"x": x})
        found = fastrun.load(source, policy="heuristic").run({"x": x})["y"]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_arithmetic_on_integers_is_numpys() -> None:
    nodes = [node("QuantizeLinear", "x s z", "q"), node("Add", "q q", "a"),
             node("DequantizeLinear", "a s z", "y")]  # fmt: skip
    source = model(nodes, {"s": np.float32(0.1), "z": np.uint8(3)})
    x = normal(1, 4, 6, 6)
    (expected,) = ReferenceEvaluator(source).run(None, {"x": x})
    network = fastrun.load(source, policy="heuristic")
    np.testing.assert_allclose(network.run({"x": x})["y"], expected, atol=1e-6)
    assert "Add (NumPy)" in [step["work"] for step in network.profile(1)]


NUMBERS = {
    "s": np.float32(0.03), "z": np.uint8(120), "t": np.float32(0.05), "u": np.uint8(60),
    "shape": np.int64([1, 4, 36]), "pads": np.int64([0, 0, 1, 0, 0, 0, 0, 2]), "low": np.uint8(90),
    "high": np.uint8(200), "start": np.int64([1]), "end": np.int64([3]), "axis": np.int64([1]),
    "order": np.int64([2, 0]), "scales": np.float32([1, 1, 2, 2]),
}  # fmt: skip


@pytest.mark.parametrize(
    "moves",
    [
        [node("Reshape", "q shape", "m")],
        [node("Transpose", "q", "m", perm=[0, 2, 3, 1])],
        [node("MaxPool", "q", "m", kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        [node("Pad", "q pads", "m")],
        [node("Pad", "q pads high", "m")],
        [node("Pad", "q pads", "m", mode="edge")],
        [node("Clip", "q low high", "m")],
        [node("Clip", "q _ high", "m")],
        [node("Slice", "q start end axis", "m")],
        [node("Split", "q", "a b", axis=1, num_outputs=2), node("Concat", "b a", "m", axis=1)],
        [node("Gather", "q order", "m", axis=1)],
        [node("Resize", "q _ scales", "m", mode="nearest")],
        [node("Flatten", "q", "a"), node("Unsqueeze", "a axis", "m")],
    ],
)
@pytest.mark.parametrize("signed", [False, True])
def test_integers_are_moved(moves: list[onnx.NodeProto], signed: bool) -> None:
    numbers = dict(NUMBERS)
    if signed:
        numbers |= {k: np.int8(int(numbers[k]) - 128) for k in ("z", "low", "high")}
    nodes = [node("QuantizeLinear", "x s z", "q"), *moves, node("DequantizeLinear", "m s z", "y")]
    read = {x for n in nodes for x in n.input}
    graph = checked(model(nodes, {k: a for k, a in numbers.items() if k in read}), share=0)
    assert set(graph.grids) >= {n.output for n in graph.nodes if n.op != Conv} - {"m"}


def test_what_lies_between_two_scales() -> None:
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q t u", "y")]
    checked(model(nodes, {k: NUMBERS[k] for k in "sztu"}), share=0)
    checked(model(nodes, {k: NUMBERS[k] for k in "szt"} | {"u": NUMBERS["z"]}), share=0)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16])
def test_inputs_and_outputs_of_integers(kind: type) -> None:
    zero = kind(7)
    numbers = {"s": np.float32(0.1), "z": zero, "t": np.float32(0.23), "u": kind(3)}
    nodes = [node("DequantizeLinear", "x s z", "a"), node("Sigmoid", "a", "b"),
             node("Add", "a b", "c"), node("QuantizeLinear", "c t u", "y")]  # fmt: skip
    x = np.random.default_rng(0).integers(0, 100, (1, 4, 6, 6)).astype(kind)
    m = model(nodes, numbers, dtype=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
    truth = exact(m, {"x": x})["y"]
    graph = import_onnx(m)
    for g in (graph, optimise(graph)):
        found = run(g, {"x": x})["y"]
        assert found.dtype == kind
        assert (found != truth).mean() < 0.02
    assert graph.outside == {"x": np.dtype(kind), "y": np.dtype(kind)}


def test_16_bits_round_in_float() -> None:
    numbers = {"s": np.float32(1e-4), "z": np.uint16(30000)}
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
    m = model(nodes, numbers)
    graph = checked(m)
    assert graph.notes == ("node 'q' (QuantizeLinear) rounds in float32: it has uint16",)
    x = normal(1, 4, 6, 6)
    found = fastrun.load(m, policy="heuristic").run({"x": x})["y"]
    assert np.abs(found - exact(m, {"x": x})["y"]).max() < 1.1e-4


@pytest.mark.parametrize(("zeros", "grids"), [([5, 5, 5, 5], 1), ([5, 5, 6, 5], 0)])
def test_scales_per_channel_of_activations(zeros: list[int], grids: int) -> None:
    """As NNCF quantises the inputs of depthwise convolutions."""
    draw = np.random.default_rng(0)
    numbers = {
        "s": draw.uniform(0.01, 0.03, 4).astype(np.float32), "z": np.uint8(zeros),
        "w": draw.integers(-127, 128, (4, 1, 3, 3)).astype(np.int8),
        "t": draw.uniform(0.01, 0.03, 4).astype(np.float32), "u": np.zeros(4, np.int8),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x s z", "q", axis=1),
        node("DequantizeLinear", "q s z", "d", axis=1),
        node("DequantizeLinear", "w t u", "v", axis=0), node("Conv", "d v", "y", group=4),
    ]  # fmt: skip
    graph = checked(model(nodes, numbers))
    assert len(graph.notes) == 1 - grids
    assert len([x for x in graph.grids if x in graph.tensors]) == grids
    if grids:  # the scales are part of the weights
        assert kinds(graph) == ["div", "Identity", "Conv"] or kinds(graph) == ["div", "Conv"]


def unary(op: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [own(op, "q s z t u", "r", **attributes), node("DequantizeLinear", "r t u", "y")]


@pytest.mark.parametrize(
    "nodes",
    [
        unary("QLinearSigmoid"),
        unary("QLinearLeakyRelu", alpha=0.2),
        [own("QLinearSoftmax", "q s z v n", "r", axis=1, opset=21),
         node("DequantizeLinear", "r v n", "y")],
        unary("QLinearGlobalAveragePool", channels_last=0),
        unary("QLinearAveragePool", kernel_shape=[2, 2], strides=[2, 2]),
        [own("QLinearAdd", "q s z q s z t u", "r"), node("DequantizeLinear", "r t u", "y")],
        [own("QLinearMul", "q s z q s z t u", "r"), node("DequantizeLinear", "r t u", "y")],
        [own("QLinearConcat", "t u q s z q s z", "r", axis=2),
         node("DequantizeLinear", "r t u", "y")],
        [node("Flatten", "q", "f"), own("QGemm", "f s z m a d c t u", "r", transB=1),
         node("DequantizeLinear", "r t u", "y")],
        [node("Flatten", "q", "f"), own("QGemm", "f s z m a d c", "y", transB=1, alpha=2.0)],
        [node("Reshape", "q flat", "f"), node("QLinearMatMul", "f s z k b h t u", "r"),
         node("DequantizeLinear", "r t u", "y")],
        [node("QLinearConv", "q s z w e g t u c", "r", strides=[2, 2]),
         node("DequantizeLinear", "r t u", "y")],
        [node("QLinearConv", "q s z w e g t u", "r"), node("DequantizeLinear", "r t u", "y")],
    ],
)  # fmt: skip
def test_operators_of_integers(nodes: list[onnx.NodeProto]) -> None:
    draw = np.random.default_rng(0)
    numbers = {
        "s": np.float32(0.02), "z": np.uint8(128), "t": np.float32(0.07), "u": np.uint8(100),
        "m": draw.integers(-127, 128, (3, 144)).astype(np.int8), "a": np.float32([0.001] * 3),
        "c": np.int32([100, -2000, 30]), "flat": np.int64([4, 36]),
        "k": draw.integers(-127, 128, (36, 5)).astype(np.int8),
        "b": draw.uniform(0.005, 0.01, 5).astype(np.float32), "h": np.zeros(5, np.int8),
        "d": np.zeros(3, np.int8), "v": np.float32(1 / 256), "n": np.uint8(0),
        "w": draw.integers(-127, 128, (3, 4, 3, 3)).astype(np.int8),
        "e": draw.uniform(0.005, 0.01, 3).astype(np.float32), "g": np.zeros(3, np.int8),
    }  # fmt: skip
    nodes = [node("QuantizeLinear", "x s z", "q"), *nodes]
    read = {x for n in nodes for x in n.input}
    graph = checked(model(nodes, {k: a for k, a in numbers.items() if k in read}), share=0.06)
    assert not graph.notes
    assert not {"m", "k", "w"} & read or S8 in [grid.dtype for grid in graph.grids.values()]


@pytest.mark.parametrize("zeros", ["none", "bytes", "floats"])
@pytest.mark.parametrize(("k", "size"), [(64, 16), (100, 32)])
def test_products_with_weights_of_4_bits(zeros: str, k: int, size: int) -> None:
    draw, n, blocks = np.random.default_rng(0), 24, -(-k // size)
    scales = draw.uniform(-0.05, 0.05, n * blocks).astype(np.float32)
    scales[3] = 0  # a block of zeros
    numbers: dict[str, Any] = {
        "w": draw.integers(0, 256, (n, blocks, size // 2)).astype(np.uint8), "s": scales,
        "z": draw.integers(0, 256, n * -(-blocks // 2)).astype(np.uint8), "b": normal(n),
    }  # fmt: skip
    if zeros == "floats":
        numbers["z"] = draw.uniform(0, 15, (n, blocks)).astype(np.float32)
    given = {"K": k, "N": n, "bits": 4, "block_size": size}
    inputs = "x w s _ _ b" if zeros == "none" else "x w s z _ b"
    nodes = [own("MatMulNBits", inputs, "y", **given)]
    if zeros == "none":
        del numbers["z"]
    m = model(nodes, numbers, (2, 7, k))
    if zeros == "floats":
        with pytest.raises(UnsupportedError, match=r"'y' .MatMulNBits. needs integers as zero"):
            import_onnx(m).check_supported()
        return
    graph = checked(m, share=0)
    assert [(g.block, g.dtype, np.shape(g.scale)) for g in graph.grids.values()] == [
        (size, U8, (n, blocks))
    ]
    x = normal(2, 7, k)
    found = fastrun.load(m, policy="heuristic").run({"x": x})["y"]
    assert_close(found, exact(m, {"x": x})["y"])


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
def test_blocks_of_4_bits_in_onnx_s_own_form(kind: int) -> None:
    dtype, draw = helper.tensor_dtype_to_np_dtype(kind), np.random.default_rng(0)
    low = 0 if kind == TensorProto.UINT4 else -8
    numbers = {
        "w": draw.integers(low, low + 16, (50, 6)).astype(dtype),
        "s": draw.uniform(0.01, 0.05, (4, 6)).astype(np.float32),
        "z": draw.integers(low, low + 16, (4, 6)).astype(dtype),
    }
    nodes = [node("DequantizeLinear", "w s z", "v", axis=0, block_size=16),
             node("MatMul", "x v", "y")]  # fmt: skip
    graph = checked(model(nodes, numbers, (2, 3, 50)), share=0)
    (name, grid), *_ = graph.grids.items()
    axis = next(weight_axis(n.op) for n in graph.nodes if n.input(1) == name)
    assert axis is not None
    stored = np.moveaxis(grid.stored(graph.constants[name], axis), axis, 0).reshape(6, 50)
    np.testing.assert_array_equal(stored, numbers["w"].astype(int).T - low)


def test_weights_that_are_quantised_in_the_model_and_transposed() -> None:
    """As PyTorch's exporter writes them."""
    numbers = {
        "w": normal(5, 4), "s": np.full(5, 0.02, np.float32), "z": np.zeros(5, np.int8),
        "xs": np.float32(0.02), "xz": np.uint8(128),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x xs xz", "q"), node("DequantizeLinear", "q xs xz", "d"),
        node("QuantizeLinear", "w s z", "a", axis=0),
        node("DequantizeLinear", "a s z", "b", axis=0), node("Transpose", "b", "c", perm=[1, 0]),
        node("MatMul", "d c", "y"),
    ]  # fmt: skip
    graph = checked(model(nodes, numbers, (3, 4)))
    assert [g.dtype for g in graph.grids.values()].count(S8) == 1


def test_weights_of_two_layers_keep_one_grid() -> None:
    numbers = {
        "w": np.random.default_rng(0).integers(-127, 128, (4, 4)).astype(np.int8),
        "s": np.float32(0.02), "z": np.int8(0),
    }  # fmt: skip
    nodes = [node("DequantizeLinear", "w s z", "v"), node("Gemm", "x v", "a"),
             node("Gemm", "a v", "y", transB=1)]  # fmt: skip
    graph = checked(model(nodes, numbers, (3, 4)))
    assert len(graph.grids) == 1


def test_mutants() -> None:
    """Damaged models are refused in one line, or mean what onnxruntime computes."""
    operators = [own("QLinearAdd", "q s z q s z t u", "r"), node("MaxPool", "r", "p",
                 kernel_shape=[2, 2]), node("DequantizeLinear", "p t u", "y")]  # fmt: skip
    numbers = {k: NUMBERS[k] for k in "sztu"}
    bases = [layer(), model([node("QuantizeLinear", "x s z", "q"), *operators], numbers)]
    compared, refusals = 0, list[str]()
    for seed in range(120 * SCALE):
        draw = random.Random(seed)
        content = mutant(draw.choice(bases), draw)
        try:
            m = onnx.load_model_from_string(content)
            graph = import_onnx(m)
            graph.check_supported()
        except (DecodeError, GraphError) as refused:
            refusals.append(str(refused))
            continue
        x = {name: normal(*graph.shape(name)) for name in graph.inputs}
        with np.errstate(all="ignore"):
            try:
                truth = exact(m, x)
            except Exception:  # its exceptions have no class in common
                continue
            for g in (graph, optimise(graph)):
                found = run(g, x)
                for name, value in truth.items():
                    if np.isfinite(value).all() and value.size:
                        compared += 1
                        assert apart(found[name], value)[1] < 0.1, f"seed {seed}"
    assert compared > 20 * SCALE
    assert not [text for text in refusals if "\n" in text]

"""Operators that are composed of others: products of any axes, volumes, filters, repetitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import fastrun
from fastrun.graph.core.model import Array
from fastrun.graph.core.ops import Concat, Conv, DepthwiseVolume, Numpy, Pad, Reshape
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from tests.support.agreement import assert_close
from tests.support.graph_models import model, node, normal


def agrees(source: onnx.ModelProto, expected: Array, *, kernels: bool = True, **x: Array) -> None:
    """The network computes what is expected, by kernels alone."""
    graph = optimise(import_onnx(source))
    assert any(isinstance(n.op, Numpy) for n in graph.nodes) is not kernels
    found = fastrun.load(source, policy="heuristic").run(x)["y"]
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("equation", "first", "second"),
    [
        ("bhwc,hkc->bhwk", (2, 3, 4, 5), (3, 6, 5)),
        ("bhwc,wkc->bhwk", (2, 3, 4, 5), (4, 6, 5)),
        ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)),
        ("bchw,bdhw->bcd", (2, 3, 4, 4), (2, 5, 4, 4)),
        ("ij,kj->ki", (3, 4), (5, 4)),
        ("ij,k->ikj", (3, 4), (5,)),
        ("abc,ade->bd", (2, 3, 4), (2, 5, 6)),
        ("i,i->", (7,), (7,)),
        ("bij->bji", (2, 3, 4), None),
        ("bij->j", (2, 3, 4), None),
    ],
)
@pytest.mark.parametrize("constant", [False, True])
def test_einsum_is_a_matrix_product(
    equation: str, first: tuple[int, ...], second: tuple[int, ...] | None, constant: bool
) -> None:
    x, w = normal(*first), normal(*second or (1,), seed=1)
    operands = [x] if second is None else [x, w]
    source = model(
        [node("Einsum", "x w" if second else "x", "y", equation=equation)],
        {"w": w} if constant and second else {},
        shape=first,
    )
    given = {"x": x}
    if second and not constant:
        source.graph.input.append(helper.make_tensor_value_info("w", 1, second))
        given["w"] = w
    agrees(source, np.einsum(equation, *operands), **given)


@pytest.mark.parametrize("equation", ["bii->bi", "...ij->...ji", "ij,jk"])
def test_other_sums_of_products_are_numpys(equation: str) -> None:
    shape = (3, 3) if "," in equation else (2, 3, 3)
    x, w = normal(*shape), normal(3, 4, seed=1)
    operands = [x, w] if "," in equation else [x]
    names = "x w" if "," in equation else "x"
    source = model([node("Einsum", names, "y", equation=equation)], {"w": w}, shape=shape)
    agrees(source, np.einsum(equation, *operands), kernels=False, x=x)


@pytest.mark.parametrize("repeats", [(1, 2, 1, 3), (2, 1, 1, 1), (1, 1, 1, 1), (3, 2, 2, 2)])
def test_tile(repeats: tuple[int, ...]) -> None:
    x = normal(1, 4, 3, 5)
    source = model([node("Tile", "x r", "y")], {"r": np.int64(repeats)}, shape=x.shape)
    agrees(source, np.tile(x, repeats), x=x)


VOLUMES: list[dict[str, Any]] = [
    {},
    {"pads": [1, 1, 1, 1, 1, 1]},
    {"strides": [2, 1, 2], "pads": [0, 1, 2, 1, 0, 1]},
    {"dilations": [2, 1, 1]},
]


@pytest.mark.parametrize("attributes", VOLUMES)
@pytest.mark.parametrize(("depth", "groups"), [(1, 1), (3, 1), (3, 6), (2, 3)])
def test_convolutions_of_volumes(attributes: dict[str, Any], depth: int, groups: int) -> None:
    x, w, b = normal(2, 6, 7, 6, 8), normal(6, 6 // groups, depth, 3, 2), normal(6)
    conv = node("Conv", "x w b", "y", group=groups, **attributes)
    source = model([conv], {"w": w, "b": b}, shape=x.shape)
    (expected,) = ReferenceEvaluator(source).run(None, {"x": x})
    agrees(source, expected, x=x)


@pytest.mark.parametrize("groups", [1, 6])
def test_convolutions_along_the_depth_move_nothing(groups: int) -> None:
    x, w, v = normal(1, 6, 7, 6, 8), normal(6, 6 // groups, 3, 1, 1), normal(6, 6, 1, 3, 3)
    nodes = [
        node("Conv", "x w", "a", group=groups, pads=[2, 0, 0, 0, 0, 0], strides=[2, 1, 1]),
        node("Conv", "a v", "b", pads=[0, 1, 1, 0, 1, 1]),
        node("Conv", "b w", "y", group=groups),
    ]
    source = model(nodes, {"w": w, "v": v}, shape=x.shape)
    (expected,) = ReferenceEvaluator(source).run(None, {"x": x})
    agrees(source, expected, x=x)
    moves = [n.op for n in optimise(import_onnx(source)).nodes if isinstance(n.op, Pad | Concat)]
    assert not moves


WIDE_VOLUMES: list[tuple[int, dict[str, Any]]] = [
    (24, {"pads": [1] * 6}),
    (20, {"pads": [1, 0, 2, 0, 1, 1], "strides": [2, 1, 2]}),
    (5, {"pads": [0, 2, 2, 3, 2, 2], "dilations": [1, 2, 2]}),
    (40, {"pads": [4, 0, 5, 4, 6, 0]}),  # windows that see nothing but padding
]


@pytest.mark.parametrize(("channels", "attributes"), WIDE_VOLUMES)
def test_a_filter_for_each_channel_of_a_volume(channels: int, attributes: dict[str, Any]) -> None:
    """Rows of several tiles, tails of channels; normalisation and activation belong to it."""
    x, w = normal(2, channels, 5, 7, 45), normal(channels, 1, 3, 3, 3)
    scale, shift, mean = (normal(channels, seed=i) for i in range(3))
    nodes = [
        node("Conv", "x w", "a", group=channels, **attributes),
        node("BatchNormalization", "a scale shift mean variance", "b"),
        node("Sigmoid", "b", "s"),
        node("Mul", "b s", "y"),
    ]
    constants = {"w": w, "scale": scale, "shift": shift, "mean": mean, "variance": mean**2 + 0.5}
    source = model(nodes, constants, shape=x.shape)
    graph = optimise(import_onnx(source))
    (only,) = graph.nodes
    assert isinstance(only.op, DepthwiseVolume)
    (expected,) = ReferenceEvaluator(source).run(None, {"x": x})
    agrees(source, expected, x=x)


def test_volumes_move_nothing_between_layers() -> None:
    """A block with a filter for each channel has neither transposes nor stored sums."""
    w, v, u = normal(36, 16, 1, 1, 1), normal(36, 1, 3, 3, 3), normal(16, 36, 1, 1, 1)
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "a v", "b", group=36, pads=[1] * 6),
        node("Relu", "b", "c"),
        node("Conv", "c u", "d"),
        node("Add", "x d", "y"),
    ]
    source = model(nodes, {"w": w, "v": v, "u": u}, shape=(1, 16, 4, 7, 7))
    kinds = {type(n.op) for n in optimise(import_onnx(source)).nodes}
    assert kinds == {Conv, DepthwiseVolume, Reshape}
    x = normal(1, 16, 4, 7, 7)
    (expected,) = ReferenceEvaluator(source).run(None, {"x": x})
    agrees(source, expected, x=x)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("attributes", [*VOLUMES, {"ceil_mode": 1, "strides": [2, 2, 3]}])
def test_pools_of_volumes(operator: str, attributes: dict[str, Any]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x = normal(2, 3, 7, 6, 8)
    pool = node(operator, "x", "y", kernel_shape=[2, 3, 3], **attributes)
    source = model([pool], shape=x.shape, opset=19)
    session = onnxruntime.InferenceSession(source.SerializeToString())
    (expected,) = session.run(None, {"x": x})
    agrees(source, expected, x=x)


@pytest.mark.parametrize("axis", [1, -1])
def test_gathering_by_a_table_of_indices(axis: int) -> None:
    x, indices = normal(2, 6, 5), np.int64([[0, 3, -1], [2, 2, 1]])
    source = model([node("Gather", "x i", "y", axis=axis)], {"i": indices}, shape=x.shape)
    agrees(source, x.take(indices, axis), x=x)


@pytest.mark.parametrize("operator", ["GlobalMaxPool", "GlobalAveragePool"])
def test_global_pools_of_volumes(operator: str) -> None:
    x = normal(2, 3, 5, 6, 4)
    function = np.max if operator == "GlobalMaxPool" else np.mean
    source = model([node(operator, "x", "y")], shape=x.shape)
    agrees(source, function(x, axis=(2, 3, 4), keepdims=True), x=x)


@pytest.mark.parametrize(
    ("space", "attributes"),
    [
        ((9, 7), {"pads": [1, 0, 2, 1], "strides": [2, 1], "group": 2}),
        ((9, 7), {"dilations": [2, 1], "group": 4}),
        ((11,), {"pads": [2, 0], "strides": [2]}),
    ],
)
def test_convolutions_of_computed_weights(
    space: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    x, kernel = normal(2, 4, *space), (3, 2)[: len(space)]
    w = normal(8, 4 // attributes.get("group", 1), *kernel)
    operands = {"x": x, "w": w, "b": normal(8)}
    source = model([node("Conv", "x w b", "y", **attributes)], shape=x.shape)
    for name in ("w", "b"):
        given = helper.make_tensor_value_info(name, 1, operands[name].shape)
        source.graph.input.append(given)
    (expected,) = ReferenceEvaluator(source).run(None, operands)
    agrees(source, expected, **operands)
    fixed = model([node("Conv", "x w b", "y", **attributes)], {"w": w}, shape=x.shape)
    fixed.graph.input.append(given)
    agrees(fixed, expected, x=x, b=operands["b"])
    turned = model([node("Conv", "v x b", "y", **attributes)], {"v": x, "b": operands["b"]})
    turned.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, w.shape))
    agrees(turned, expected, x=w)


TRANSPOSED_VOLUMES: list[dict[str, Any]] = [
    {"strides": [2, 2, 2]},
    {"strides": [2, 1, 2], "pads": [1, 0, 1, 0, 1, 1], "output_padding": [1, 0, 0]},
    {"strides": [3, 2, 1], "dilations": [2, 1, 2]},
    {"strides": [5, 1, 1], "pads": [2, 0, 0, 1, 0, 0]},  # no tap reaches some planes
]


@pytest.mark.parametrize("attributes", TRANSPOSED_VOLUMES)
@pytest.mark.parametrize("groups", [1, 3])
def test_transposed_convolutions_of_volumes(attributes: dict[str, Any], groups: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x, w, b = normal(2, 6, 3, 4, 2), normal(6, 2, 3, 2, 3), normal(2 * groups)
    conv = node("ConvTranspose", "x w b", "y", group=groups, **attributes)
    source = model([conv], {"w": w, "b": b}, shape=x.shape)
    session = onnxruntime.InferenceSession(source.SerializeToString())
    (expected,) = session.run(None, {"x": x})
    agrees(source, expected, x=x)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("sizes", [(6, 14), (3, 4)])
@pytest.mark.parametrize("outside", [0, 1])
def test_filters_of_resizing(
    mode: str, coordinates: str, sizes: tuple[int, int], outside: int
) -> None:
    x = normal(1, 2, 5, 7)
    attributes = {
        "mode": mode, "coordinate_transformation_mode": coordinates, "exclude_outside": outside,
        "antialias": int(sizes[0] < 5), "cubic_coeff_a": -0.5,
    }  # fmt: skip
    resize = node("Resize", "x _ _ sizes", "y", **attributes)
    source = model([resize], {"sizes": np.int64([1, 2, *sizes])}, shape=x.shape, opset=19)
    try:
        (expected,) = ReferenceEvaluator(source).run(None, {"x": x})
    except TypeError:  # onnx before 1.23
        pytest.skip("this onnx package cannot leave out what is outside in linear interpolation")
    agrees(source, expected, x=x)


@pytest.mark.parametrize(
    ("nodes", "opset"),
    [
        ([node("Swish", "x", "y", alpha=1.5)], 24),
        ([node("RMSNormalization", "x scale", "y", axis=-1)], 23),
        ([node("GroupNormalization", "x channel channel", "y", num_groups=2)], 21),
        ([node("LayerNormalization", "x scale", "y", axis=-1)], 17),
        ([node("Attention", "x x x", "y", scale=0.5, is_causal=1)], 23),
        ([node("RotaryEmbedding", "x cos sin", "y")], 23),
        ([node("ReduceSumSquare", "x", "y", keepdims=0)], 18),
    ],
)
def test_newer_operators_are_written_out(nodes: list[onnx.NodeProto], opset: int) -> None:
    weights = {
        "scale": normal(8), "channel": normal(4),
        "cos": normal(1, 8, 4), "sin": normal(1, 8, 4, seed=1),
    }  # fmt: skip
    used = {name for n in nodes for name in n.input}
    source = model(nodes, {k: v for k, v in weights.items() if k in used}, opset=opset)
    source.ir_version = 11
    x = normal(1, 4, 8, 8)
    (expected,) = ReferenceEvaluator(source).run(None, {"x": x})
    agrees(source, np.asarray(expected), x=x)


@pytest.mark.parametrize(
    "attributes",
    [
        {"ceil_mode": 1, "strides": [2, 2]},
        {"p": 1, "ceil_mode": 1, "strides": [2, 3], "pads": [1, 0, 0, 1]},
        {"p": 3, "dilations": [1, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ],
)
def test_norms_of_windows(attributes: dict[str, Any]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    x = normal(2, 3, 8, 7)
    pool = node("LpPool", "x", "y", kernel_shape=[3, 2], **attributes)
    source = model([pool], shape=x.shape, opset=22)
    session = onnxruntime.InferenceSession(source.SerializeToString())
    (expected,) = session.run(None, {"x": x})
    agrees(source, expected, x=x)


@pytest.mark.parametrize("p", [1, 2])
def test_norms_of_whole_axes(p: int) -> None:
    x = normal(2, 3, 4, 5)
    x[0, :, 1] = 0  # a norm of zero divides nothing
    norm = np.linalg.norm(x, p, axis=1, keepdims=True)
    source = model([node("LpNormalization", "x", "y", p=p, axis=1)], shape=x.shape)
    agrees(source, np.divide(x, norm, out=np.zeros_like(x), where=norm > 0), x=x)
    source = model([node("GlobalLpPool", "x", "y", p=p)], shape=x.shape)
    agrees(source, (np.abs(x) ** p).sum((2, 3), keepdims=True) ** (1 / p), x=x)


def test_volumes_of_odd_channels_lie_in_blocks() -> None:
    """In NHWC, in which planes are images, their vectors would begin inside cache lines."""
    u, w, v = normal(24, 3, 1, 3, 3), normal(54, 24, 1, 1, 1), normal(54, 1, 3, 3, 3)
    nodes = [
        node("Conv", "x u", "a", strides=[1, 2, 2], pads=[0, 1, 1, 0, 1, 1]),
        node("Conv", "a w", "b"),
        node("Conv", "b v", "c", group=54, pads=[1] * 6),
        node("Conv", "c t", "y"),
    ]
    constants = {"u": u, "w": w, "v": v, "t": normal(24, 54, 1, 1, 1)}
    source = model(nodes, constants, shape=(1, 3, 8, 112, 112))
    plan = str(fastrun.load(source, policy="heuristic").plan)
    (line,) = (line for line in plan.splitlines() if "DepthwiseVolume" in line)
    assert "NHWC" not in line

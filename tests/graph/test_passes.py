"""Each pass alone: what it changes, what it must leave, and that results stay equal."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import (
    Affine,
    Binary,
    Conv,
    ConvTranspose,
    Identity,
    Pad,
    Reshape,
    Unary,
)
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.cleanup import drop_identities, fold_constants, fold_padding
from fastrun.graph.passes.crop_filters import crop_filters
from fastrun.graph.passes.fold_affine import fold_affine, normalise_affine
from fastrun.graph.passes.fuse import fuse_activation, fuse_add
from fastrun.graph.passes.pipeline import Pass, optimise
from fastrun.graph.reference.interpreter import run
from tests.support.graph_models import batch_norm, model, node, normal

CONV = node("Conv", "x w", "c", pads=[1] * 4)
W = {"w": normal(4, 4, 3, 3) * np.float32(0.2)}
BN = node("BatchNormalization", "c scale shift mean variance", "n")


def checked(m: onnx.ModelProto, *passes: Pass, onnx_can: bool = True) -> Graph:
    """The graph after the passes; it must give the results of ONNX's reference.

    Where that has no right answer (cropping pads, grouped ConvTranspose), our own is the truth.
    """
    graph = import_onnx(m)
    x = normal(*graph.shape("x"), seed=5)
    truth = (
        ReferenceEvaluator(m).run(None, {"x": x}) if onnx_can else [*run(graph, {"x": x}).values()]
    )
    for step in passes:
        graph = step(graph)
    results = run(graph, {"x": x})
    assert list(results) == [value.name for value in m.graph.output]
    for expected, result in zip(truth, results.values(), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    return graph


def operators(graph: Graph) -> list[str]:
    return [type(n.op).__name__ for n in graph.nodes]


def also_output(m: onnx.ModelProto, name: str) -> onnx.ModelProto:
    m.graph.output.append(helper.make_empty_tensor_value_info(name))
    return m


@pytest.mark.parametrize(
    "trivial",
    [
        node("Identity", "c", "i"),
        node("Dropout", "c", "i"),
        node("Reshape", "c same", "i"),
        node("Transpose", "c", "i", perm=[0, 1, 2, 3]),
        node("Pad", "c none", "i"),
        node("Slice", "c zero big", "i"),
        node("Concat", "c", "i", axis=1),
        node("Resize", "c _ ones", "i"),
        node("Cast", "c", "i", to=1),
        node("Flatten", "c", "i", axis=1),
    ],
)
def test_identities_go_and_what_moves_stays(trivial: onnx.NodeProto) -> None:
    weights = W | {
        "same": np.array([1, -1, 8, 8]),
        "none": np.zeros(8, np.int64),
        "zero": np.array([0]),
        "big": np.array([99]),
        "ones": np.ones(4, np.float32),
    }
    m = model([CONV, trivial, node("Relu", "i", "y")], weights)
    moves = trivial.op_type == "Flatten"
    graph = checked(m, drop_identities)
    assert operators(graph) == ["Conv", *(["Reshape"] if moves else []), "Unary"]


def test_identities_between_input_and_output_keep_both_names() -> None:
    m = model([node("Identity", "x", "i"), node("Identity", "i", "y")])
    assert [n.op for n in checked(m, drop_identities).nodes] == [Identity()]
    m = also_output(model([CONV, node("Identity", "c", "y")], W), "c")
    assert operators(checked(m, drop_identities)) == ["Conv", "Identity"]
    m = also_output(model([CONV, node("Identity", "c", "y"), node("Relu", "c", "r")], W), "r")
    graph = checked(m, drop_identities)
    assert operators(graph) == ["Conv", "Unary"]
    assert graph.nodes[1].inputs == ("y",)


def test_constants_fold() -> None:
    graph = import_onnx(model([node("Relu", "x", "r"), node("Add", "r b", "y")], {"b": normal(8)}))
    extra = (
        graph.nodes[0].__class__("half", Unary("exp"), ("b",), ("e",)),
        graph.nodes[0],
        graph.nodes[1].__class__("sum", Binary("add"), ("r", "e"), ("y",)),
    )
    graph = graph.with_nodes(extra, {**graph.tensors, "e": graph.tensor("b")}, graph.constants, {})
    folded = fold_constants(graph)
    assert operators(folded) == ["Unary", "Binary"]
    assert set(folded.constants) == {"e"}
    np.testing.assert_allclose(folded.constants["e"], np.exp(normal(8)), rtol=1e-6)
    assert folded.constants["e"].dtype == np.float32


def test_a_network_of_constants() -> None:
    m = model([node("Exp", "b", "y"), CONV, node("Relu", "c", "r")], W | {"b": normal(3)})
    assert operators(checked(also_output(m, "r"), optimise)) == ["Conv"]


@pytest.mark.parametrize(
    ("pads", "value", "folds"),
    [
        ([0, 0, 1, 0, 0, 0, 2, 3], 0.0, True),
        ([0, 0, 1, 0, 0, 0, 2, 3], 1.0, False),
        ([0, 1, 0, 0, 0, 0, 0, 0], 0.0, False),
        ([0, 0, -1, 0, 0, 0, 0, 0], 0.0, False),
    ],
)
def test_padding(pads: list[int], value: float, folds: bool) -> None:
    nodes = [node("Pad", "x pads v", "p"), node("Conv", "p w", "y", pads=[0, 1, 0, 0])]
    weights = {"pads": np.array(pads), "v": np.float32(value)}
    m = model(nodes, weights | {"w": normal(4, 5 if pads[1] else 4, 3, 3)})
    graph = checked(m, fold_padding, onnx_can=min(pads) >= 0)
    assert operators(graph) == (["Conv"] if folds else ["Pad", "Conv"])
    if folds:
        assert isinstance(graph.nodes[0].op, Conv)
        assert graph.nodes[0].op.padding == (1, 1, 2, 3)


@pytest.mark.parametrize(
    ("value", "pool", "folds"),
    [
        (0, node("AveragePool", "p", "y", kernel_shape=[3, 3]), True),
        (0, node("AveragePool", "p", "y", kernel_shape=[3, 3], pads=[1] * 4), False),
        (0, node("AveragePool", "p", "y", kernel_shape=[3, 3], pads=[1, 0, 1, 1],
                 count_include_pad=1), True),
        (0, node("AveragePool", "p", "y", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
         False),
        (0, node("AveragePool", "p", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), False),
        (1, node("AveragePool", "p", "y", kernel_shape=[3, 3]), False),
        (0, node("MaxPool", "p", "y", kernel_shape=[3, 3], strides=[2, 2]), False),
        (-np.inf, node("MaxPool", "p", "y", kernel_shape=[3, 3], strides=[2, 2]), True),
    ],
)  # fmt: skip
def test_padding_of_pools(value: float, pool: onnx.NodeProto, folds: bool) -> None:
    weights = {"pads": np.array([0, 0, 1, 2, 0, 0, 1, 0]), "v": np.float32(value)}
    graph = checked(model([node("Pad", "x pads v", "p"), pool], weights), fold_padding)
    assert operators(graph) == (["Pool"] if folds else ["Pad", "Pool"])


def test_a_maximum_of_what_is_never_negative_pads_with_zeros() -> None:
    nodes = [
        node("Relu", "x", "r"),
        node("Pad", "r pads", "p"),
        node("MaxPool", "p", "y", kernel_shape=[3, 3], strides=[2, 2]),
    ]
    graph = checked(model(nodes, {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}), fold_padding)
    assert operators(graph) == ["Unary", "Pool"]


def test_reflected_padding_and_shared_padding_stay() -> None:
    weights = W | {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    conv = node("Conv", "p w", "y")
    m = model([node("Pad", "x pads", "p", mode="reflect"), conv], weights)
    assert isinstance(checked(m, fold_padding).nodes[0].op, Pad)
    m = also_output(model([node("Pad", "x pads", "p"), conv], weights), "p")
    assert isinstance(checked(m, fold_padding).nodes[0].op, Pad)


@pytest.mark.parametrize(
    ("size", "taps", "stride", "pads", "dilation", "kept"),
    [
        (8, 3, 1, (24, 24), 24, 1),
        (8, 3, 1, (8, 8), 8, 1),
        (8, 3, 1, (7, 7), 7, 3),
        (8, 5, 1, (12, 12), 6, 3),
        (8, 3, 1, (16, 0), 8, 1),
        (1, 3, 1, (1, 1), 1, 1),
        (2, 3, 2, (1, 1), 1, 2),
        (2, 3, 1, (1, 1), 1, 3),
        (1, 3, 2, (3, 3), 2, 1),  # no tap meets a pixel, but a filter has at least one
        (3, 3, 2, (0, 16), 8, 1),
        (3, 3, 2, (0, 15), 8, 2),  # two taps less would need a padding of -1
        (4, 3, 8, (1, 6), 3, 2),
    ],
)
def test_taps_that_meet_only_padding_go(
    size: int, taps: int, stride: int, pads: tuple[int, int], dilation: int, kept: int
) -> None:
    begin, end = pads
    conv = node(
        "Conv", "x w b", "y", strides=[1, stride], pads=[0, begin, 0, end], dilations=[1, dilation]
    )
    weights = {"w": normal(6, 4, 1, taps), "b": normal(6)}
    graph = checked(model([conv], weights, shape=(2, 4, 3, size)), crop_filters)
    assert graph.constants[graph.nodes[0].inputs[1]].shape[-1] == kept


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transpose", [False, True])
def test_batch_norm_folds(bias: bool, groups: int, transpose: bool) -> None:
    op, shape = ("ConvTranspose", (4, 8 // groups)) if transpose else ("Conv", (8, 4 // groups))
    conv = node(op, "x w b" if bias else "x w", "c", group=groups, strides=[2, 2])
    weights = {"w": normal(*shape, 3, 3), "b": normal(8)} | batch_norm(8)
    m = model([conv, BN, node("Identity", "n", "y")], weights)
    passes = (drop_identities, normalise_affine, fold_affine)
    graph = checked(m, *passes, onnx_can=not transpose or groups == 1)
    (only,) = graph.nodes
    assert isinstance(only.op, ConvTranspose if transpose else Conv)
    assert only.outputs == ("y",)
    assert all(a.dtype == np.float32 for a in graph.constants.values())
    assert len(graph.constants) == 2


def test_batch_norm_of_a_shared_or_absent_convolution_stays() -> None:
    weights = W | batch_norm(4)
    m = also_output(model([CONV, BN, node("Relu", "n", "y")], weights), "c")
    assert operators(checked(m, optimise)) == ["Conv", "Affine"]
    m = model([node("Relu", "x", "c"), BN, node("Identity", "n", "y")], weights)
    assert operators(checked(m, optimise)) == ["Unary", "Affine"]


def test_weights_shared_by_two_convolutions_fold_apart() -> None:
    nodes = [
        CONV,
        BN,
        node("Conv", "n w", "d", pads=[1] * 4),
        node("Mul", "d two", "y"),
    ]
    graph = checked(model(nodes, W | batch_norm(4) | {"two": np.float32(2)}), optimise)
    assert operators(graph) == ["Conv", "Conv"]
    assert len(graph.constants) == 4


@pytest.mark.parametrize(
    ("op", "order", "value", "folds"),
    [
        ("Mul", "c k", normal(4, 1, 1), True),
        ("Mul", "k c", normal(1, 4, 1, 1), True),
        ("Add", "k c", normal(4, 1, 1), True),
        ("Sub", "c k", normal(1), True),
        ("Div", "c k", np.array(3, np.float32), True),
        ("Sub", "k c", normal(4, 1, 1), False),
        ("Div", "c k", normal(8), False),
        ("Add", "c k", normal(1, 4, 8, 8), False),
        ("Add", "c k", normal(1, 1, 4, 1, 1), False),
        ("Pow", "c k", np.array(2, np.float32), False),
    ],
)
def test_arithmetic_with_one_constant_per_channel_folds(
    op: str, order: str, value: np.ndarray, folds: bool
) -> None:
    m = model([CONV, node(op, order, "y")], W | {"k": value})
    kept = "Unary" if op == "Pow" else "Binary"
    assert operators(checked(m, optimise)) == (["Conv"] if folds else ["Conv", kept])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("op", "tiny"), [("Div", 1e-40), ("Div", 0.0), ("Add", 1e-45)])
def test_what_has_no_reciprocal_stays_a_divisor(op: str, tiny: float) -> None:
    """0 / 1e-40 is 0, but 0 times infinity is not."""
    m = model([CONV, node(op, "c k", "y")], W | {"k": np.array(tiny, np.float32)})
    graph = optimise(import_onnx(m))
    assert operators(graph) == (["Conv"] if op == "Add" else ["Conv", "Binary"])


@pytest.mark.parametrize(
    ("first", "fused"),
    [
        ([node("Relu", "c", "r"), node("Mul", "r k", "y")], fuse_activation),
        ([node("Add", "c x", "r"), node("Mul", "r k", "y")], fuse_add),
    ],
)
def test_scales_do_not_fold_into_what_is_not_linear(
    first: list[onnx.NodeProto], fused: Pass
) -> None:
    m = model([CONV, *first], W | {"k": normal(4, 1, 1)})
    graph = checked(m, fused, normalise_affine, fold_affine)
    assert operators(graph) == ["Conv", "Binary"]


def test_a_chain_of_scales_without_convolution_becomes_one() -> None:
    nodes = [
        node("Relu", "x", "c"),
        BN,
        node("Mul", "n k", "m"),
        node("Add", "m k", "a"),
        node("Relu", "a", "y"),
    ]
    graph = checked(model(nodes, batch_norm(4) | {"k": normal(4, 1, 1)}), normalise_affine)
    assert [n.op for n in graph.nodes] == [Unary("relu"), Affine(), Unary("relu")]


def test_arithmetic_that_folds_into_nothing_stays_as_it_is() -> None:
    m = model([node("Mul", "x k", "m"), node("Abs", "m", "y")], {"k": normal(4, 1, 1)})
    assert operators(checked(m, optimise)) == ["Binary", "Unary"]


def test_arithmetic_in_a_row_is_one_scale_and_shift() -> None:
    nodes = [node("Sub", "x mean", "a"), node("Div", "a deviation", "b"), node("Relu", "b", "y")]
    constants = {"mean": normal(1, 4, 1, 1), "deviation": np.float32(3) + normal(4, 1, 1)}
    graph = checked(model(nodes, constants), optimise)
    assert [n.op for n in graph.nodes] == [Affine("relu")]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(6,), (1, 6), (), None])
def test_batch_norm_after_a_dense_layer(transposed: int, bias: tuple[int, ...] | None) -> None:
    gemm = node("Gemm", "x w" if bias is None else "x w b", "c", transB=transposed)
    weights = {"w": normal(6, 4) if transposed else normal(4, 6), "b": normal(*bias or ())}
    nodes = [gemm, BN, node("Identity", "n", "y")]
    graph = checked(model(nodes, weights | batch_norm(6), shape=(5, 4)), optimise)
    assert operators(graph) == (["Gemm", "Affine"] if bias == () else ["Gemm"])


def test_batch_norm_with_computed_parameters_stays() -> None:
    nodes = [
        node("GlobalAveragePool", "x", "g"),
        node("Reshape", "g four", "scale"),
        node("BatchNormalization", "x scale shift mean variance", "y"),
    ]
    weights: dict[str, np.ndarray] = {**batch_norm(4), "four": np.array([4])}
    del weights["scale"]
    assert operators(checked(model(nodes, weights), optimise)) == ["Pool", "Reshape", "Numpy"]


@pytest.mark.parametrize("op", ["Add", "Sum"])
@pytest.mark.parametrize("order", ["c x", "x c"])
def test_residual_add_then_activation(op: str, order: str) -> None:
    m = model([CONV, node(op, order, "s"), node("Relu", "s", "y")], W)
    (only,) = checked(m, fuse_add, fuse_activation).nodes
    assert isinstance(only.op, Conv)
    assert only.op.activation == "relu"
    assert only.inputs == ("x", "w", "", "x")


def test_of_two_convolutions_the_first_operand_adds_the_other() -> None:
    other = node("Conv", "x v", "d")
    weights = W | {"v": normal(4, 4, 1, 1)}
    for nodes in ([CONV, other], [other, CONV]):
        graph = checked(model([*nodes, node("Add", "c d", "y")], weights), fuse_add)
        assert [n.name for n in graph.nodes] == ["d", "c"]
        assert graph.nodes[1].inputs == ("x", "w", "", "d")


@pytest.mark.parametrize(
    "tail",
    [
        [node("Add", "c c", "y")],
        [node("Relu", "c", "r"), node("Add", "c r", "y")],
        [node("Add", "c row", "y")],
        [node("Relu", "c", "r"), node("Add", "r x", "y")],
        [node("Sub", "c x", "y")],
    ],
    ids=["itself", "own descendant", "broadcast", "after activation", "subtraction"],
)
def test_adds_that_do_not_fuse(tail: list[onnx.NodeProto]) -> None:
    m = model([CONV, *tail], W | {"row": normal(1, 1, 8, 8)})
    graph = checked(m, fuse_activation, fuse_add)
    assert all(not n.input(3) for n in graph.nodes)


def test_three_summands_fuse_one() -> None:
    weights = W | {"v": normal(4, 4, 1, 1)}
    m = model([CONV, node("Conv", "x v", "d"), node("Sum", "x c d", "y")], weights)
    graph = checked(m, fuse_add)
    assert operators(graph) == ["Conv", "Conv"]
    assert all(n.input(3) for n in graph.nodes)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (node("Relu", "c", "y"), "relu"),
        (node("Clip", "c zero six", "y"), "relu6"),
        (node("Clip", "c zero", "y"), "relu"),
        (node("HardSwish", "c", "y"), "hardswish"),
        (node("Sigmoid", "c", "y"), "sigmoid"),
        (node("Clip", "c six", "y"), ""),
        (node("Tanh", "c", "y"), "tanh"),
        (node("LeakyRelu", "c", "y", alpha=0.2), "leaky0.2"),
        (node("LeakyRelu", "c", "y", alpha=1 / 3), "leaky0.33333334"),
        (node("LeakyRelu", "c", "y", alpha=2.0), ""),
        (node("LeakyRelu", "c", "y", alpha=1e-9), ""),
        (node("Elu", "c", "y"), ""),
    ],
)
def test_activations(op: onnx.NodeProto, name: str) -> None:
    m = model([CONV, op], W | {"zero": np.float32(0), "six": np.float32(6)})
    graph = checked(m, fuse_activation)
    assert isinstance(graph.nodes[0].op, Conv)
    assert graph.nodes[0].op.activation == name
    assert len(graph.nodes) == (1 if name else 2)


def test_an_activation_whose_input_is_read_twice_stays() -> None:
    gated = [node("Sigmoid", "c", "s"), node("Sub", "c s", "y")]
    assert operators(checked(model([CONV, *gated], W), optimise)) == ["Conv", "Unary", "Binary"]
    m = also_output(model([CONV, node("Relu", "c", "y")], W), "c")
    assert operators(checked(m, optimise)) == ["Conv", "Unary"]


def test_two_activations_fuse_one() -> None:
    m = model([CONV, node("Relu", "c", "r"), node("Sigmoid", "r", "y")], W)
    assert operators(checked(m, optimise)) == ["Conv", "Unary"]


def test_an_old_clip_and_an_old_residual_network() -> None:
    nodes = [
        CONV,
        node("Clip", "c", "r", min=0.0, max=6.0),
        node("Conv", "r w", "d", pads=[1] * 4),
        node("Add", "d x", "s"),
        node("Dropout", "s", "t"),
        node("GlobalAveragePool", "t", "g"),
        node("Reshape", "g two", "y"),
    ]
    m = model(nodes, W | {"two": np.array([0, -1])}, opset=9)
    graph = checked(m, optimise)
    assert operators(graph) == ["Conv", "Conv", "Pool", "Reshape"]
    assert isinstance(graph.nodes[-1].op, Reshape)


def random_network(seed: int) -> onnx.ModelProto:
    """Twelve operations that keep the shape, each on values picked at random among the earlier."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {
        "k": normal(4, 1, 1),
        "half": np.float32(0.5),
        "six": np.float32(6),
        "sixth": np.float32(1 / 6),
        "three": np.float32(3),
        "zero": np.float32(0),
        "same": np.array([1, 4, 6, 6]),
        "split": np.array([1, 2, 2, 6, 6]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    } | batch_norm(4)
    values = ["x"]
    nodes: list[onnx.NodeProto] = []

    def emit(op: str, inputs: str, **attributes: object) -> str:
        nodes.append(node(op, inputs, f"v{len(nodes)}", **attributes))
        return f"v{len(nodes) - 1}"

    for index in range(12):
        # Recent values more often: chains are what the passes look for.
        a, b = (values[-1 - min(int(rng.geometric(0.6)) - 1, len(values) - 1)] for _ in "ab")
        weights[f"w{index}"] = normal(4, 4, 3, 3, seed=index) * np.float32(0.2)
        match int(rng.integers(0, 14)):
            case 0 | 1 | 2:
                values.append(emit("Conv", f"{a} w{index}", pads=[1] * 4))
            case 3:
                values.append(emit("Conv", f"{emit('Pad', f'{a} pads')} w{index}"))
            case 4 | 5:
                values.append(emit("BatchNormalization", f"{a} scale shift mean variance"))
            case 6 | 7:
                values.append(emit("Add", f"{a} {b}"))
            case 8:
                values.append(emit(str(rng.choice(["Add", "Mul", "Sub", "Div"])), f"{a} k"))
            case 9:
                values.append(emit("Clip", f"{a} zero six"))
            case 10:
                values.append(emit(str(rng.choice(["Relu", "Identity", "Sigmoid"])), a))
            case 11:
                gate = emit("Clip", f"{emit('Add', f'{a} three')} zero six")
                values.append(emit("Mul", f"{emit('Mul', f'{a} {gate}')} sixth"))
            case 12:
                swapped = emit("Transpose", emit("Reshape", f"{a} split"), perm=[0, 2, 1, 3, 4])
                values.append(emit("Reshape", f"{swapped} same"))
            case _:
                values.append(emit("Mul", f"{a} half"))
    m = model(nodes, weights, shape=(1, 4, 6, 6), output=values[-1])
    inner = [v for v in values[1:-1] if rng.random() < 0.1]
    for name in inner:
        also_output(m, name)
    return m


@pytest.mark.parametrize("seed", range(150))
def test_random_networks_compute_the_same(seed: int) -> None:
    graph = import_onnx(random_network(seed))
    optimised = optimise(graph)
    x = {"x": normal(1, 4, 6, 6, seed=seed)}
    before, after = run(graph, x), run(optimised, x)
    assert list(before) == list(after)
    for name, truth in before.items():
        np.testing.assert_allclose(after[name], truth, rtol=1e-5, atol=1e-5 * np.abs(truth).max())
    assert len(optimised.nodes) <= len(graph.nodes)
    assert len(optimise(optimised).nodes) <= len(optimised.nodes)

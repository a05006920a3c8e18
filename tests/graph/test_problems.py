"""From any ONNX form of a convolution to its problem, and clear errors where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fastrun.graph.core.errors import GraphError, ModelFileError, UnsupportedError
from fastrun.graph.core.problems import DistinctProblem, convolutions, to_tune
from fastrun.graph.frontend.file import Source
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from tests.support.graph_models import batch_norm, model, node, normal

W3: dict[str, np.ndarray] = {"w": normal(6, 4, 3, 3)}
CONV = node("Conv", "x w", "y")


def network_problems(
    source: Source, shapes: dict[str, tuple[int, ...]] | None = None
) -> list[DistinctProblem]:
    return to_tune(optimise(load_network(source, shapes)))


def only_problem(m: onnx.ModelProto, **shapes: tuple[int, ...]) -> str:
    ((problem, occurrences, nodes),) = network_problems(m, shapes or None)
    assert (occurrences, len(nodes)) == (1, 1)
    return str(problem)


@pytest.mark.parametrize(
    ("attributes", "weights", "text"),
    [
        ({}, (6, 4, 3, 3), "64x9 6x3x3 s1 p0"),
        ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, (6, 4, 3, 3), "64x9 6x3x3 s1 p1"),
        ({"pads": [0, 1, 2, 3]}, (6, 4, 3, 3), "64x9 6x3x3 s1 p0,1,2,3"),
        ({"strides": [2, 1]}, (6, 4, 3, 1), "64x9 6x3x1 s2x1 p0"),
        ({"dilations": [1, 2], "group": 2}, (6, 2, 3, 3), "64x9 6x3x3 s1 p0 d1x2 g2"),
        ({"group": 4}, (8, 1, 5, 5), "64x9 8x5x5 s1 p0 g4"),
        ({"auto_pad": "VALID"}, (6, 4, 3, 3), "64x9 6x3x3 s1 p0"),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (6, 4, 3, 3), "64x9 6x3x3 s2 p0,1,1,1"),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, (6, 4, 3, 3), "64x9 6x3x3 s2 p1,1,0,1"),
        (
            {"auto_pad": "SAME_UPPER", "dilations": [2, 2]},
            (6, 4, 2, 2),
            "64x9 6x2x2 s1 p1 d2",
        ),
    ],
)
def test_every_attribute_form(
    attributes: dict[str, object], weights: tuple[int, ...], text: str
) -> None:
    m = model(
        [node("Conv", "x w", "y", **attributes)], {"w": normal(*weights)}, shape=(1, 4, 64, 9)
    )
    assert only_problem(m) == f"conv 1x4x{text}"


def test_the_problem_has_the_shape_that_onnx_infers() -> None:
    m = model([node("Conv", "x w", "y", auto_pad="SAME_LOWER", strides=[3, 2])], W3)
    graph = import_onnx(m)
    ((problem, _, _),) = convolutions(graph)
    assert graph.shape("y") == (problem.n, problem.oc, problem.oh, problem.ow)


def test_one_dimension_is_height_one() -> None:
    nodes = [
        node("Conv", "x w b", "c", pads=[2, 0], strides=[2], dilations=[3], group=2),
        node("Relu", "c", "y"),
    ]
    m = model(nodes, {"w": normal(6, 2, 5), "b": normal(6)}, shape=(2, 4, 40))
    assert only_problem(m) == "conv 2x4x1x40 6x1x5 s1x2 p0,2,0,0 d1x3 g2 bias relu"


def test_weights_may_be_computed_from_constants() -> None:
    nodes = [
        node("Constant", "", "flat", value=onnx.numpy_helper.from_array(normal(6 * 4 * 9))),
        node("Reshape", "flat shape", "w"),
        node("Conv", "x w", "y"),
    ]
    m = model(nodes, {"shape": np.array([6, 4, 3, 3])})
    assert only_problem(m) == "conv 1x4x8x8 6x3x3 s1 p0"


def test_padding_computed_from_the_input_shape_is_folded() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s two", "h"),
        node("Div", "h eight", "one"),
        node("Concat", "zeros one one zeros one one", "pads", axis=0),
        node("Pad", "x pads", "padded"),
        node("Conv", "padded w", "y", pads=[0, 1, 0, 1]),
    ]
    weights = W3 | {"two": np.array([2]), "eight": np.array([8]), "zeros": np.array([0, 0])}
    assert only_problem(model(nodes, weights)) == "conv 1x4x8x8 6x3x3 s1 p1x2"


def test_dynamic_same_padding_as_exporters_write_it() -> None:
    """Total padding by float arithmetic on the size, halves, then PyTorch's order of the sides."""

    def total(axis: str) -> list[onnx.NodeProto]:
        a = axis
        return [
            node("Gather", f"s {a}_index", f"{a}_size"),
            node("Cast", f"{a}_size", f"{a}_float", to=TensorProto.FLOAT),
            node("Div", f"{a}_float two.f", f"{a}_half"),
            node("Ceil", f"{a}_half", f"{a}_out.f"),
            node("Cast", f"{a}_out.f", f"{a}_out", to=TensorProto.INT64),
            node("Sub", f"{a}_out one", f"{a}_last"),
            node("Mul", f"{a}_last two", f"{a}_start"),
            node("Add", f"{a}_start three", f"{a}_end"),
            node("Sub", f"{a}_end {a}_size", f"{a}_total"),
            node("Max", f"{a}_total zero", f"{a}_pad"),
            node("Div", f"{a}_pad two", f"{a}_before"),
            node("Sub", f"{a}_pad {a}_before", f"{a}_after"),
        ]

    nodes = [
        node("Shape", "x", "s"),
        *total("h"),
        *total("w"),
        node("ConstantOfShape", "four", "outer", value=helper.make_tensor("v", 7, [1], [0])),
        node("Concat", "w_before w_after h_before h_after outer", "sides", axis=0),
        node("Reshape", "sides pairs", "table"),
        node("Slice", "table last first axis0 back", "reversed"),
        node("Transpose", "reversed", "columns", perm=[1, 0]),
        node("Reshape", "columns flat", "pads"),
        node("Pad", "x pads", "padded"),
        node("Conv", "padded w", "y", strides=[2, 2]),
    ]
    integers = {
        "h_index": 2,
        "w_index": 3,
        "zero": 0,
        "one": 1,
        "two": 2,
        "three": 3,
        "four": 4,
        "pairs": [-1, 2],
        "last": -1,
        "first": -(2**62),
        "axis0": 0,
        "back": -1,
        "flat": -1,
    }
    weights = W3 | {name: np.array(v).reshape(-1) for name, v in integers.items()}
    weights["two.f"] = np.array([2], np.float32)
    m = model(nodes, weights, shape=(1, 4, 8, 9))
    assert only_problem(m) == "conv 1x4x8x9 6x3x3 s2 p0,1,1,1"


def test_equal_problems_are_counted_in_order_of_first_appearance() -> None:
    nodes = [
        node("Conv", "x w", "a", pads=[1] * 4),
        node("Relu", "a", "b"),
        node("Conv", "b w", "c"),
        node("Conv", "b v", "d", pads=[1] * 4),
        node("Relu", "d", "e"),
        node("Concat", "c c", "y", axis=1),
        node("Identity", "e", "z"),
    ]
    m = model(nodes, {"w": normal(4, 4, 3, 3), "v": normal(4, 4, 3, 3, seed=1)})
    m.graph.output.append(helper.make_empty_tensor_value_info("z"))
    assert [(str(p), n, names) for p, n, names in network_problems(m)] == [
        ("conv 1x4x8x8 4x3x3 s1 p1 relu", 2, ("a", "d")),
        ("conv 1x4x8x8 4x3x3 s1 p0", 1, ("c",)),
    ]


def test_open_batch_is_one_and_shapes_override() -> None:
    for batch in ("N", 0, -1):
        m = model([node("Conv", "x w", "y")], W3, shape=(batch, 4, 8, 8))
        assert only_problem(m) == "conv 1x4x8x8 6x3x3 s1 p0"
    assert only_problem(m, x=(3, 4, 5, 6)) == "conv 3x4x5x6 6x3x3 s1 p0"


def test_a_built_in_network_for_another_batch() -> None:
    one = network_problems("shufflenetv2")
    four = network_problems("shufflenetv2", {"input": (4, 3, 224, 224)})
    assert [replace(p, n=4) for p, _, _ in one] == [p for p, _, _ in four]


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_every_opset(opset: int) -> None:
    nodes = [
        CONV,
        node("Relu", "y", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2]),
        node("GlobalAveragePool", "p", "g"),
        node("Flatten", "g", "f"),
        node("Softmax", "f", "s", axis=1),
    ]
    assert only_problem(model(nodes, W3, output="s", opset=opset)).endswith("6x3x3 s1 p0 relu")


def test_local_functions_are_inlined() -> None:
    block = helper.make_function(
        "our", "Block", ["x", "w"], ["y"], [CONV], [helper.make_opsetid("", 17)]
    )
    call = helper.make_node("Block", ["x", "w"], ["c"], name="call", domain="our")
    m = model([call, node("Relu", "c", "r")], W3, output="r")
    m.opset_import.append(helper.make_opsetid("our", 1))
    m.functions.append(block)
    assert only_problem(m) == "conv 1x4x8x8 6x3x3 s1 p0 relu"


def test_foreign_operators_do_not_hide_convolutions_whose_shape_is_known() -> None:
    nodes = [node("Hardmax", "x", "h"), node("Conv", "h w", "y")]
    assert only_problem(model(nodes, W3)) == "conv 1x4x8x8 6x3x3 s1 p0"


def test_batch_norm_of_a_file(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c scale shift mean variance", "n"),
        node("HardSwish", "n", "y"),
    ]
    path = tmp_path / "net.onnx"
    onnx.save(model(nodes, W3 | batch_norm(6)), path)
    ((problem, _, _),) = network_problems(path)
    assert str(problem) == "conv 1x4x8x8 6x3x3 s1 p0 bias hardswish"


@pytest.mark.parametrize(
    ("m", "message"),
    [
        (model([node("Conv", "x x", "y")], shape=(4, 4, 3, 3)), "no convolution"),
        (model([CONV], W3, shape=(1, 4, "height", 8)), r"1, 4, height, 8\).*\(1, 4, 224, 8\)"),
        (model([CONV], W3, shape=(1, 5, 8, 8)), "'y' .Conv.*do not fit 5 channels"),
        (model([CONV], {"w": normal(6, 4, 9, 9)}), "'y' .Conv"),
        (model([node("Conv", "x w b", "y")], W3 | {"b": normal(5)}), "a bias of shape"),
        (model([node("Conv", "x w", "y", kernel_shape=[2, 2])], W3), "'y' .Conv"),
        (model([node("Conv", "x w", "y", strides=[0, 1])], W3), "'y' .Conv"),
        (model([node("Conv", "x w", "y", pads=[-1, 0, 0, 0])], W3), "'y' .Conv"),
        (model([CONV]), "needs 'w', which the model does not contain"),
        (model([node("Conv", "z w", "a"), node("Relu", "a", "z")], W3, output="a"), "on itself"),
        (model([node("Relu", "x", "y")]), "no convolution"),
        (
            model([node("NonZero", "x", "i"), node("Cast", "i", "f", to=1),
                   node("Unsqueeze", "f zero", "u"), node("Conv", "u w", "y")],
                  {"w": normal(1, 4, 3), "zero": np.array([0])}),
            "no convolution",  # whose shape is known
        ),
        (
            model([node("ConvInteger", "x w", "y")], {"w": np.ones((6, 4, 3, 3), np.uint8)},
                  dtype=TensorProto.UINT8),
            "no convolution",
        ),
        (model([node("Reshape", "x s", "y")], {"s": np.array([7])}), "'y' .Reshape. is impossible"),
        (model([node("Add", "a b", "y")], {"a": normal(2), "b": normal(3)}), "is impossible"),
    ],
)  # fmt: skip
def test_errors_are_one_line_naming_the_node(m: onnx.ModelProto, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        network_problems(m)
    assert "\n" not in str(caught.value)


def test_convolutions_inside_and_before_control_flow() -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        inputs = "c v" if operator == "Conv" else "c"
        output = helper.make_empty_tensor_value_info(name)
        return helper.make_graph([node(operator, inputs, name)], name, [], [output])

    def choice(operator: str) -> onnx.ModelProto:
        decide = [node("ReduceMax", "x", "m", keepdims=0), node("Cast", "m", "b", to=9)]
        branches = {"then_branch": branch("t", operator), "else_branch": branch("e", "Neg")}
        nodes = [node("Conv", "x w", "c"), *decide, node("If", "b", "y", **branches)]
        return model(nodes, W3 | {"v": normal(6, 6, 1, 1)})

    for operator in ("Relu", "Conv"):
        assert only_problem(choice(operator)) == "conv 1x4x8x8 6x3x3 s1 p0"
    with pytest.raises(UnsupportedError, match=r"'y' \(If\) needs .*: Bernoulli inside it"):
        import_onnx(choice("Bernoulli")).check_supported()


def test_unknown_input_name() -> None:
    with pytest.raises(GraphError, match="no input 'data': its inputs are x"):
        network_problems(model([CONV], W3), {"data": (1, 4, 8, 8)})


def test_files_that_are_no_models(tmp_path: Path) -> None:
    whole = model([CONV], W3).SerializeToString()
    for name, content in (("cut", whole[: len(whole) // 2]), ("text", b"hello"), ("empty", b"")):
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=f"{name}.onnx") as caught:
            network_problems(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match="cannot be read"):
        network_problems(tmp_path)
    with pytest.raises(ModelFileError, match=r"did you mean .*cut\.onnx"):
        network_problems(tmp_path / "cu.onnx")
    with pytest.raises(ModelFileError, match="did you mean resnet18 or resnet50"):
        network_problems("resnet81")


def test_missing_external_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    m = model([CONV], {"w": normal(64, 4, 5, 5)})
    onnx.save(m, path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert str(network_problems(path)[0].problem) == "conv 1x4x8x8 64x5x5 s1 p0"
    os.truncate(tmp_path / "net.data", 1000)
    with pytest.raises(ModelFileError, match="external weights are unusable"):
        network_problems(path)
    (tmp_path / "net.data").unlink()
    with pytest.raises(ModelFileError, match=r"net\.data"):
        network_problems(path)


def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    path.write_bytes(b"hello")
    os.truncate(path, 2**31)
    with pytest.raises(ModelFileError, match=r"large\.onnx: larger than .* save it"):
        network_problems(path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = model([CONV, node("Relu", "y", "z")], W3, output="z").SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(GraphError) as caught:
            network_problems(path)
        assert "\n" not in str(caught.value)


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fastrun.graph.core.problems import to_tune;"
        "from fastrun.graph.networks import load_network;"
        "from fastrun.graph.passes.pipeline import optimise;"
        "to_tune(optimise(load_network('squeezenet1.1')));"
        "heavy = {'optuna', 'pandas', 'matplotlib', 'sqlalchemy', 'llvmlite'} & set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unsupported_is_a_graph_error() -> None:
    assert issubclass(UnsupportedError, GraphError)
    assert issubclass(ModelFileError, GraphError)
    assert issubclass(GraphError, ValueError)


def test_passes_do_not_change_the_graph_they_are_given() -> None:
    graph = import_onnx(model([CONV, node("Relu", "y", "z")], W3, output="z"))
    before = (graph.nodes, dict(graph.tensors), dict(graph.constants))
    assert len(optimise(graph).nodes) == 1
    assert (graph.nodes, dict(graph.tensors), dict(graph.constants)) == before


def test_damaged_files_give_errors_only(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s i", "n"),
        node("Concat", "n rest", "target", axis=0),
        node("Conv", "x w", "c", pads=[1] * 4, kernel_shape=[3, 3]),
        node("Reshape", "c target", "r"),
        node("Clip", "r low high", "q"),
        node("Conv", "q w", "d", auto_pad="SAME_UPPER"),
        node("MaxPool", "d", "e", kernel_shape=[2, 2], ceil_mode=1),
        node("Slice", "e start end", "y"),
    ]
    weights = {
        "w": normal(4, 4, 3, 3),
        "i": np.array([0]),
        "rest": np.array([4, 8, 8]),
        "low": np.float32(0),
        "high": np.float32(6),
        "start": np.array([0, 1]),
        "end": np.array([1, 3]),
    }
    whole = model(nodes, weights).SerializeToString()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.onnx"
    errors = []
    for _ in range(400):
        content = bytearray(whole)
        for at in rng.integers(0, len(whole), 2):
            content[at] = rng.integers(0, 256)
        path.write_bytes(content)
        try:
            network_problems(path)
        except GraphError as error:
            errors.append(str(error))
    assert 100 < len(errors) < 400
    assert not any("\n" in error for error in errors)

"""Operators without a kernel: NumPy computes them between native steps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import fastrun
from fastrun.graph.aot.export import ExportError, export
from fastrun.graph.build.steps import NumpyStep
from fastrun.graph.core.errors import InputError, UnsupportedError
from fastrun.graph.core.model import Array
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.plan import Plan
from fastrun.graph.reference import interpreter
from fastrun.graph.reference.corrected import GatherElements
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.kernels.ops.ranks import MOST
from fastrun.main import main
from fastrun.tuner.networks.outputs import difference, normal_inputs
from tests.support.agreement import assert_close
from tests.support.graph_models import model, node, normal

# More elements are put in order than a kernel does.
W = {
    "w": normal(20, 4, 3, 3),
    "v": normal(5, 20, 1, 1),
    "row": np.int64([1, -1]),
    "k": np.int64([MOST + 1]),
}


def between() -> onnx.ModelProto:
    """Convolutions before, between and behind operators on integers, and two more outputs."""
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("Reshape", "c row", "r"),
        node("TopK", "r k", "best places", axis=1),
        node("GatherElements", "r places", "again", axis=1),
        node("Sub", "best again", "nothing"),
        node("ReduceSum", "nothing", "zero", keepdims=1),
        node("Add", "c zero", "d"),
        node("Conv", "d v", "y"),
        node("NonZero", "nothing", "none"),
    ]
    made = model(nodes, W)
    made.graph.output.append(helper.make_empty_tensor_value_info("places"))
    made.graph.output.append(helper.make_empty_tensor_value_info("none"))
    return made


def truth(source: onnx.ModelProto, **inputs: Array) -> dict[str, Array]:
    names = [v.name for v in source.graph.output]
    evaluator = ReferenceEvaluator(source, new_ops=[GatherElements])
    return dict(zip(names, evaluator.run(None, inputs), strict=True))


def assert_runs(source: onnx.ModelProto, threads: int = 1, **inputs: Array) -> fastrun.Executable:
    network = fastrun.load(source, threads=threads, policy="heuristic")
    expected = truth(source, **inputs)
    for _ in range(2):
        found = network.run(inputs)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            assert_close(found[name], value)
    exact = interpreter.run(optimise(import_onnx(source)), inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(exact[name], value, rtol=1e-5, atol=1e-5)
    return network


@pytest.mark.parametrize("threads", [1, 2])
def test_numpy_computes_between_native_steps(threads: int) -> None:
    network = assert_runs(between(), threads, x=normal(1, 4, 8, 8))
    steps = network.profile(2)
    by_numpy = [step for step in steps if step["algorithm"] == "numpy"]
    assert [step["work"] for step in by_numpy] == [
        "TopK (NumPy)", "GatherElements (NumPy)", "NonZero (NumPy)"
    ]  # fmt: skip
    assert all(step["seconds"] > 0 and step["expected"] > 0 for step in by_numpy)
    assert sum(step["share"] for step in steps) == pytest.approx(1)
    assert network.seconds(2) > 0
    assert network.outputs == {"y": (1, 5, 8, 8), "places": (1, MOST + 1), "none": None}


def test_a_plan_with_numpy_steps_is_followed() -> None:
    x, made = normal(1, 4, 8, 8), fastrun.load(between(), policy="heuristic")
    network = fastrun.load(between(), plan=Plan.parse(str(made.plan)))
    for name, value in made.run({"x": x}).items():
        np.testing.assert_array_equal(network.run({"x": x})[name], value)


def test_clones_have_values_of_their_own() -> None:
    network = fastrun.load(between(), policy="heuristic")
    clone = network.clone()
    inputs = [normal(1, 4, 8, 8, seed=seed) for seed in range(2)]
    network.run({"x": inputs[0]})
    found = clone.run({"x": inputs[1]})
    np.testing.assert_array_equal(found["places"], truth(between(), x=inputs[1])["places"])


def test_memory_of_a_result_is_not_used_again() -> None:
    network = fastrun.load(between(), policy="heuristic")
    first = network.run({"x": normal(1, 4, 8, 8)})
    kept = {name: value.copy() for name, value in first.items()}
    network.run({"x": normal(1, 4, 8, 8, seed=1)})
    for name, value in kept.items():
        np.testing.assert_array_equal(first[name], value)


def test_shapes_may_depend_on_data() -> None:
    nodes = [
        node("NonZero", "x", "found"),
        node("Transpose", "found", "rows", perm=[1, 0]),
        node("GatherND", "x rows", "values"),
        node("Mul", "values two", "y"),
    ]
    source = model(nodes, {"two": np.float32(2)})
    network = fastrun.load(source, policy="heuristic")
    for share in (0.0, 0.3, 1.0):
        x = np.where(np.random.default_rng(0).random((1, 4, 8, 8)) < share, 3, 0).astype(np.float32)
        np.testing.assert_array_equal(network.run({"x": x})["y"], 2 * x[x != 0])
    assert network.outputs == {"y": None}


def test_integers_in_and_booleans_out() -> None:
    nodes = [
        node("Gather", "table ids", "words"),
        node("MatMul", "words v", "m"),
        node("Greater", "m zero", "y"),
    ]
    weights = {"table": normal(10, 8), "v": normal(8, 3), "zero": np.float32(0)}
    source = model(nodes, weights, shape=(2, 5), dtype=TensorProto.INT64)
    source.graph.input[0].name = "ids"
    ids = np.arange(10).reshape(2, 5)[:, ::-1].copy()
    network = assert_runs(source, ids=ids)
    assert network.inputs == {"ids": (2, 5)}
    with pytest.raises(InputError, match="'ids' is float32: give it as int64"):
        network.run({"ids": ids.astype(np.float32)})
    with pytest.raises(InputError, match=r"^input 'ids' has the index 109: node 'words' .*Gather"):
        network.run({"ids": ids + 100})


def test_plans_are_compared_on_inputs_of_the_models_types() -> None:
    nodes = [node("Gather", "table x", "words"), node("ArgMax", "words", "y", axis=-1)]
    source = model(nodes, {"table": normal(10, 8)}, shape=(2, 5), dtype=TensorProto.INT64)
    graph = optimise(import_onnx(source))
    inputs = normal_inputs(graph)
    assert inputs["x"].dtype == np.int64
    found = fastrun.load(source, policy="heuristic").run(inputs)["y"]
    assert difference({"y": found}, {"y": found}) == 0
    other = found.copy()
    other[0, 0] += 1
    assert difference({"y": found}, {"y": other}) == 0.1
    assert difference({"y": found}, {"y": found[:1]}) == np.inf


def branches(*operators: str) -> dict[str, onnx.GraphProto]:
    return {
        name: helper.make_graph(
            [node(operator, "c", f"{name}.c")],
            name,
            [],
            [helper.make_empty_tensor_value_info(f"{name}.c")],
        )
        for name, operator in zip(("then_branch", "else_branch"), operators, strict=True)
    }


def test_a_condition_may_depend_on_data() -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("ReduceMax", "x", "most", keepdims=0),
        node("Greater", "most zero", "positive"),
        node("If", "positive", "y", **branches("Relu", "Neg")),
    ]
    source = model(nodes, {"w": W["w"], "zero": np.float32(0)})
    for sign in (1, -1):
        assert_runs(source, x=sign * np.abs(normal(1, 4, 8, 8)))


def loop(shape: tuple[int, ...], trips: str) -> onnx.ModelProto:
    """Adds x to itself so many times, and returns every sum as well."""
    body = helper.make_graph(
        [node("Add", "s x", "t"), node("Identity", "going", "on"), node("Identity", "t", "part")],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("going", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, shape),
        ],
        [helper.make_empty_tensor_value_info(name) for name in ("on", "t", "part")],
    )
    made = helper.make_node("Loop", [trips, "", "x"], ["last", "y"], body=body)
    return model([made], {"three": np.array(3)}, shape=shape)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_loops_join_their_results_along_a_new_axis(shape: tuple[int, ...]) -> None:
    source, x = loop(shape, "n"), normal(*shape)
    source.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT64, ()))
    network = fastrun.load(source, policy="heuristic")
    for n in (1, 3):
        y = network.run({"x": x, "n": np.array(n)})["y"]
        np.testing.assert_allclose(y, np.stack([(2 + i) * x for i in range(n)]), rtol=1e-5)


def test_loops_of_a_known_length_are_written_out() -> None:
    source, x = loop((2, 3), "three"), normal(2, 3)
    source.graph.output.append(helper.make_empty_tensor_value_info("last"))
    network = fastrun.load(source, policy="heuristic")
    assert not any(isinstance(step, NumpyStep) for step in network.steps)
    found = network.run({"x": x})
    np.testing.assert_allclose(found["y"], np.stack([2 * x, 3 * x, 4 * x]), rtol=1e-5)
    np.testing.assert_allclose(found["last"], 4 * x, rtol=1e-5)


def test_what_numpy_computes_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^node 'best' \(TopK\) \(and 2 more\) .* NumPy"):
        export(optimise(import_onnx(between())), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_numpy_computes_is_written_to_onnx_again() -> None:
    source = between()
    source.opset_import[0].version = 19
    del source.graph.output[-1:]  # its shape depends on data
    written, x = export_onnx(optimise(import_onnx(source))), normal(1, 4, 8, 8)
    for name, value in truth(written, x=x).items():
        np.testing.assert_allclose(value, truth(source, x=x)[name], rtol=1e-5, atol=1e-5)
    old = import_onnx(
        model([node("TopK", "x k", "best y", axis=1)], {"k": W["k"]}, opset=10, shape=(1, 2000))
    )
    with pytest.raises(UnsupportedError, match=r"'best' \(TopK\) of opset 10 cannot be written"):
        export_onnx(old)


def test_show_lists_them_with_their_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(between(), tmp_path / "between.onnx")
    assert main(["show", str(tmp_path / "between.onnx")]) == 0
    out = capsys.readouterr().out
    assert "3 nodes without a kernel, computed by NumPy between kernels in" in out
    assert re.search(r"'best' \(TopK\) +[\d.]+ [um]s", out)


def test_a_step_says_which_values_it_reads_last() -> None:
    network = fastrun.load(between(), policy="heuristic")
    steps = [step for step in network.steps if isinstance(step, NumpyStep)]
    assert [step.last for step in steps] == [(), (), ()]  # "places" is an output
    assert {*steps[1].reads} == {"r"}
    assert {*steps[1].writes} == {"again"}


@pytest.mark.parametrize(
    ("nodes", "weights", "message"),
    [
        (
            [node("Conv", "f x", "y")],
            {"f": normal(1, 1, 3, 4, 5)},
            "'y' (Conv) runs in NumPy, which is slow: a kernel needs one or two spatial axes, or",
        ),
        (
            [node("ConvTranspose", "f x", "y")],
            {"f": normal(1, 1, 3, 3, 3)},
            "'y' (ConvTranspose) runs in NumPy, which is slow: a kernel needs 'x' as a constant",
        ),
    ],
)
def test_a_product_in_numpy_is_warned_of(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], message: str
) -> None:
    shape = (2, 1, 2, 2, 2) if nodes[0].op_type == "Conv" else (1, 2, 2, 2, 2)
    with pytest.warns(UserWarning, match=re.escape(message)):
        fastrun.load(model(nodes, weights, shape=shape), policy="heuristic")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Conv", "x w", "y")],
        [node("ConvTranspose", "x w", "a"), node("Relu", "a", "y")],
        [node("GlobalAveragePool", "x", "y")],
        [node("GlobalMaxPool", "x", "a"), node("Flatten", "a", "b"), node("Softmax", "b", "y")],
        [node("MaxPool", "x", "y", kernel_shape=[2, 2])],
    ],
    ids=lambda nodes: nodes[0].op_type,
)
def test_no_images(nodes: list[onnx.NodeProto], recwarn: pytest.WarningsRecorder) -> None:
    """A batch of none has results without values, and no warning of slow steps."""
    onnxruntime = pytest.importorskip("onnxruntime")
    source = model(nodes, {"w": normal(4, 4, 3, 3)}, shape=(0, 4, 6, 5))
    x = np.zeros((0, 4, 6, 5), np.float32)
    found = fastrun.load(source, policy="heuristic").run({"x": x})["y"]
    session = onnxruntime.InferenceSession(source.SerializeToString())
    (expected,) = session.run(None, {"x": x})
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert not [w for w in recwarn if "NumPy" in str(w.message)]

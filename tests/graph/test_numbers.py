"""Truth values and integers that kernels compute as float32, against onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fastrun
from fastrun.graph.aot.check import check
from fastrun.graph.aot.export import export
from fastrun.graph.build.steps import NumpyStep
from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from fastrun.graph.to_onnx.model import export_onnx
from tests.support.agreement import assert_close
from tests.support.graph_models import Weights, model, node, normal
from tests.support.peer import by_onnxruntime

X = normal(1, 4, 8, 8)
NAN = np.where(normal(1, 4, 8, 8, seed=1) > 1.3, np.nan, np.round(X)).astype(np.float32)


def by_numpy(network: fastrun.Executable) -> list[str]:
    return [step.work for step in network.steps if isinstance(step, NumpyStep)]


def computed(m: onnx.ModelProto, numpy: int = 0, **inputs: Array) -> None:
    """Our results equal onnxruntime's, in values and types; `numpy` steps are left to NumPy."""
    truth = by_onnxruntime(m, inputs)
    assert truth
    network = fastrun.load(m, policy="heuristic")
    assert len(by_numpy(network)) == numpy, by_numpy(network)
    graph = import_onnx(m)
    for found in (network.run(inputs), run(graph, inputs), run(optimise(graph), inputs),
                  by_onnxruntime(export_onnx(graph), inputs)):  # fmt: skip
        assert found
        for name, value in truth.items():
            assert value.dtype.kind == "f" or found[name].dtype == value.dtype
            assert_close(found[name], value)


def several(nodes: list[onnx.NodeProto], weights: Weights, *outputs: str) -> onnx.ModelProto:
    m = model(nodes, weights, output=outputs[0], opset=19)
    m.graph.output.extend(map(helper.make_empty_tensor_value_info, outputs[1:]))
    return m


@pytest.mark.parametrize("x", [X, NAN])
@pytest.mark.parametrize("operator", ["Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"])
def test_comparisons_and_choices(operator: str, x: Array) -> None:
    nodes = [
        node("Round", "x", "r"),
        node(operator, "r one", "c"),
        node("IsNaN", "x", "n"),
        node("Not", "c", "d"),
        node("And", "c n", "both"),
        node("Or", "d n", "either"),
        node("Xor", "d n", "other"),
        node("Where", "c x r", "a"),
        node("Where", "either one x", "b"),
        node("Where", "other minus one", "e"),
        node("Where", "fixed r x", "f"),
        node("Cast", "both", "g", to=TensorProto.FLOAT),
    ]
    fixed = np.arange(8) % 3 == 0
    weights = {"one": np.float32(1), "minus": np.float32([-np.inf]), "fixed": fixed}
    computed(several(nodes, weights, *"cdabefg"), x=x)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("last", [0, 1])
def test_places_of_extremes(keep: int, last: int) -> None:
    nodes = [
        node(operator, "r", f"y{operator}{axis + 4}", axis=axis, keepdims=keep,
             select_last_index=last)
        for operator in ("ArgMax", "ArgMin")
        for axis in (0, 1, -2, -1)
    ]  # fmt: skip
    outputs = [n.output[0] for n in nodes]
    computed(several([node("Round", "x", "r"), *nodes], {}, *outputs), x=X)


def test_running_sums() -> None:
    nodes = [
        node("CumSum", f"x a{axis}", f"y{axis}{exclusive}{back}", exclusive=exclusive, reverse=back)
        for axis in (1, 3)
        for exclusive in (0, 1)
        for back in (0, 1)
    ]
    weights = {"a1": np.array(1), "a3": np.array([-1])}
    computed(several(nodes, weights, *(n.output[0] for n in nodes)), x=X)


@pytest.mark.parametrize("largest", [0, 1])
def test_first_elements(largest: int) -> None:
    """Values and places, elements of another tensor there, and elements at constant places."""
    nodes = [node("Round", "x", "r")]
    for axis, k in ((1, "two"), (-1, "three"), (-2, "one")):
        name = f"{axis + 4}"
        nodes += [
            node("TopK", f"r {k}", f"v{name} i{name}", axis=axis, largest=largest),
            node("GatherElements", f"x i{name}", f"g{name}", axis=axis),
        ]
    nodes += [
        node("GatherElements", "i3 fixed", "f", axis=-1),
        node("Div", "i3 two", "half"),
        node("GatherElements", "x half", "h", axis=3),
    ]
    weights = {
        "one": np.array([1]),
        "two": np.array([2]),
        "three": np.array([3]),
        "fixed": np.resize(np.array([2, 0, -1, 1]), (1, 4, 8, 5)),
    }
    outputs = (f"{kind}{name}" for kind in "vig" for name in ("5", "3", "2"))
    computed(several(nodes, weights, *outputs, "f", "half", "h"), x=X)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_entries_at_points(batch: int) -> None:
    """Computed ones, constant ones, and those that name all entries in their order."""
    rest = X.shape[batch:]
    wanted = np.random.default_rng(0).integers(-3, 4, (*X.shape[:batch], 5, 2))
    order = np.stack(np.indices(X.shape[batch : batch + 2]), -1)
    order = np.broadcast_to(order, (*X.shape[:batch], *order.shape))
    nodes = [
        node("ArgMax", "x", "best", axis=batch + 1, keepdims=0),
        node("Reshape", "best rows", "first"),
        node("Expand", "zero like", "second"),
        node("Concat", "second first", "places", axis=-1),
        node("GatherND", "x places", "y", batch_dims=batch),
        node("GatherND", "x wanted", "z", batch_dims=batch),
        node("GatherND", "x order", "o", batch_dims=batch),
        node("GatherND", "b wanted", "t", batch_dims=batch),
        node("IsNaN", "x", "b"),
    ]
    each = X.size // X.shape[batch + 1] // int(np.prod(X.shape[:batch]))
    shape = (*X.shape[:batch], each, 1)
    weights = {
        "rows": np.array(shape), "like": np.array(shape), "zero": np.array([0]),
        "wanted": np.clip(wanted, [-n for n in rest[:2]], [n - 1 for n in rest[:2]]),
        "order": order,
    }  # fmt: skip
    nodes = [nodes[-1], *nodes[:-1]]
    computed(several(nodes, weights, "y", "z", "o", "t"), x=X)


def test_arithmetic_of_places() -> None:
    """Row and column of the largest value, as keypoints are read off maps."""
    nodes = [
        node("Reshape", "x flat", "f"),
        node("ArgMax", "f", "at", axis=-1, keepdims=1),
        node("Div", "at eight", "row"),
        node("Mod", "at eight", "column"),
        node("Concat", "row column", "both", axis=-1),
        node("Sub", "both eight", "moved"),
        node("Mod", "moved five", "turned"),
        node("Cast", "both", "y", to=TensorProto.FLOAT),
        node("Gather", "x row", "rows", axis=2),
    ]
    weights = {"flat": np.array([1, 4, 64]), "eight": np.array(8), "five": np.array(5)}
    computed(several(nodes, weights, "y", "both", "turned", "rows"), x=X)


def test_numbers_that_float32_lacks_stay_integers() -> None:
    nodes = [
        node("ArgMax", "x", "at", axis=-1, keepdims=0),
        node("Mul", "at large", "product"),
        node("Add", "product one", "y"),
    ]
    m = several(nodes, {"large": np.array(2**30 + 1), "one": np.array(1)}, "y")
    computed(m, numpy=3, x=X)  # the product, the sum, and the places as integers


@pytest.mark.parametrize("shape", [(2, 5), (), (3,)])
@pytest.mark.parametrize("axis", [0, 1])
def test_embeddings(shape: tuple[int, ...], axis: int) -> None:
    nodes = [
        node("Gather", "table x", "words", axis=axis),
        node("Equal", "x seven", "sevens"),
        node("Mul", "words two", "y"),
    ]
    weights = {"table": normal(10, 9), "seven": np.array(7), "two": np.float32(2)}
    m = model(nodes, weights, shape=shape, dtype=TensorProto.INT64, opset=19)
    m.graph.output.append(helper.make_empty_tensor_value_info("sevens"))
    ids = np.resize(np.array([7, 0, 8, -1, -9, 7]), shape)
    computed(m, x=ids)
    network = fastrun.load(m, policy="heuristic")
    for wrong in (10, -11):
        with pytest.raises(InputError, match=rf"^input 'x' has the index {wrong}: node 'words' "):
            network.run({"x": np.full(shape, wrong)})
    with pytest.raises(InputError, match="'x' is float32: give it as int64"):
        network.run({"x": ids.astype(np.float32)})


def test_entries_at_computed_places() -> None:
    nodes = [
        node("ReduceMean", "x", "means", axes=[0, 2, 3], keepdims=0),
        node("ArgMax", "means", "best", axis=0, keepdims=0),
        node("Gather", "x best", "y", axis=1),
    ]
    computed(model(nodes, opset=13), x=X)


def test_inputs_that_numpy_reads_too_stay_integers() -> None:
    nodes = [node("Gather", "table x", "words"), node("Mul", "x large", "y")]
    m = model(nodes, {"table": normal(10, 9), "large": np.array(2**40)}, shape=(4,),
              dtype=TensorProto.INT64)  # fmt: skip
    m.graph.output.append(helper.make_empty_tensor_value_info("words"))
    computed(m, numpy=2, x=np.array([1, 2, 3, 9]))


@pytest.mark.parametrize("dtype", [TensorProto.BOOL, TensorProto.INT32])
def test_masks_as_inputs(dtype: int) -> None:
    nodes = [
        node("Cast", "mask", "m", to=TensorProto.BOOL),
        node("Unsqueeze", "m axes", "wide"),
        node("Where", "wide x least", "s"),
        node("Softmax", "s", "y", axis=-1),
    ]
    m = model(nodes, {"least": np.float32(-1e9), "axes": np.array([1, 2])})
    m.graph.input.append(helper.make_tensor_value_info("mask", dtype, (1, 8)))
    given: Any = helper.tensor_dtype_to_np_dtype(dtype)
    computed(m, x=X, mask=(np.arange(8) % 3 > 0).reshape(1, 8).astype(given))


@pytest.mark.parametrize("scale", [np.float32(0.1), np.float32([0.1, 0.2, 0.3, 0.4])])
def test_embeddings_of_bytes(scale: Array) -> None:
    """Rows of a table in int8 become numbers behind the look-up, as dynamic quantisation has it."""
    table = np.random.default_rng(0).integers(-128, 128, (10, 4)).astype(np.int8)
    zero = np.full(scale.shape, 3, np.int8)
    nodes = [
        node("Gather", "table x", "rows"),
        node("DequantizeLinear", "rows scale zero", "y", axis=-1),
    ]
    weights = {"table": table, "scale": scale, "zero": zero}
    computed(model(nodes, weights, shape=(2, 3), dtype=TensorProto.INT64, opset=19),
             x=np.array([[0, 9, -1], [4, 5, 4]]))  # fmt: skip


def test_places_in_a_quantised_network() -> None:
    """What follows its rounded tensors runs in kernels too."""
    nodes = [
        node("QuantizeLinear", "x scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "d"),
        node("ArgMax", "d", "at", axis=1, keepdims=1),
        node("GatherElements", "d at", "most", axis=1),
        node("Greater", "d most", "more"),
        node("TopK", "d two", "best places", axis=-1),
        node("Where", "more d most", "y"),
    ]
    weights = {"scale": np.float32(0.03), "zero": np.uint8(120), "two": np.array([2])}
    computed(several(nodes, weights, "y", "best", "places"), x=X)


def test_libraries_take_indices_and_return_truth(tmp_path: Path) -> None:
    nodes = [
        node("Gather", "table x", "words"),
        node("ReduceMean", "words", "means", axes=[-1], keepdims=0),
        node("ArgMax", "words", "y", axis=-1),
        node("Greater", "means zero", "positive"),
    ]
    weights = {"table": normal(10, 8), "zero": np.float32(0)}
    m = model(nodes, weights, shape=(3,), dtype=TensorProto.INT64, opset=13)
    m.graph.output.append(helper.make_empty_tensor_value_info("positive"))
    graph = optimise(import_onnx(m))
    assert [*check(graph, export(graph, tmp_path)).values()] == [0]


def test_casts_to_integers_cut_off_fractions() -> None:
    nodes = [
        node("Mul", "x ten", "t"),
        node("Cast", "t", "i", to=TensorProto.INT64),
        node("Cast", "i", "y", to=TensorProto.FLOAT),
    ]
    computed(several(nodes, {"ten": np.float32(10)}, "y", "i"), x=X)

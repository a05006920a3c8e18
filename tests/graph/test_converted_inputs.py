"""Inputs and outputs that a model converts from and to float32 itself."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from onnx import TensorProto, helper

import fastrun
from fastrun.graph.core.errors import InputError, ModelFileError
from tests.support.graph_models import model, node, normal

W = {"w": normal(6, 4, 1, 1)}


def converting(kind: int, to: int) -> onnx.ModelProto:
    nodes = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Conv", "f w", "c"),
             node("Cast", "c", "y", to=to)]  # fmt: skip
    return model(nodes, W, dtype=kind)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int32, np.int64, np.float16, np.float64])
@pytest.mark.parametrize("result", [np.float16, np.float64, np.float32])
def test_the_caller_may_give_the_type_of_the_model_or_floats(kind: type, result: type) -> None:
    kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(x)) for x in (kind, result)]
    executable = fastrun.load(converting(*kinds), policy="heuristic")
    x = (10 * np.abs(normal(1, 4, 8, 8))).astype(kind)
    expected = np.einsum("oc,nchw->nohw", W["w"][..., 0, 0], x.astype(np.float32))
    for given in (x, x.astype(np.float32)):
        y = executable.run({"x": given})["y"]
        assert y.dtype == result
        np.testing.assert_allclose(y, expected.astype(result), rtol=2e-3, atol=1e-2)
    with pytest.raises(InputError, match="'x' is int16"):
        executable.run({"x": x.astype(np.int16)})


def test_what_is_read_in_another_way_too_stays_as_it_is() -> None:
    nodes = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Cast", "x", "d", to=6),
             node("Cast", "d", "e", to=1), node("Add", "f e", "y")]  # fmt: skip
    executable = fastrun.load(model(nodes, dtype=TensorProto.UINT8), policy="heuristic")
    x = np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8)
    np.testing.assert_array_equal(executable.run({"x": x})["y"], 2 * x.astype(np.float32))
    with pytest.raises(InputError, match="'x' is float32: give it as uint8"):
        executable.run({"x": x.astype(np.float32)})
    for to in (np.uint8, np.int64):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(to))
        executable = fastrun.load(converting(TensorProto.UINT8, kind), policy="heuristic")
        assert executable.run({"x": x})["y"].dtype == to


def test_what_nothing_reads_need_not_be_given() -> None:
    m = model([node("Conv", "x w", "y"), node("Shape", "ids", "s")], W)
    m.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, (2,)))
    m.graph.output.append(helper.make_empty_tensor_value_info("s"))
    executable = fastrun.load(m, policy="heuristic")
    assert list(executable.inputs) == ["x"]
    x = normal(1, 4, 8, 8)
    for more in ({}, {"ids": np.zeros(2, np.int64)}, {"ids": np.zeros(3)}):
        assert executable.run({"x": x, **more})["s"].tolist() == [2]


def in_floats(m: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The same model with weights, constants, inputs and outputs of another type."""
    other = onnx.ModelProto()
    other.CopyFrom(m)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = [a.t for n in other.graph.node if n.op_type == "Constant" for a in n.attribute]
    for tensor in (*other.graph.initializer, *constants):
        if tensor.data_type == TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*other.graph.input, *other.graph.output):
        value.type.tensor_type.elem_type = kind
    return other


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_files_of_other_floats_compute_in_float32_and_keep_their_types_outside(kind: int) -> None:
    half = helper.make_tensor("value", TensorProto.FLOAT, (), [0.5])
    nodes = [
        node("Constant", "", "h", value=half),
        node("Mul", "x h", "s"),
        node("Conv", "s w b", "c", pads=[1] * 4),
        node("Clip", "c low high", "r"),
        node("Cast", "r", "f", to=TensorProto.FLOAT),  # as mixed precision has it
        node("Softmax", "f", "p", axis=1),
        node("Cast", "p", "q", to=kind),
        node("Mul", "q r", "y"),
    ]
    weights = {
        "w": normal(6, 4, 3, 3).astype(np.float16).astype(np.float32),
        "b": normal(6).astype(np.float16).astype(np.float32),
        "low": np.float32(-1), "high": np.float32(6),
    }  # fmt: skip
    plain = model(nodes, weights)
    other = in_floats(plain, kind)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    rounded = {x: a.astype(dtype).astype(np.float32) for x, a in weights.items()}
    expected = fastrun.load(model(nodes, rounded), policy="heuristic")
    network = fastrun.load(other, policy="heuristic")
    x = normal(1, 4, 8, 8).astype(dtype)
    y, truth = (
        n.run({"x": given})["y"] for n, given in ((network, x), (expected, x.astype(np.float32)))
    )
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, truth.astype(dtype))
    np.testing.assert_array_equal(network.run({"x": x.astype(np.float32)})["y"], y)


def test_what_numpy_computes_has_the_model_s_type_outside_too() -> None:
    nodes = [node("Conv", "x w", "c"), node("Hardmax", "c", "y")]
    m = in_floats(model(nodes, W), TensorProto.FLOAT16)
    network = fastrun.load(m, policy="heuristic")
    assert "numpy" in {step.algorithm for step in network.steps}
    assert network(normal(1, 4, 8, 8)).dtype == np.float16


def test_a_constant_cast_like_an_input_stays_constant() -> None:
    nodes = [
        node("CastLike", "zero x", "z"),
        node("Expand", "z six", "b"),
        node("Conv", "x w b", "y"),
    ]
    m = model(nodes, {**W, "zero": np.float32(0), "six": np.array([6])}, opset=20)
    network = fastrun.load(m, policy="heuristic")
    assert "numpy" not in {step.algorithm for step in network.steps}


class Wrapped:
    """An array of another library, such as PyTorch's."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self._values


def test_arrays_may_come_from_elsewhere() -> None:
    x = normal(1, 2, 3)
    source = model([node("Relu", "x", "y")], shape=x.shape)
    for given in (source, source.SerializeToString()):
        network = fastrun.load(given, policy="heuristic")
        for same in (x.astype(">f4"), Wrapped(x)):
            assert np.array_equal(network.run({"x": same})["y"], np.maximum(x, 0))
            assert np.array_equal(network.run(same)["y"], np.maximum(x, 0))


def test_what_is_no_model_or_shape_is_said_in_one_line() -> None:
    with pytest.raises(ModelFileError, match="bytes are no ONNX model"):
        fastrun.load(b"\x08\x07hello")
    with pytest.raises(ModelFileError, match="bytes are no ONNX model"):
        fastrun.load(b"")
    with pytest.raises(InputError, match=r"by the names of inputs: \{name: \(1, 2, 3\)\}"):
        fastrun.load(model([node("Relu", "x", "y")]), shapes=(1, 2, 3))  # type: ignore[arg-type]

"""Inputs and outputs that a model converts from and to float32 itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fastrun
from fastrun.graph.core.errors import InputError
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
    nodes = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Cast", "x", "d", to=11),
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

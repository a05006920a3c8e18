"""Constants that are computed while a model is read, against onnxruntime, in old and new opsets.

`FASTRUN_TEST_SCALE=9` tries every opset instead of some.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.model import Array
from fastrun.graph.frontend.importer import import_onnx
from tests.support.graph_models import model, node, normal
from tests.support.peer import by_onnxruntime

SCALE = int(os.environ.get("FASTRUN_TEST_SCALE", "1"))
OPSETS = range(7, 23) if SCALE > 1 else (7, 9, 11, 13, 18, 22)
X = normal(2, 3, 4, 5)
WHOLE = np.random.default_rng(0).integers(-9, 9, (2, 3, 4))
BYTES = WHOLE.astype(np.int8)

# Operator, inputs, attributes, oldest opset.
FORMS: list[tuple[str, list[object], dict[str, object], int]] = [
    ("Softmax", [X], {"axis": 1}, 7),
    ("Softmax", [X], {}, 7),
    ("LogSoftmax", [X], {"axis": 2}, 7),
    ("BatchNormalization", [X, *(normal(3, seed=i) for i in range(3)), np.float32([1, 2, 3])],
     {"epsilon": 1e-3}, 7),
    ("MaxPool", [X], {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}, 7),
    ("AveragePool", [X], {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER"}, 7),
    ("ConvTranspose", [normal(1, 4, 5, 5), normal(4, 3, 3, 3)], {"group": 2}, 7),
    ("Conv", [normal(1, 4, 5, 5), normal(6, 2, 3, 3)], {"group": 2, "pads": [1, 0, 2, 1]}, 7),
    ("LRN", [X], {"size": 3, "alpha": 0.1}, 7),
    ("InstanceNormalization", [X, normal(3), normal(3, seed=1)], {}, 7),
    ("LayerNormalization", [X, normal(5)], {}, 17),
    ("GroupNormalization", [normal(2, 4, 3), normal(2), normal(2, seed=1)], {"num_groups": 2}, 18),
    ("DequantizeLinear", [BYTES, np.float32(0.1), np.int8(3)], {}, 10),
    ("DequantizeLinear", [BYTES, np.float32([1, 2, 3]), np.int8([1, 2, 3])], {"axis": 1}, 13),
    ("DequantizeLinear", [BYTES.astype(np.int32), np.float32([1, 2])], {"axis": -3}, 13),
    ("Clip", [np.array([2**62 + 1, -5]), np.array(-2), np.array(2**63 - 1)], {}, 12),
    ("Resize", [X, np.float32([]), np.float32([1, 1, 2, 1.5])], {"mode": "linear"}, 11),
    ("Div", [WHOLE, np.array([3, -2, 5, -7])], {}, 7),
    ("Cast", [np.float32([1.9, -1.9, 2.5])], {"to": 7}, 9),
    ("Concat", [np.array([], np.int64), np.array([1, 2])], {"axis": 0}, 7),
    ("Cast", [np.array([], np.int64)], {"to": 1}, 9),
    ("Gather", [WHOLE, np.array(-1)], {"axis": 1}, 7),
    ("NonZero", [np.array(5)], {}, 9),
    ("Range", [np.array([5]), np.array([0]), np.array([-2])], {}, 11),
    ("Hardmax", [X], {"axis": 1}, 7),
    ("LpNormalization", [X], {"axis": 1}, 7),
    ("ReduceSumSquare", [WHOLE.astype(np.int32)], {}, 7),
    ("TopK", [X, np.array([2])], {"axis": 1}, 10),
    ("Where", [WHOLE > 0, WHOLE, np.array(7)], {}, 9),
]  # fmt: skip


def single(
    operator: str, values: Mapping[str, Array], attributes: dict[str, object], opset: int,
    constant: bool,
) -> onnx.ModelProto:  # fmt: skip
    """A model of one node whose inputs are inputs or constants."""
    inputs = [
        helper.make_tensor_value_info(x, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for x, a in values.items()
    ]
    weights = [numpy_helper.from_array(a, x) for x, a in values.items()]
    outputs = ["y", "z"] if operator == "TopK" else ["y"]
    graph = helper.make_graph(
        [helper.make_node(operator, list(values), outputs, **attributes)],
        "single",
        [] if constant else inputs,
        [helper.make_empty_tensor_value_info(y) for y in outputs],
        weights if constant else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("form", FORMS, ids=[f"{i}-{form[0]}" for i, form in enumerate(FORMS)])
def test_constants_are_computed_as_by_onnxruntime_or_not_at_all(
    form: tuple[str, list[object], dict[str, object], int],
) -> None:
    operator, inputs, attributes, since = form
    values = {f"x{i}": np.asarray(a) for i, a in enumerate(inputs)}
    tried = 0
    for opset in sorted({max(opset, since) for opset in OPSETS}):
        given = single(operator, values, attributes, opset, constant=False)
        expected = by_onnxruntime(given, values)
        if expected is None:  # the form is not one of this opset
            continue
        tried += 1
        graph = import_onnx(single(operator, values, attributes, opset, constant=True))
        if graph.nodes:
            with pytest.raises(UnsupportedError, match=operator):
                graph.check_supported()
            assert operator in ("Hardmax", "LpNormalization")
            continue
        for name, truth in expected.items():
            found = graph.constants[name]
            assert (found.dtype, found.shape) == (truth.dtype, truth.shape), opset
            np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-5, err_msg=str(opset))
    assert tried


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("ConstantOfShape", "n", "y")], r"'y' \(1000000x1000000 float32\) .* memory"),
        ([node("Expand", "one n", "y")], "memory"),
        ([node("Tile", "line n", "y")], "memory"),
        ([node("Range", "zero many one", "y")], "memory"),
        ([node("ConstantOfShape", "n", "z"), node("ReduceSum", "z", "y")], "memory"),
    ],
)
def test_what_would_fill_the_memory_is_refused(nodes: list[onnx.NodeProto], message: str) -> None:
    numbers = {
        "n": np.array([1000000, 1000000]), "one": np.float32(1), "line": normal(1, 1),
        "zero": np.float32(0), "many": np.float32(1e12),
    }  # fmt: skip
    with pytest.raises(GraphError, match=message) as caught:
        import_onnx(model(nodes, numbers))
    assert "\n" not in str(caught.value)


def test_an_index_outside_is_said_before_anything_runs() -> None:
    for index in (8, -9):
        m = model([node("Gather", "x i", "y", axis=2)], {"i": np.array([index])})
        with pytest.raises(GraphError, match="an index is outside an axis of 8"):
            import_onnx(m)

"""Sequences whose elements are known, and scans of known length, are written out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fastrun
from fastrun.graph.build.steps import NumpyStep
from fastrun.graph.core.model import Array
from tests.support.agreement import assert_close
from tests.support.graph_models import Weights, model, node, normal
from tests.support.peer import by_onnxruntime

X = normal(3, 4, 6)


def several(nodes: list[onnx.NodeProto], weights: Weights, *outputs: str) -> onnx.ModelProto:
    m = model(nodes, weights, output=outputs[0], shape=X.shape)
    m.graph.output.extend(map(helper.make_empty_tensor_value_info, outputs[1:]))
    return m


def equal(m: onnx.ModelProto, by_numpy: bool = False, **inputs: Array) -> None:
    truth = by_onnxruntime(m, inputs)
    assert truth
    network = fastrun.load(m, policy="heuristic")
    assert any(isinstance(step, NumpyStep) for step in network.steps) == by_numpy
    found = network.run(inputs)
    for name, value in truth.items():
        assert found[name].dtype == value.dtype
        assert_close(found[name], value)


@pytest.mark.parametrize(
    ("split", "keep", "axis"),
    [((), 1, 1), ((), 0, 1), ((), 0, -1), ((2,), 1, -1), ((3, 1, 2), 1, 2)],
)
def test_parts_of_a_tensor(split: tuple[int, ...], keep: int, axis: int) -> None:
    """Two parts, their number, and all together in another order."""
    sizes = np.array(split[0] if len(split) == 1 else split, np.int64)
    given = "x sizes" if split else "x"
    nodes = [
        node("SplitToSequence", given, "s", axis=axis, keepdims=keep),
        node("SequenceLength", "s", "n"),
        node("SequenceAt", "s last", "e"),
        node("SequenceErase", "s", "f"),
        node("SequenceInsert", "f e zero", "g"),
        node("ConcatFromSequence", "g", "whole", axis=axis),
        node("SequenceAt", "s one", "y"),
    ]
    weights = {"last": np.array(-1), "zero": np.array(0), "one": np.array(1)}
    weights |= {"sizes": sizes} if split else {}
    equal(several(nodes, weights, "y", "n", "e", "whole"), x=X)


def test_lists_that_grow_in_a_loop() -> None:
    """As scripts of PyTorch collect results."""
    parts = [
        helper.make_tensor_value_info("i", TensorProto.INT64, ()),
        helper.make_tensor_value_info("going", TensorProto.BOOL, ()),
        helper.make_tensor_sequence_value_info("grown", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, (4, 6)),
    ]
    body = helper.make_graph(
        [
            node("Gather", "x i", "row"),
            node("Mul", "state row", "product"),
            node("Sin", "product", "next"),
            node("SequenceInsert", "grown next", "longer"),
            node("Identity", "true", "on"),
        ],
        "body",
        parts,
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, ()),
            helper.make_tensor_sequence_value_info("longer", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, (4, 6)),
        ],
    )
    nodes = [
        node("SequenceEmpty", "", "none"),
        node("Loop", "three true none ones", "all final", body=body),
        node("ConcatFromSequence", "all", "y", axis=1, new_axis=1),
    ]
    weights = {"three": np.array(3), "true": np.array(True), "ones": np.ones((4, 6), np.float32)}
    equal(several(nodes, weights, "y", "final"), x=X)


def test_what_is_computed_of_a_list_by_numpy() -> None:
    """A place that depends on data needs the list itself."""
    nodes = [
        node("SequenceConstruct", "x negative x", "s"),
        node("Neg", "x", "negative"),
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum zero", "positive"),
        node("Cast", "positive", "place", to=TensorProto.INT64),
        node("SequenceAt", "s place", "y"),
    ]
    for sign in (1, -1):
        m = several([nodes[1], nodes[0], *nodes[2:]], {"zero": np.float32(0)}, "y")
        equal(m, by_numpy=True, x=sign * np.abs(X))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("back", [0, 1])
def test_scans(axis: int, back: int) -> None:
    """A recurrence over two inputs, of which it collects all states along another axis."""
    kept = tuple(n for i, n in enumerate(X.shape) if i != axis)
    floats = [helper.make_tensor_value_info(x, TensorProto.FLOAT, kept) for x in "habuv"]
    body = helper.make_graph(
        [node("Mul", "h a", "p"), node("Add", "p b", "u"), node("Tanh", "u", "v")],
        "body", floats[:3], floats[3:],
    )  # fmt: skip
    scan = node(
        "Scan", "start x y2", "end y", body=body, num_scan_inputs=2, scan_input_axes=[axis, axis],
        scan_input_directions=[0, back], scan_output_axes=[-1], scan_output_directions=[back],
    )  # fmt: skip
    nodes = [node("Exp", "x", "y2"), scan]
    equal(several(nodes, {"start": normal(*kept)}, "y", "end"), x=X)

"""Networks that sample at points: constant images and points, written ONNX, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import fastrun
from fastrun.graph.core.errors import GraphError
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.to_onnx.model import export_onnx
from tests.support.graph_models import model, node, normal
from tests.support.peer import assert_same, by_onnxruntime

X, GRID = (1, 4, 8, 8), (1, 5, 6, 2)


@pytest.mark.parametrize("fixed", ["image", "points", "none"])
def test_images_and_points_may_be_constant(fixed: str) -> None:
    grid = 1.2 * np.tanh(normal(*GRID))
    weights = {"w": normal(4, 4, 1, 1)}
    weights |= {"image": {"x0": normal(*X)}, "points": {"grid": grid}}.get(fixed, {})
    nodes = [
        node("Conv", "x w", "c"),
        node("GridSample", f"{'x0' if fixed == 'image' else 'c'} grid", "s", mode="bilinear"),
        node("Conv", "s w", "y"),
    ]
    m = model(nodes if fixed != "image" else nodes[1:], weights, opset=19)
    inputs = {} if fixed == "image" else {"x": normal(*X)}
    if fixed == "image":
        del m.graph.input[0]
    if fixed != "points":
        m.graph.input.append(helper.make_tensor_value_info("grid", TensorProto.FLOAT, GRID))
        inputs["grid"] = grid
    truth = by_onnxruntime(m, inputs)
    assert truth
    network = fastrun.load(m, policy="heuristic")
    assert "numpy" not in {step.algorithm for step in network.steps}
    assert_same(network.run(inputs), truth)
    assert_same(by_onnxruntime(export_onnx(import_onnx(m)), inputs) or {}, truth)


def test_impossible_names_are_refused() -> None:
    for given in ({"mode": "quadratic"}, {"padding_mode": "wrap"}):
        m = model([node("GridSample", "x grid", "y", **given)], {"grid": normal(*GRID)}, opset=19)
        with pytest.raises(GraphError, match=r"'y' \(GridSample\) is impossible: .*mode '"):
            import_onnx(m)

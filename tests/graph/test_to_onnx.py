"""Graphs written as ONNX: onnxruntime computes the same from the file, and we read it back."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Graph
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from fastrun.graph.to_onnx.model import export_onnx
from fastrun.kernels.core.dtype import S8, U8
from tests.support.graph_models import model, node, normal
from tests.support.peer import assert_same, by_onnxruntime
from tests.support.random_graphs import Network
from tests.support.random_operators import DRAWN, drawn

SCALE = int(os.environ.get("FASTRUN_TEST_SCALE", "1"))


@pytest.mark.parametrize("name", DRAWN)
def test_operators_keep_their_meaning(name: str) -> None:
    for seed in range(4 * SCALE):
        draw = drawn(name, seed)
        m = draw.model()
        try:
            graph = import_onnx(m)
            graph.check_supported()
        except GraphError:
            continue
        truth = by_onnxruntime(m, draw.inputs)
        inputs = {x: draw.inputs[x] for x in graph.inputs}
        for g in (graph, optimise(graph)):
            written = export_onnx(g)
            onnx.checker.check_model(written)
            found = by_onnxruntime(written, inputs)
            assert found or not truth, f"seed {seed}: {draw.nodes}"
            assert_same(found or {}, truth or {}, f"seed {seed}: {draw.nodes}")


def test_optimised_networks_keep_their_meaning() -> None:
    for seed in range(15 * SCALE):
        network = Network(seed)
        m = network.model()
        truth, graph = by_onnxruntime(m, network.inputs), optimise(import_onnx(m))
        assert truth
        written = export_onnx(graph, {"names": "a, b"})
        found = by_onnxruntime(written, network.inputs)
        assert found, f"seed {seed}"
        assert_same(found, truth, f"seed {seed}")
        assert [(p.key, p.value) for p in written.metadata_props] == [("names", "a, b")]


def test_outputs_that_nothing_reads_have_names() -> None:
    nodes = [node("TopK", "x k", "values indices", axis=1), node("Cast", "indices", "y", to=1)]
    m = model(nodes, {"k": np.array([2])}, shape=(1, 6))
    written = export_onnx(optimise(import_onnx(m)))
    onnx.checker.check_model(written, full_check=True)
    inputs = {"x": normal(1, 6)}
    assert_same(by_onnxruntime(written, inputs) or {}, by_onnxruntime(m, inputs) or {})


def quantised() -> tuple[Graph, dict[str, np.ndarray]]:
    """A convolution, a residual sum and a dense layer with grids; an input for them."""
    nodes = [
        node("Conv", "x w b", "c", pads=[1] * 4),
        node("Add", "c x", "s"),
        node("Relu", "s", "r"),
        node("MaxPool", "r", "m", kernel_shape=[8, 8]),
        node("Flatten", "m", "f"),
        node("Gemm", "f fc", "y"),
    ]
    grids = {
        "x": Grid(0.03, 128, U8),
        "r": Grid(0.02, 0, U8),
        "m": Grid(0.02, 0, U8),
        "f": Grid(0.02, 0, U8),
        "w": Grid(np.array([0.01, 0.02, 0.03, 0.04], np.float32), 0, S8),
        "fc": Grid(np.array([0.01, 0.02, 0.03], np.float32), 0, S8),
    }
    rng = np.random.default_rng(5)
    w = grids["w"].rounded(rng.standard_normal((4, 4, 3, 3)) / 6).astype(np.float32)
    fc = grids["fc"].rounded(rng.standard_normal((4, 3)) / 2, axis=1).astype(np.float32)
    steps = np.float32(0.03) * np.asarray(grids["w"].scale)
    b = (np.array([5, -70, 300, 0]) * steps).astype(np.float32)
    plain = optimise(import_onnx(model(nodes, {"w": w, "b": b, "fc": fc})))
    known = {x: grid for x, grid in grids.items() if x in plain.tensors or x in plain.constants}
    graph = Graph(**{**vars_of(plain), "grids": known})
    return graph, {"x": normal(1, 4, 8, 8)}


def vars_of(graph: Graph) -> dict[str, object]:
    return {name: getattr(graph, name) for name in Graph.__dataclass_fields__}


def test_grids_become_integers_between_quantise_and_dequantise() -> None:
    graph, inputs = quantised()
    written = export_onnx(graph)
    onnx.checker.check_model(written, full_check=True)
    types = {t.name: (t.data_type, tuple(t.dims)) for t in written.graph.initializer}
    assert types["w.quantised"] == (TensorProto.INT8, (4, 4, 3, 3))
    assert types["fc.quantised"] == (TensorProto.INT8, (4, 3))
    assert [kind for name, (kind, _) in types.items() if name.endswith("bias.quantised")] == [
        TensorProto.INT32
    ]
    assert not any(kind == TensorProto.FLOAT and dims[1:] for kind, dims in types.values())
    found = by_onnxruntime(written, inputs)
    assert found
    # One step of the last rounding, through the weights behind it.
    tolerance = float(np.abs(graph.constants["fc"]).max()) * 0.02
    np.testing.assert_allclose(found["y"], run(graph, inputs)["y"], atol=1.01 * tolerance)


def test_advised_grids_and_unfit_biases_stay_float() -> None:
    graph, inputs = quantised()
    grids = {x: Grid(g.scale, g.zero, g.dtype, exact=False) for x, g in graph.grids.items()}
    written = export_onnx(Graph(**{**vars_of(graph), "grids": grids}))
    assert not [n for n in written.graph.node if n.op_type == "QuantizeLinear"]
    assert_same(by_onnxruntime(written, inputs) or {}, run(import_onnx(written), inputs))
    [conv] = [n for n in graph.nodes if n.input(2)]
    constants = {**graph.constants, conv.input(2): np.float32([0.1, 0.2, 0.3, 1e-6])}
    written = export_onnx(Graph(**{**vars_of(graph), "constants": constants}))
    assert not [t for t in written.graph.initializer if t.data_type == TensorProto.INT32]


def test_inputs_and_outputs_keep_the_types_of_the_model() -> None:
    nodes = [
        node("Cast", "x", "f", to=TensorProto.FLOAT),
        node("Sqrt", "f", "s"),
        node("Cast", "s", "y", to=TensorProto.FLOAT16),
    ]
    m = model(nodes, dtype=TensorProto.UINT8)
    x = {"x": np.arange(256, dtype=np.uint8).reshape(1, 4, 8, 8)}
    found, truth = by_onnxruntime(export_onnx(import_onnx(m)), x), by_onnxruntime(m, x)
    assert found
    assert truth
    assert found["y"].dtype == np.float16
    assert_same(found, truth)


def test_a_foreign_operator_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="needs"):
        export_onnx(import_onnx(model([node("Bernoulli", "x", "y")])))

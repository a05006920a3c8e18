"""The float64 interpreter against the ONNX package's own test data, operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase as NodeCase
from onnx.reference import ReferenceEvaluator

from fastrun.graph import zoo
from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from tests.support.graph_models import model, node, normal
from tests.support.onnx_cases import cases_of

DATA = Path(onnx.backend.test.__file__).parent / "data"

# fmt: off
OPERATORS = [
    "abs", "add", "averagepool", "batch_normalization", "ceil", "celu", "clip", "concat",
    "conv", "convtranspose", "cos", "depthtospace", "div", "dropout", "elu", "erf", "exp",
    "expand", "flatten", "floor", "gather", "gelu", "gemm", "globalaveragepool",
    "globalmaxpool", "hardsigmoid", "hardswish", "identity", "leakyrelu", "log", "logsoftmax",
    "lrn", "matmul", "max", "maxpool", "min", "mish", "mul", "neg", "pad", "pow", "prelu",
    "reciprocal", "reducel2", "reducemax", "reducemean", "reducemin", "reducesum", "relu",
    "reshape", "resize", "round", "selu", "sigmoid", "sign", "sin", "slice", "softmax",
    "softplus", "softsign", "spacetodepth", "split", "sqrt", "squeeze", "sub", "sum", "tanh",
    "transpose", "unsqueeze", "upsample",
]
# fmt: on

# Left out: forms expanded into operators we lack; element types other than float32 and integers;
# empty tensors; and one case where the length of an axis is not rounded before it is used.
EXCLUDED = (
    "_expanded",
    "bfloat16",
    "empty_set",
    "zero_size",
    "allowzero",
    "_opt",
    "sequence",
    "resize_downsample_scales_linear_align_corners",
    "resize_downsample_scales_cubic_align_corners",
)


def _cases() -> list[NodeCase]:
    cases = [case for operator in OPERATORS for case in cases_of(operator)]
    kept = [c for c in cases if not any(x in c.name for x in EXCLUDED)]
    return sorted(kept, key=lambda c: c.name)


CASES = _cases()


def imported(m: onnx.ModelProto, inputs: Sequence[Array]) -> Graph:
    """The graph, with every input but the first constant where it may be a parameter."""
    bound = onnx.ModelProto()
    bound.CopyFrom(m)
    for value, array in list(zip(m.graph.input, inputs, strict=True))[1:]:
        if array.dtype.kind != "f" or array.ndim < 2:
            bound.graph.initializer.append(numpy_helper.from_array(array, value.name))
    return import_onnx(bound)


def assert_outputs(graph: Graph, feeds: dict[str, Array], expected: dict[str, Array]) -> None:
    with np.errstate(all="ignore"):
        results = run(graph, {name: feeds[name] for name in graph.inputs})
    for name, truth in expected.items():
        assert results[name].shape == truth.shape
        np.testing.assert_allclose(
            results[name].astype(np.float64), truth.astype(np.float64), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_node(case: NodeCase) -> None:
    assert case.model is not None
    assert case.data_sets is not None
    inputs, outputs = ([np.asarray(a) for a in arrays] for arrays in case.data_sets[0])
    graph = imported(case.model, inputs)
    graph.check_supported()
    feeds = {v.name: a for v, a in zip(case.model.graph.input, inputs, strict=True)}
    names = [v.name for v in case.model.graph.output]
    assert_outputs(graph, feeds, dict(zip(names, outputs, strict=True)))


def test_enough_node_cases() -> None:
    assert len(CASES) > 380


def _read(path: Path) -> Array:
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


EXPORTED = sorted(p for p in DATA.glob("pytorch-*/*") if "3d" not in p.name)


@pytest.mark.parametrize("folder", EXPORTED, ids=[p.name for p in EXPORTED])
def test_exported_by_pytorch_before_and_after_the_passes(folder: Path) -> None:
    """Small models of opset 6, which have to be converted first."""
    graph = import_onnx(folder / "model.onnx")
    files = sorted(folder.glob("test_data_set_0/*.pb"))
    inputs = [_read(f) for f in files if f.name.startswith("input")]
    outputs = [_read(f) for f in files if f.name.startswith("output")]
    feeds = dict(zip(graph.inputs, inputs, strict=True))
    expected = dict(zip(graph.outputs, outputs, strict=True))
    assert_outputs(graph, feeds, expected)
    assert_outputs(optimise(graph), feeds, expected)


def test_grouped_transposed_convolution_is_its_groups_side_by_side() -> None:
    x, w = normal(1, 6, 5, 4), normal(6, 2, 3, 2)

    def result(x: Array, w: Array, groups: int) -> Array:
        conv = node("ConvTranspose", "x w", "y", group=groups, strides=[2, 3], pads=[1, 0, 0, 1])
        return run(import_onnx(model([conv], {"w": w}, shape=x.shape)), {"x": x})["y"]

    parts = [result(x[:, g : g + 2], w[g : g + 2], 1) for g in (0, 2, 4)]
    np.testing.assert_allclose(result(x, w, 3), np.concatenate(parts, axis=1), rtol=1e-12)


def test_padding_may_crop() -> None:
    m = model([node("Pad", "x pads", "y")], {"pads": np.array([0, -1, 2, -3, 0, 0, -4, 1])})
    x = normal(1, 4, 8, 8)
    expected = np.pad(x[:, 1:, :4, 3:], ((0, 0), (0, 0), (2, 0), (0, 1)))
    np.testing.assert_array_equal(run(import_onnx(m), {"x": x})["y"], expected)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_local_response_normalisation_of_any_size(size: int) -> None:
    """By ONNX's formula; an even window has its odd channel after the centre."""
    m = model([node("LRN", "x", "y", size=size, alpha=0.5, beta=0.6, bias=2.0)], shape=(2, 7, 3, 2))
    x = normal(2, 7, 3, 2)
    result = run(import_onnx(m), {"x": x})["y"]
    for c in range(7):
        first, last = max(0, c - (size - 1) // 2), min(6, c + size // 2)
        squares = (x[:, first : last + 1].astype(np.float64) ** 2).sum(axis=1)
        np.testing.assert_allclose(
            result[:, c], x[:, c] / (2 + 0.5 / size * squares) ** 0.6, rtol=1e-6
        )


def test_a_whole_network_as_onnx_itself_computes_it() -> None:
    m = zoo.build("shufflenetv2")
    x = normal(1, 3, 224, 224)
    (expected,) = ReferenceEvaluator(m).run(None, {"input": x})
    result = run(optimise(import_onnx(m)), {"input": x})["logits"]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * expected.std())


@pytest.mark.parametrize("opset", [9, 10, 13])
def test_upsampling_by_two_in_every_opset(opset: int) -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    operator = {
        9: node("Upsample", "x scales", "y", mode="nearest"),
        10: node("Resize", "x scales", "y", mode="nearest"),
        13: node(
            "Resize",
            "x _ scales",
            "y",
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
    }[opset]
    x = normal(1, 4, 8, 8)
    graph = import_onnx(model([operator], {"scales": scales}, opset=opset))
    np.testing.assert_array_equal(run(graph, {"x": x})["y"], x.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize("opset", [12, 13])
def test_softmax_before_opset_13_is_over_all_further_axes(opset: int) -> None:
    graph = import_onnx(model([node("Softmax", "x", "y", axis=1)], opset=opset))
    axes = (1, 2, 3) if opset < 13 else (1,)
    result = run(graph, {"x": normal(1, 4, 8, 8)})["y"]
    np.testing.assert_allclose(result.sum(axes), 1)


@pytest.mark.parametrize("condition", [True, False])
def test_if_with_a_constant_condition_is_its_branch(condition: bool) -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        output = onnx.helper.make_empty_tensor_value_info(name)
        return onnx.helper.make_graph([node(operator, "r", name)], name, [], [output])

    choice = node("If", "c", "y", then_branch=branch("t", "Neg"), else_branch=branch("e", "Exp"))
    m = model([node("Relu", "x", "r"), choice], {"c": np.array(condition)})
    graph = optimise(import_onnx(m))
    assert [n.work for n in graph.nodes] == ["relu", "neg" if condition else "exp"]
    assert graph.outputs == ("y",)


def test_unused_secondary_outputs_do_not_matter() -> None:
    nodes = [node("Dropout", "x", "d mask"), node("MaxPool", "d", "y where", kernel_shape=[2, 2])]
    import_onnx(model(nodes)).check_supported()


def test_inputs_are_checked() -> None:
    graph = import_onnx(model([node("Relu", "x", "y")]))
    for feeds in ({}, {"x": normal(1, 4, 8, 7)}):
        with pytest.raises(GraphError, match=r"'x' must be given, of shape \(1, 4, 8, 8\)"):
            run(graph, feeds)


def test_foreign_operators_are_named() -> None:
    graph = import_onnx(model([node("Bernoulli", "x", "h"), node("Bernoulli", "h", "y")]))
    with pytest.raises(UnsupportedError, match=r"'h' \(Bernoulli\) needs .* \(1 more"):
        graph.check_supported()
    with pytest.raises(UnsupportedError, match="Bernoulli"):
        run(graph, {"x": normal(1, 4, 8, 8)})


def test_summary() -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Hardmax", "r", "y")]
    graph = import_onnx(model(nodes, {"w": normal(4, 4, 1, 1)}))
    assert graph.summary().splitlines() == [
        "small: 3 nodes, 16 parameters",
        "  input x: 1x4x8x8 float32",
        "  output y: 1x4x8x8 float32",
        "      1 Conv",
        "      1 relu",
        "      1 Hardmax (NumPy)",
    ]
    assert "1 Conv + relu" in optimise(graph).summary()

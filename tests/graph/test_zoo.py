"""The built-in networks have the published sizes."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from fastrun.graph import zoo
from fastrun.graph.core.errors import ModelFileError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv, Gemm
from fastrun.graph.core.problems import conv_problem, convolutions
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run

# Learnable parameters: weights, biases, scale and shift of batch normalisation, not its running
# statistics. As torchvision states for its models; ResNet-50 v1 and v1.5 agree.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenetv2": 3_504_872,
    "shufflenetv2": 2_278_604,
    "vgg16": 138_357_544,
    "squeezenet1.1": 1_235_496,
}

# Multiply-adds of convolutions and dense layers, in 10^9, biases and normalisation not counted.
# torchvision's figures; ResNet-50 v1 is "3.8 x 10^9" in its paper (table 1), less than v1.5.
GIGAMACS = {
    "resnet18": 1.814,
    "resnet50": 3.858,
    "mobilenetv2": 0.301,
    "shufflenetv2": 0.145,
    "vgg16": 15.470,
    "squeezenet1.1": 0.349,
}

SMALL = [name for name in zoo.NAMES if name != "vgg16"]


@pytest.fixture(scope="module")
def models() -> dict[str, onnx.ModelProto]:
    return {name: zoo.build(name) for name in zoo.NAMES}


def learnable(model: onnx.ModelProto) -> int:
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name.endswith((".weight", ".bias"))
    )


def macs(graph: Graph) -> int:
    total = 0
    for node in graph.nodes:
        if isinstance(node.op, Conv):
            total += conv_problem(graph, node).macs
        elif isinstance(node.op, Gemm):
            total += math.prod(graph.shape(node.inputs[1]))
    return total


def test_names_and_parameter_counts(models: dict[str, onnx.ModelProto]) -> None:
    assert {name: learnable(model) for name, model in models.items()} == PARAMETERS


@pytest.mark.parametrize("name", zoo.NAMES)
def test_multiply_adds(models: dict[str, onnx.ModelProto], name: str) -> None:
    graph = optimise(import_onnx(models[name]))
    assert macs(graph) / 1e9 == pytest.approx(GIGAMACS[name], abs=6e-4)


@pytest.mark.parametrize("name", SMALL)
def test_is_valid_onnx_and_equal_on_every_call(
    models: dict[str, onnx.ModelProto], name: str
) -> None:
    onnx.checker.check_model(models[name], full_check=True)
    assert zoo.build(name).SerializeToString(deterministic=True) == models[name].SerializeToString(
        deterministic=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_passes_keep_the_logits_which_have_a_sane_scale(
    models: dict[str, onnx.ModelProto], name: str
) -> None:
    graph = import_onnx(models[name])
    optimised = optimise(graph)
    x = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
    before, after = (run(g, {"input": x})["logits"] for g in (graph, optimised))
    assert 0.5 < before.std() < 20
    # Weights are rounded to float32 after folding: relative errors of about 1e-7 per layer.
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * before.std())
    assert not np.array_equal(after, before) or name == "squeezenet1.1"


def test_resnet18_has_its_eleven_shapes(models: dict[str, onnx.ModelProto]) -> None:
    problems = convolutions(optimise(import_onnx(models["resnet18"])))
    shapes = {str(p).partition(" bias")[0]: 0 for p, _, _ in problems}
    for problem, occurrences, _ in problems:
        shapes[str(problem).partition(" bias")[0]] += occurrences
    assert shapes == {
        "conv 1x3x224x224 64x7x7 s2 p3": 1,
        "conv 1x64x56x56 64x3x3 s1 p1": 4,
        "conv 1x64x56x56 128x3x3 s2 p1": 1,
        "conv 1x64x56x56 128x1x1 s2 p0": 1,
        "conv 1x128x28x28 128x3x3 s1 p1": 3,
        "conv 1x128x28x28 256x3x3 s2 p1": 1,
        "conv 1x128x28x28 256x1x1 s2 p0": 1,
        "conv 1x256x14x14 256x3x3 s1 p1": 3,
        "conv 1x256x14x14 512x3x3 s2 p1": 1,
        "conv 1x256x14x14 512x1x1 s2 p0": 1,
        "conv 1x512x7x7 512x3x3 s1 p1": 3,
    }
    epilogues = {(p.bias, p.add, p.activation) for p, _, _ in problems}
    assert epilogues == {(True, False, "relu"), (True, True, "relu"), (True, False, "")}


def test_all_3x3_of_resnet50_have_stride_1(models: dict[str, onnx.ModelProto]) -> None:
    problems = convolutions(optimise(import_onnx(models["resnet50"])))
    strides = [(p.stride, n) for p, n, _ in problems if p.kernel == (3, 3)]
    assert {stride for stride, _ in strides} == {(1, 1)}
    assert sum(n for _, n in strides) == 16


@pytest.mark.parametrize(
    ("name", "hint"), [("resnet-18", "did you mean 'resnet18'"), ("zzz", "known are resnet18")]
)
def test_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(ModelFileError, match=hint):
        zoo.build(name)

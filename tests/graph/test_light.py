"""The nine classifiers that come with the onnx package, with random weights in place of 0.02."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.backend.test
import pytest

from fastrun.graph.core.model import Array, Graph, Shape
from fastrun.graph.core.problems import convolutions
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.reference.interpreter import run
from tests.support.graph_models import normal

pytestmark = pytest.mark.slow

LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"

CONVOLUTIONS = {
    "bvlc_alexnet": 5,
    "densenet121": 120,  # the last one, of one pixel, is a dense layer
    "inception_v1": 57,
    "inception_v2": 69,
    "resnet50": 53,
    "shufflenet": 49,
    "squeezenet": 26,
    "vgg19": 16,
    "zfnet512": 5,
}
SMALL = {"data_0": (1, 3, 64, 64)}


def light(name: str, shapes: Mapping[str, Shape] | None = None) -> Graph:
    return import_onnx(LIGHT / f"light_{name}.onnx", shapes)


def with_random_weights(graph: Graph) -> Graph:
    """He-normal matrices and filters; vectors, which scale or are variances, between 0.5 and 1."""

    def random(index: int, like: Array) -> Array:
        if like.dtype.kind != "f":
            return like
        if like.ndim > 1 and like[0].size > 1:
            return normal(*like.shape, seed=index) * np.float32((2 / like[0].size) ** 0.5)
        uniform = np.random.default_rng(index).uniform(0.5, 1, like.shape)
        return uniform.astype(np.float32)

    constants = {x: random(i, a) for i, (x, a) in enumerate(graph.constants.items())}
    return replace(graph, constants=constants)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_is_listed(name: str) -> None:
    graph = optimise(light(name))
    graph.check_supported()
    assert sum(n for _, n, _ in convolutions(graph)) == CONVOLUTIONS[name]


@pytest.mark.parametrize(("name", "shapes"), [("densenet121", SMALL), ("shufflenet", {})])
def test_passes_keep_the_result(name: str, shapes: Mapping[str, Shape]) -> None:
    graph = with_random_weights(light(name, shapes))
    x = {graph.inputs[0]: normal(*graph.shape(graph.inputs[0]))}
    (before,), (after,) = (run(g, x).values() for g in (graph, optimise(graph)))
    assert before.std() > 1e-4
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * before.std())


def test_nothing_of_batch_normalisation_is_left_behind_a_convolution() -> None:
    work = [node.work for node in optimise(light("resnet50")).nodes]
    assert {w for w in work if "Conv" not in w} == {
        "max pool",
        "average pool",
        "Reshape",
        "Gemm",
        "Softmax",
    }
    assert work.count("Conv + add + relu") == 16


def test_densenet_keeps_one_scale_per_activation_that_precedes_a_convolution() -> None:
    work = [node.work for node in optimise(light("densenet121")).nodes]
    assert (work.count("Affine + relu"), work.count("BatchNorm"), work.count("mul")) == (62, 0, 0)


def test_shufflenet_shuffles_nothing() -> None:
    work = [node.work for node in optimise(light("shufflenet")).nodes]
    assert (work.count("ChannelShuffle"), work.count("Transpose")) == (0, 0)

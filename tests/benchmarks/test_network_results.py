"""Whole networks, run natively, against the float64 interpreter on the graph as imported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastrun.graph import zoo
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Softmax
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from tests.graph.test_light import light, with_random_weights
from tests.support.graph_models import normal

CPU = Cpu.host()
TOLERANCE = 1e-4
"""The allowed error over the outputs' standard deviation; wrong kernels exceed it by far."""

# VGG-16 only takes 224x224, and seconds to draw its weights; ShuffleNetV2 ends in a pool of 7x7.
SIZES = {name: 224 if name == "shufflenetv2" else 64 for name in zoo.NAMES if name != "vgg16"}


def check(graph: Graph, threads: int = 1) -> None:
    plan, arrangement = make_plan(optimise(graph), heuristic_choices(CPU), CPU)
    executable = Executable.of(arrangement, CPU, threads, plan)
    inputs = {name: normal(*graph.shape(name), seed=1) for name in graph.inputs}
    found, truth = executable.run(inputs), reference.run(graph, inputs)
    for name, expected in truth.items():
        assert expected.std() > 0
        assert np.abs(found[name] - expected).max() < TOLERANCE * expected.std(), name


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_built_in(name: str, size: int) -> None:
    check(load_network(name, {"input": (1, 3, size, size)}))


def test_on_two_threads() -> None:
    check(load_network("resnet18", {"input": (1, 3, 64, 64)}), threads=2)


def test_batches_of_another_shape() -> None:
    check(load_network("mobilenetv2", {"input": (3, 3, 64, 96)}))


def test_of_the_onnx_package_with_random_weights() -> None:
    """Without the softmax at the end, which such scores saturate."""
    graph = with_random_weights(light("shufflenet"))
    *nodes, last = graph.nodes
    assert isinstance(last.op, Softmax)
    check(replace(graph, nodes=tuple(nodes), outputs=last.inputs[:1]))

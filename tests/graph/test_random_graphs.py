"""Networks drawn at random: as imported, optimised and run natively, against onnxruntime.

`FASTRUN_TEST_SCALE=100 pytest tests/graph/test_random_graphs.py` draws a hundred times as many.
"""

from __future__ import annotations

import os
import random

import numpy as np

from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.planner import follow_plan, make_plan
from fastrun.graph.reference.interpreter import run
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from tests.graph.test_fusion import forced
from tests.graph.test_networks_run import shaken
from tests.support.peer import assert_same, by_onnxruntime
from tests.support.random_graphs import Network

CPU = Cpu.host()
SCALE = int(os.environ.get("FASTRUN_TEST_SCALE", "1"))


def test_passes_leave_the_results_as_they_are() -> None:
    for seed in range(50 * SCALE):
        network = Network(seed)
        m = network.model()
        truth = by_onnxruntime(m, network.inputs)
        assert truth, f"seed {seed}"
        graph = import_onnx(m)
        with np.errstate(all="ignore"):
            for g in (graph, optimise(graph)):
                assert_same(run(g, network.inputs), truth, f"seed {seed}")


def test_native_code_computes_the_same() -> None:
    """In layouts drawn at random, and with operators in bands wherever two of them can be."""
    for seed in range(3 * SCALE):
        network = Network(seed)
        m = network.model()
        truth = by_onnxruntime(m, network.inputs)
        assert truth, f"seed {seed}"
        graph = optimise(import_onnx(m))
        plan, _ = make_plan(graph, shaken(seed), CPU)
        banded, _ = forced(graph, plan, random.Random(seed))
        for p in (plan, banded):
            executable = Executable.of(follow_plan(graph, p, CPU), CPU, 1 + seed % 2, p)
            assert_same(executable.run(network.inputs), truth, f"seed {seed}")

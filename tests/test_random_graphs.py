"""Networks drawn at random: as imported, optimised and run natively, against onnxruntime.

`FASTRUN_TEST_SCALE=100 pytest tests/test_random_graphs.py` draws a hundred times as many.
"""

from __future__ import annotations

import os

import numpy as np

import tuner
from graph.onnx_import import import_onnx
from graph.passes import optimise
from graph.reference import run
from tests.peer import assert_same, by_onnxruntime
from tests.random_graphs import Network

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
    for seed in range(4 * SCALE):
        network = Network(seed)
        m = network.model()
        truth = by_onnxruntime(m, network.inputs)
        assert truth, f"seed {seed}"
        loaded = tuner.load(m, policy="heuristic", threads=1)
        assert_same(loaded.run(network.inputs), truth, f"seed {seed}")

"""The simulation of saturating products, against loops and against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastrun.benchmarks.accuracy.score import scores
from fastrun.benchmarks.experiments import saturation
from fastrun.benchmarks.peers.low import ort
from fastrun.benchmarks.peers.low.original import Original
from tests.benchmarks.test_precision import small


@pytest.mark.parametrize("k", [6, 7])
def test_pairs_are_summed_in_sixteen_bits(k: int) -> None:
    draw = np.random.default_rng(k)
    x = draw.integers(0, 256, (5, k)).astype(np.float64)
    w = draw.integers(-127, 128, (4, k)).astype(np.float64)
    x[0], w[0], w[1] = 255, 127, -127
    w[2, 0] = -128
    exact, found = saturation.products(x, w)
    np.testing.assert_array_equal(exact, x @ w.T)
    for pixel in range(5):
        for oc in range(4):
            terms = [int(a * b) for a, b in zip(x[pixel], w[oc], strict=True)]
            pairs = [sum(terms[i : i + 2]) for i in range(0, k, 2)]
            assert found[pixel, oc] == sum(max(-(2**15), min(2**15 - 1, p)) for p in pairs)


def test_seven_bits_cannot_saturate_and_eight_can() -> None:
    assert not saturation.saturating(np.full((1, 2), 64.0)).any()
    assert not saturation.saturating(np.full((1, 2), -64.0)).any()
    assert saturation.saturating(np.array([[64.0, 65.0]])).all()
    assert saturation.saturating(np.array([[-65.0, -64.0]])).all()
    assert not saturation.saturating(np.array([[127.0, -127.0]])).any()


def test_exact_simulation_is_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    task = small()
    original = Original(task.model, task.calibration, tmp_path)
    model = original.quantised()
    exact = saturation.Simulation(model, saturate=False)
    others = {"simulated": exact, "saturating": saturation.Simulation(model, saturate=True)}
    found = scores(task.samples(), ort.exact(original, 1), others)
    assert found["simulated"].sqnr > 60  # equal but for ties
    assert found["saturating"].sqnr < 40
    [row] = exact.table.to_dict("records")
    assert 0 < row["pairs"] < 0.5
    assert 0 < row["outputs"] < 1
    assert row["error"] > 0

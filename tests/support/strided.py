"""Run kernels for tensors of any shape, and compare in units of float32."""

from __future__ import annotations

import numpy as np

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.program import Program
from fastrun.kernels.core.strided import Strided
from tests.support.execution import execute

CPU = Cpu.host()


def normal(*shape: int) -> np.ndarray:
    values = np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)
    return np.asarray(values, np.float32)


def flat(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).reshape(1, 1, 1, -1)


def run(
    program: Program,
    dst: Strided,
    src: np.ndarray | None = None,
    add: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """The elements of `dst`, written by one thread and by three with the same result."""
    # A view may end before its buffer does.
    operands = {"x": flat(np.zeros(0) if src is None else src)[..., : program.io.src.size]}
    if add is not None:
        operands["add"] = flat(add)[..., : program.io.add.size]
    if weights is not None:
        operands["weights"] = weights
    if bias is not None:
        operands["bias"] = bias.reshape(-1)
    found = execute(program, operands).reshape(-1)
    assert np.array_equal(found, execute(program, operands, threads=3).reshape(-1), equal_nan=True)
    values = dst.view(found).copy()
    dst.view(found)[...] = np.nan
    assert np.isnan(found).all(), "wrote between the elements of dst"
    return values


def assert_close(found: np.ndarray, truth: np.ndarray, ulps: float = 8, least: float = 0) -> None:
    """Equal to within so many units of float32, or `least`; NaN and infinities in place."""
    truth = np.asarray(truth).astype(np.float64)
    infinite = np.abs(truth) > np.finfo(np.float32).max
    assert found.shape == truth.shape
    assert np.array_equal(np.isnan(found), np.isnan(truth))
    assert np.array_equal(found[infinite], np.copysign(np.inf, truth[infinite]))
    finite = np.isfinite(truth) & ~infinite
    error = np.abs(found[finite] - truth[finite])
    allowed = np.maximum(np.abs(truth[finite]) * ulps * 2.0**-23, max(least, 2.0**-148))
    worst = np.argmax(error / allowed) if error.size else 0
    assert (error <= allowed).all(), (found[finite].flat[worst], truth[finite].flat[worst])

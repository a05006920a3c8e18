"""Damaged models give an error of one line or the results of onnxruntime, never other numbers.

`FASTRUN_TEST_SCALE=50` tries 2,000 of them.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

import fastrun
from fastrun.graph.core.errors import GraphError
from fastrun.graph.frontend import values
from fastrun.graph.runtime.executable import Executable
from tests.support.graph_models import model, node
from tests.support.model_mutants import bases, mutant
from tests.support.peer import by_onnxruntime

MUTANTS = 40 * int(os.environ.get("FASTRUN_TEST_SCALE", "1"))


def loaded(path: Path) -> Executable | None:
    """The network; None if it is refused in one line."""
    try:
        return fastrun.load(path, policy="heuristic").at()
    except GraphError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    return None


def test_mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "usable_memory", lambda: 2**31)  # the same on every machine
    path, originals, compared = tmp_path / "mutant.onnx", bases(), 0
    for seed in range(MUTANTS):
        draw = random.Random(seed)
        path.write_bytes(mutant(draw.choice(originals), draw))
        executable = loaded(path)
        if executable is None:
            continue
        numbers = np.random.default_rng(seed)
        x = {k: numbers.standard_normal(s, np.float32) for k, s in executable.inputs.items()}
        with np.errstate(all="ignore"):
            found, truth = executable.run(x), by_onnxruntime(path.read_bytes(), x)
        for name, expected in (truth or {}).items():
            compared += 1
            finite = expected[np.isfinite(expected)].astype(np.float64)
            scale = float(np.sqrt(np.mean(finite**2))) if finite.size else 1.0
            if scale < 1e18:  # else the order of terms decides which sums overflow
                np.testing.assert_allclose(
                    found[name],
                    expected,
                    rtol=1e-3,
                    atol=1e-3 * max(scale, 1e-3),
                    err_msg=f"{seed}",
                )
    assert compared > MUTANTS / 10


def test_the_originals_run(tmp_path: Path) -> None:
    path = tmp_path / "original.onnx"
    for original in bases():
        path.write_bytes(original.SerializeToString())
        assert loaded(path) is not None


def test_a_tensor_larger_than_the_memory_is_refused() -> None:
    for shape in ((1, 2**20, 2**20), (2**62, 2**62), (10**400, 1)):
        with pytest.raises(GraphError, match=r"too large for the memory|cannot have shape"):
            fastrun.load(model([node("Relu", "x", "y")], shape=("a", "b", "c")[: len(shape)]),
                       policy="heuristic", shapes={"x": shape})  # fmt: skip


def test_shapes_that_are_none_are_refused() -> None:
    for shape in (5, "ab", (1.5, 2), None, (1, None)):
        with pytest.raises(GraphError, match=r"'x' .*cannot have shape|are open"):
            fastrun.load(model([node("Relu", "x", "y")], shape=("a", "b")),
                       policy="heuristic", shapes={"x": shape})  # fmt: skip


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    whole = model([node("Relu", "x", "middle"), node("Neg", "middle", "y")]).SerializeToString()
    for broken in (whole.replace(b"middle", b"mi\xff\xfele"), whole.replace(b"Relu", b"R\n\xf6u"),
                   whole.replace(b"Relu", b"Re\nu")):  # fmt: skip
        (tmp_path / "m.onnx").write_bytes(broken)
        assert loaded(tmp_path / "m.onnx") is None

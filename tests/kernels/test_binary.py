"""Convolution of one bit counts exactly, in every vector width."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastrun.kernels.conv.binary import template
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem, ProblemError
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.signs import by_signs, magnitudes, signs
from fastrun.kernels.registry import applicable, heuristic_choice
from fastrun.search_spaces.space import space_for
from tests.support.execution import reference, relative_error, run
from tests.support.lanes import RUN_HERE

AVX2 = replace(Cpu.avx2(), model=Cpu.host().model, lanes=8, registers=16)
CPUS = [*RUN_HERE, *([AVX2] if Cpu.host().lanes >= 8 else [])]

PROBLEMS = [
    "conv 1x64x9x7 40x3x3 s1 p0 bias relu b1",
    "conv 2x37x8x9 5x3x3 s2x1 p0 bias add b1",
    "conv 1x3x12x13 16x5x5 s1 p0 d2x1 bias hardswish b1",
    "conv 1x1030x3x3 33x1x1 s1 p0 b1",
    "conv 1x400x4x6 17x3x3 s1 p0 b1",
]


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
@pytest.mark.parametrize("text", PROBLEMS)
def test_counts_are_exact(text: str, cpu: Cpu) -> None:
    """With magnitudes of one and no bias outputs are integers; else only the scale rounds."""
    p = ConvProblem.parse(text)
    usual = template.heuristic(p, cpu)
    operands = random_operands(p, seed=3)
    operands["x"][:, ::3] = 0
    operands["x"][:, 1::5] = -0.0
    ones = {**operands, "weights": np.where(operands["weights"] < 0, -1, 1).astype(np.float32)}
    plain = replace(p, bias=False, add=False, activation="")
    for schedule in (usual, replace(usual, tile_w=2, cols=1, unroll=3, rows=2, oc_outer=True)):
        found = run(plain, template.program(plain, schedule, cpu), ones, threads=2)
        assert (found == reference(plain, ones)).all()
        found = run(p, template.program(p, schedule, cpu), operands)
        assert relative_error(found, reference(p, operands)) < 1e-6


def test_what_counts() -> None:
    """Zero counts as one, NaN too; weights have the mean magnitude of their channel."""
    assert signs(np.array([-2.0, -0.0, 0.0, np.nan, 3.0])).tolist() == [-1, 1, 1, 1, 1]
    weights = np.array([[1.0, -3.0], [0.5, 0.5]], np.float32).reshape(2, 1, 1, 2)
    assert magnitudes(weights).tolist() == [2.0, 0.5]
    assert by_signs(weights).reshape(2, 2).tolist() == [[2.0, -2.0], [0.5, 0.5]]


def test_only_binary_computes_one_bit() -> None:
    p = ConvProblem.parse(PROBLEMS[0])
    assert str(p) == PROBLEMS[0]
    assert [t.name for t in applicable(p, Cpu.host())] == ["binary"]
    chosen, schedule = heuristic_choice(p, Cpu.host())
    assert space_for(chosen.name, p, Cpu.host()).broken_rule(schedule) is None


@pytest.mark.parametrize("words", ["p1", "p0 g2"])
def test_padding_and_groups_are_refused(words: str) -> None:
    with pytest.raises(ProblemError, match="b1 have no padding"):
        ConvProblem.parse(f"conv 1x64x9x7 64x3x3 s1 {words} b1")

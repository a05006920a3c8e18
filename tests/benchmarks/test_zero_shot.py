"""The experiment on choices without measurement: what is left out, and how races are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from fastrun.benchmarks.experiments.zero_shot import (
    HEURISTIC,
    KNOWN,
    KNOWN_TOO,
    MODEL,
    NEAREST,
    RANDOM,
    choices,
    compared,
    summary,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import heuristic_choice
from fastrun.tuner.records.record import Outcome, Record
from tests.support.records import record

CPU = Cpu.avx512()
SHAPES = [ConvProblem.parse(f"conv 1x{c}x14x14 {c}x1x1 s1 p0 bias") for c in (32, 64, 96, 128)]


def measured(p: ConvProblem, run: str, unrolls: Sequence[int]) -> list[Record]:
    """Schedules of the heuristic's algorithm, the first the fastest."""
    template, s = heuristic_choice(p, CPU)
    usual: dict[str, Any] = {"problem": str(p), "machine": CPU.fingerprint, "run": run}
    return [
        record(**usual, schedule=template.text(replace(s, unroll=n)), samples=(t, t), threads=1)
        for t, n in enumerate(unrolls, 1)
    ]


def test_choices_have_the_best_of_each_measurement() -> None:
    records = [r for p in SHAPES for r in measured(p, "a", (8, 2, 1))]
    records += measured(SHAPES[0], "b", (4, 8))
    found = choices(records, [SHAPES[:1], SHAPES[1:]], [CPU])
    assert list(found) == [str(p) for p in SHAPES]
    first, second = found[str(SHAPES[0])], found[str(SHAPES[1])]
    assert "unroll=8" in first[KNOWN]
    assert "unroll=4" in first[KNOWN_TOO]
    assert KNOWN_TOO not in second
    assert {HEURISTIC, MODEL, NEAREST, RANDOM} < set(second)


def raced(schedule: str, samples: Sequence[float]) -> Record:
    outcome = Outcome.CORRECT if samples else Outcome.TIMEOUT
    return record(problem=str(SHAPES[0]), schedule=schedule, samples=samples, outcome=outcome)


def test_luck_in_some_rounds_makes_nothing_the_best() -> None:
    """The best is chosen in one half of the rounds and timed in the other."""
    ways = {HEURISTIC: "direct(a=1)", MODEL: "direct(a=2)", RANDOM: "direct(a=3)"}
    records = [
        raced("direct(a=1)", [4.0] * 8),
        raced("direct(a=2)", [2.0] * 8),
        raced("direct(a=3)", [1.0, 8.0] * 4),
    ]
    [row] = compared({str(SHAPES[0]): ways}, records).to_dict("records")
    # The first half elects the random one, which takes 8 in the second; that elects the model's.
    assert row["share of model"] == pytest.approx(math.sqrt(8 / 2 * 2 / 2))
    assert row["share of heuristic"] == pytest.approx(math.sqrt(8 / 4 * 2 / 4))


def test_a_failure_has_no_share() -> None:
    ways = {HEURISTIC: "direct(a=1)", MODEL: "direct(a=2)"}
    records = [raced("direct(a=1)", [4.0] * 8), raced("direct(a=2)", [])]
    table = compared({str(SHAPES[0]): ways}, records)
    shapes = dict(summary(table)[["way", "shapes"]].itertuples(index=False))
    assert shapes == {HEURISTIC: 1}
    assert compared({str(SHAPES[0]): ways}, records[:1]).empty

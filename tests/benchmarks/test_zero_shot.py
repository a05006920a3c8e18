"""The experiment on choices without measurement: what is left out, and how races are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fastrun.benchmarks.experiments.left_out import BOTH, MODEL, OTHER, Data, read_machine
from fastrun.benchmarks.experiments.recorded import CHANCE, rows
from fastrun.benchmarks.experiments.recorded import summary as recorded_summary
from fastrun.benchmarks.experiments.zero_shot import (
    ALL,
    HEURISTIC,
    IN_VECTORS,
    KNOWN,
    KNOWN_TOO,
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

ROOT = Path(__file__).parents[2]
CPU = Cpu.avx512()
SHAPES = [ConvProblem.parse(f"conv 1x{c}x14x14 {c}x1x1 s1 p0 bias") for c in (32, 64, 96, 128)]


def measured(p: ConvProblem, run: str, unrolls: Sequence[int], cpu: Cpu = CPU) -> list[Record]:
    """Schedules of the heuristic's algorithm for CPU, the first the fastest."""
    template, s = heuristic_choice(p, CPU)
    usual: dict[str, Any] = {"problem": str(p), "machine": cpu.fingerprint, "run": run}
    return [
        record(**usual, schedule=template.text(replace(s, unroll=n)), samples=(t, t), threads=1)
        for t, n in enumerate(unrolls, 1)
    ]


def test_choices_have_the_best_of_each_measurement() -> None:
    records = [r for p in SHAPES for r in measured(p, "a", (8, 2, 1))]
    records += measured(SHAPES[0], "b", (4, 8))
    found = choices(Data.of(records, [CPU]), [SHAPES[:1], SHAPES[1:]])[ALL]
    assert list(found) == [str(p) for p in SHAPES]
    first, second = found[str(SHAPES[0])], found[str(SHAPES[1])]
    assert "unroll=8" in first[KNOWN]
    assert "unroll=4" in first[KNOWN_TOO]
    assert KNOWN_TOO not in second
    assert {HEURISTIC, MODEL, NEAREST, RANDOM} < set(second)


def test_models_of_another_machine_and_of_both_choose_too() -> None:
    """The other machine has been measured; this one has tiles, and chooses without them too."""
    tiles = replace(CPU, features="+amx-tile,+amx-bf16,+avx512bf16", model="with tiles")
    records = [r for p in SHAPES for r in measured(p, "a", (8, 4, 2, 1))]
    records += [r for p in SHAPES for r in measured(p, "a", (1, 2, 4, 8), tiles)]
    found = choices(Data.of(records, [tiles, CPU]), [SHAPES[:2], SHAPES[2:]])
    assert {ALL, IN_VECTORS} == set(found)
    for ways in found[IN_VECTORS].values():
        assert {MODEL, OTHER, BOTH} < set(ways)
        assert not any(text.startswith("amx") for text in ways.values())
        assert "unroll=1," in ways[KNOWN]


def test_a_model_of_the_other_machine_orders_wrongly_what_its_own_orders_rightly() -> None:
    other = replace(CPU, model="other")
    unrolls = (16, 8, 4, 2, 1)
    records = [r for p in SHAPES for r in measured(p, "a", unrolls)]
    records += [r for p in SHAPES for r in measured(p, "a", unrolls[::-1], other)]
    found = rows(Data.of(records, [CPU, other]), [SHAPES[:2], SHAPES[2:]])
    table = pd.DataFrame(found).assign(machine="")
    means = recorded_summary(table).set_index("way")
    assert means.loc[MODEL, "share"] > 0.9 > means.loc[CHANCE, "share"] > means.loc[OTHER, "share"]
    assert (means.drop(HEURISTIC)["five"] == 1).all()
    assert set(table["problem"]) == set(map(str, SHAPES))


def test_a_manifest_says_which_processor_it_is_of() -> None:
    cpu = read_machine(ROOT / "results/amd-epyc-2cbf3fb3/machine.json")
    assert (cpu.name, cpu.lanes, cpu.halves) == ("znver4", 16, True)


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

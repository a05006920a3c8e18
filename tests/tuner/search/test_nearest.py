"""What similar problems suggest, and old winners after the generator has changed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import applicable, parse_schedule
from fastrun.search_spaces.space import space_for
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import Conditions
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.search.transfer import distance, first_guesses, nearest, suggestions, transferred
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.staleness import first_current
from tests.support.commands import short_finals
from tests.support.records import record

parse = ConvProblem.parse
P = parse("conv 1x64x56x56 64x3x3 s1 p1 bias relu")
TINY = parse("conv 1x16x8x8 16x3x3 s1 p1 bias relu")
CPU = Cpu.host()

sizes = st.integers(1, 64)
problems = st.builds(
    lambda c, oc, h, w: ConvProblem(1, 16 * c, h + 2, w + 2, 16 * oc, (3, 3), bias=True),
    sizes, sizes, sizes, sizes,
)  # fmt: skip


@given(problems, problems, problems)
def test_distance_is_one(a: ConvProblem, b: ConvProblem, c: ConvProblem) -> None:
    assert distance(a, a) == 0
    assert distance(a, b) == pytest.approx(distance(b, a))
    assert distance(a, c) <= distance(a, b) + distance(b, c) + 1e-9
    assert (distance(a, b) == 0) == (a == b)


@pytest.mark.parametrize(
    "other",
    [
        "conv 1x64x56x56 64x1x1 s1 p0 bias relu",
        "conv 1x64x56x56 64x3x3 s2 p1 bias relu",
        "conv 1x64x56x56 64x3x3 s1 p2 d2 bias relu",
        "conv 1x64x56x56 64x3x3 s1 p1 g64 bias relu",
        "conv 1x64x56x56 64x3x3 s1 p1 g4 bias relu",
    ],
)
def test_other_classes_are_infinitely_far(other: str) -> None:
    assert distance(P, parse(other)) == math.inf
    assert nearest(P, [parse(other)]) == []


def test_the_nearest_come_first_without_the_problem_itself() -> None:
    far, near, nearer = (
        parse(f"conv 1x{c}x{h}x{h} {c}x3x3 s1 p1 bias relu")
        for c, h in ((512, 7), (128, 28), (64, 48))
    )
    epilogue = parse("conv 1x64x56x56 64x3x3 s1 p1 bias add relu")
    assert nearest(P, [far, P, near, nearer, epilogue]) == [epilogue, nearer, near, far]


@pytest.mark.parametrize("source", ["conv 1x512x7x7 512x3x3 s1 p1", "conv 1x64x224x224 64x3x3 p1"])
@pytest.mark.parametrize("algorithm", [t.name for t in applicable(TINY, CPU) if not t.baseline])
def test_what_is_transferred_is_legal(source: str, algorithm: str) -> None:
    q = parse(source)
    template = {t.name: t for t in applicable(q, CPU)}[algorithm]
    text = transferred(template.text(template.heuristic(q, CPU)), TINY, CPU)
    if text is None:
        return  # no such schedule is worth trying there
    _, schedule = parse_schedule(text)
    space = space_for(algorithm, TINY, CPU)
    assert space.point(schedule) is not None
    assert space.broken_rule(schedule) is None
    assert template.program(TINY, schedule, CPU).ir


def test_some_schedules_are_transferred() -> None:
    q = parse("conv 1x16x10x10 16x3x3 s1 p1")
    found = [transferred(t.text(t.heuristic(q, CPU)), TINY, CPU) for t in applicable(q, CPU)]
    assert len([text for text in found if text]) >= 2


def test_what_is_no_schedule_here_suggests_nothing() -> None:
    assert transferred("forgotten(layout=NCHW)", P, CPU) is None
    assert transferred("pointwise(layout=NHWC)", P, CPU) is None
    assert list(suggestions(P, {parse("conv 1x64x55x55 64x3x3 s1 p1"): "x()"}, CPU)) == []


def test_own_old_winners_come_before_those_of_others() -> None:
    heuristics = [t.text(t.heuristic(TINY, CPU)) for t in applicable(TINY, CPU) if not t.baseline]
    first, second = heuristics[:2]
    ranking = [
        record(schedule=first, toolchain="llvm 0, kernels 0"),
        record(schedule=second, toolchain=toolchain()),
    ]
    other = parse("conv 1x16x9x9 16x3x3 s1 p1 bias relu")
    assert first_guesses(TINY, ranking, {other: second, TINY: first}, CPU) == [first, second]


def test_after_a_change_old_winners_are_measured_again_before_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_finals(monkeypatch)
    template = next(t for t in applicable(TINY, CPU) if t.name == "direct")
    heuristic = template.heuristic(TINY, CPU)
    winner = template.text(replace(heuristic, rows=1, unroll=2))
    assert transferred(winner, TINY, CPU) == winner != template.text(heuristic)
    fields = {"machine": CPU.fingerprint, "problem": str(TINY), "stage": "final"}
    here = Conditions.here()
    with Database(tmp_path / "records.db") as database:
        database.add(record(schedule=winner, **fields))
        assert first_current(database.ranking(TINY, here)) is None
        options = SearchOptions(algorithms=["direct"])
        summary = fast_run([(TINY, 1)], database, Budget(trials=5), options=options)
        assert summary.known == 0
        screened = [r.schedule for r in database.records(run=summary.run, stage="screen")]
        assert winner in screened
        now = first_current(database.ranking(TINY, here))
        assert now is not None
        assert now.run == summary.run

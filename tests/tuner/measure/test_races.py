"""Races: their order, entries that leave early, and entries that kill their process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import chain, count, repeat

import pytest

from fastrun.kernels.codegen.builder import ARGUMENTS
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Stage
from fastrun.kernels.native.compile import compile_object
from fastrun.kernels.registry import templates
from fastrun.tuner.measure.job import Compiled, Result
from fastrun.tuner.measure.measurer import Measurer, heuristic_text
from fastrun.tuner.measure.races import FINAL, Format, race
from fastrun.tuner.records.record import Outcome

P = ConvProblem.parse("conv 1x8x8x8 8x3x3 s1 p1 bias")
OTHER = ConvProblem.parse("conv 1x8x8x8 8x1x1 s1 p0")
NAIVE = "naive(layout=NCHW)"
QUICK = Format("race", processes=2, rounds=5, block=1e-3)


@pytest.fixture(scope="module")
def measurer() -> Iterator[Measurer]:
    with Measurer() as opened:
        yield opened


@pytest.mark.slow
def test_everybody_runs_in_every_process(measurer: Measurer) -> None:
    entries = {P: [heuristic_text(P), NAIVE], OTHER: [heuristic_text(OTHER)]}
    records = list(race(measurer, entries, FINAL))
    assert [(r.problem, r.schedule) for r in records] == [
        (str(p), s) for p, schedules in entries.items() for s in schedules
    ]
    assert {r.outcome for r in records} == {Outcome.CORRECT}
    assert {(r.stage, r.run) for r in records} == {("final", measurer.run)}
    assert {len(r.samples) for r in records} == {FINAL.processes * FINAL.rounds}
    places = [(p, i) for p in range(FINAL.processes) for i in range(FINAL.rounds)]
    assert all([*zip(r.processes, r.rounds, strict=True)] == places for r in records)
    assert [r.baseline for r in records] == [False, True, False]
    assert [r.heuristic for r in records] == [True, False, True]


def test_no_race_is_begun_when_no_time_is_left(measurer: Measurer) -> None:
    entries = {P: [heuristic_text(P)], OTHER: [heuristic_text(OTHER)]}
    assert list(race(measurer, entries, QUICK, lambda: 0.0)) == []
    one_race = chain([1.0] * 6, repeat(0.0))  # two problems, two programs, a process, a race
    records = list(race(measurer, entries, QUICK, lambda: next(one_race)))
    assert [(r.problem, len(r.samples)) for r in records] == [(str(P), QUICK.rounds)]


def test_no_process_is_begun_that_would_take_longer_than_what_is_left(measurer: Measurer) -> None:
    """The first of two takes three seconds of five."""
    entries = {P: [heuristic_text(P)]}
    clock = chain([5.0] * 3, repeat(2.0))
    [record] = race(measurer, entries, QUICK, lambda: next(clock))
    assert len(record.samples) == QUICK.rounds
    clock = chain([7.0] * 3, repeat(4.0))
    [record] = race(measurer, entries, QUICK, lambda: next(clock))
    assert len(record.samples) == 2 * QUICK.rounds


def test_what_cannot_be_built_is_an_outcome_and_the_others_race(measurer: Measurer) -> None:
    impossible = heuristic_text(P).replace("NCHW", "XYZ").replace("NHWC", "XYZ")
    records = {r.schedule: r for r in race(measurer, {P: [impossible, NAIVE]}, QUICK)}
    assert records[impossible].outcome in (Outcome.CONSTRAINTS, Outcome.COMPILE)
    assert records[NAIVE].outcome == Outcome.CORRECT


def test_an_interrupt_keeps_what_was_measured(measurer: Measurer) -> None:
    asked = count()

    def interrupt() -> float:
        if next(asked) == 6:  # two problems, two programs, a process, and a race that ended
            raise KeyboardInterrupt
        return math.inf

    racing = race(measurer, {P: [NAIVE], OTHER: [NAIVE]}, QUICK, interrupt)
    first = next(racing)
    assert (first.problem, len(first.samples)) == (str(P), QUICK.rounds)
    with pytest.raises(KeyboardInterrupt):
        next(racing)


class WithOneThatDies(Measurer):
    """A measurer whose naive loops crash."""

    def compile(self, problem: ConvProblem, schedule: str) -> Future[Compiled | Result]:
        made = super().compile(problem, schedule).result()
        assert isinstance(made, Compiled)
        if schedule == NAIVE:
            pointers = ", ".join(f"ptr %{a}" for a in ARGUMENTS)
            cpu = Cpu.host()
            ir = f"""target triple = "{cpu.triple}"
            define void @dies({pointers}, i64 %begin, i64 %end) {{
            store volatile float 1.0, ptr null
            ret void
            }}"""
            made = replace(made, code=compile_object(ir, cpu), stages=(Stage("dies", 1),))
        answer: Future[Compiled | Result] = Future()
        answer.set_result(made)
        return answer


@pytest.mark.slow
def test_a_death_is_held_against_the_dead_alone() -> None:
    direct = templates()["direct"]
    cpu = Cpu.host()
    schedules = dict.fromkeys([heuristic_text(P), direct.text(direct.heuristic(P, cpu))])
    with WithOneThatDies() as measurer:
        records = {r.schedule: r for r in race(measurer, {P: [*schedules, NAIVE]}, QUICK)}
    assert (records[NAIVE].outcome, records[NAIVE].samples) == (Outcome.RUNTIME, ())
    assert "SIGSEGV" in records[NAIVE].reason
    for schedule in schedules:
        assert records[schedule].outcome == Outcome.CORRECT
        assert len(records[schedule].samples) == QUICK.processes * QUICK.rounds

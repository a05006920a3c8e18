"""A budget bounds all of a run, whatever the machine; what it had no time for is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.races import FINAL
from fastrun.tuner.records.record import Record
from fastrun.tuner.records.statistics import PROCESSES
from fastrun.tuner.search import fastrun
from fastrun.tuner.search.budget import Budget, enough, first_seconds
from fastrun.tuner.search.fastrun import Summary, fast_run
from fastrun.tuner.store.database import Database
from tests.support.simulated import Clock, SimulatedMeasurer

LAYERS = [
    (ConvProblem.parse(text), count)
    for text, count in (
        ("conv 1x64x56x56 64x3x3 s1 p1", 4),
        ("conv 1x64x56x56 128x3x3 s2 p1", 1),
        ("conv 1x64x56x56 128x1x1 s2 p0", 1),
        ("conv 1x128x28x28 128x3x3 s1 p1", 3),
        ("conv 1x3x224x224 64x7x7 s2 p3 bias relu", 1),
    )
]
LIGHT = [(ConvProblem.parse(f"conv 1x{c}x14x14 {2 * c}x1x1 s1 p0"), 1) for c in range(8, 22)]
HEAVY = [(ConvProblem.parse("conv 1x512x128x128 512x3x3 s1 p1"), 1)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(fastrun, "monotonic", made)
    return made


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "records.db") as opened:
        yield opened


def tuned(
    problems: list[tuple[ConvProblem, int]],
    database: Database,
    budget: Budget,
    measurer: SimulatedMeasurer,
) -> Summary:
    return fast_run(problems, database, budget, measurer=measurer, sampler="random")


def finals(database: Database) -> list[Record]:
    return database.records(stage="final")


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("slow", [1.0, 6.0])
@pytest.mark.parametrize(
    ("problems", "seconds"),
    [(LAYERS, 40), (LAYERS, 20), (LIGHT, 30), (LIGHT, 8), (HEAVY, 5), (HEAVY, 60), (HEAVY, 240)],
)
def test_no_run_takes_longer_than_its_budget(
    problems: list[tuple[ConvProblem, int]],
    seconds: float,
    slow: float,
    noise: float,
    clock: Clock,
    database: Database,
) -> None:
    """But for a tenth of it, and what was under way."""
    summary = tuned(problems, database, Budget(seconds), SimulatedMeasurer(clock, slow, noise))
    assert clock.now <= 1.1 * seconds + clock.longest
    assert summary.seconds == pytest.approx(clock.now)
    idle = sum(not s.history for s in summary.searches)
    assert not idle or f"{idle} of {len(problems)} problem" in summary.left_out[0]


def test_time_is_kept_for_what_decides(clock: Clock, database: Database) -> None:
    summary = tuned(LAYERS, database, Budget(150), SimulatedMeasurer(clock))
    assert summary.trials > 5 * len(LAYERS)
    raced = finals(database)
    assert {r.problem for r in raced} == {str(p) for p, _ in LAYERS}
    assert {len(set(r.processes)) for r in raced if not r.baseline} == {FINAL.processes}
    assert {len(r.samples) for r in raced if not r.baseline} == {FINAL.processes * FINAL.rounds}
    assert summary.left_out == []
    assert clock.now > 60


@pytest.mark.parametrize("slow", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("seconds", [40, 60, 90])
def test_a_final_has_the_processes_that_a_verdict_needs(
    seconds: float, slow: float, clock: Clock, database: Database
) -> None:
    """Also where the machine turns out to be slower than expected: then fewer layers race."""
    tuned(LAYERS, database, Budget(seconds), SimulatedMeasurer(clock, slow, 1.0))
    processes = [len(set(r.processes)) for r in finals(database) if not r.baseline]
    assert min(processes, default=PROCESSES) >= PROCESSES


def test_with_less_time_there_are_fewer_races_and_the_summary_says_so(
    clock: Clock, database: Database
) -> None:
    summary = tuned(LIGHT, database, Budget(30), SimulatedMeasurer(clock, slow=1.5))
    said = "; ".join(summary.left_out)
    assert "races" in said
    processes = {len(set(r.processes)) for r in finals(database)}
    assert 0 < max(processes) < FINAL.processes
    assert f"{FINAL.processes - max(processes)} of {FINAL.processes} processes of the final" in said


def test_every_problem_is_begun_before_one_is_tuned(clock: Clock, database: Database) -> None:
    order: list[str] = []
    fast_run(
        LAYERS, database, Budget(30), measurer=SimulatedMeasurer(clock), sampler="random",
        observe=lambda p: order.append(p.record.problem) if p.record else None,
    )  # fmt: skip
    assert set(order[: len(LAYERS)]) == {str(p) for p, _ in LAYERS}


def test_naive_loops_take_their_share_at_most(clock: Clock, database: Database) -> None:
    """77 GFLOP at two a second are left out of a minute, and measured where there are ten."""
    summary = tuned(HEAVY, database, Budget(60), SimulatedMeasurer(clock))
    assert summary.trials
    assert database.records(algorithm="naive") == []
    assert "the naive loop of 1 problem" in summary.left_out
    tuned(HEAVY, database, Budget(600), SimulatedMeasurer(clock))
    assert len(database.records(algorithm="naive")) == 1


def test_a_budget_that_is_too_short_says_how_long_is_enough(
    clock: Clock, database: Database
) -> None:
    p = HEAVY[0][0]
    short = first_seconds(p) / 2
    summary = tuned(HEAVY, database, Budget(short), SimulatedMeasurer(clock))
    assert (summary.trials, summary.left_out) == (0, ["1 of 1 problem"])
    assert clock.now < short
    summary = tuned(HEAVY, database, Budget(enough([p])), SimulatedMeasurer(clock))
    assert summary.trials


def test_more_time_for_the_network_s_heaviest(clock: Clock, database: Database) -> None:
    """Where the final does not reach every problem, it reaches those that weigh most."""
    problems = [*LIGHT, (LAYERS[0][0], 9)]
    tuned(problems, database, Budget(40), SimulatedMeasurer(clock, slow=2.0))
    raced = {r.problem for r in finals(database)}
    assert str(LAYERS[0][0]) in raced


@pytest.mark.parametrize("stage", ["search", "final"])
@pytest.mark.parametrize("outcome", [1, 2, 7, 30])
def test_an_interrupt_at_any_time_keeps_all(
    stage: str, outcome: int, clock: Clock, database: Database
) -> None:
    seen: list[Record] = []

    def interrupt(progress: fastrun.Progress) -> None:
        if progress.record and progress.stage == stage:
            seen.append(progress.record)
            if len(seen) == outcome:
                raise KeyboardInterrupt

    summary = fast_run(
        LAYERS, database, Budget(60), measurer=SimulatedMeasurer(clock), sampler="random",
        observe=interrupt,
    )  # fmt: skip
    stored = database.records()
    assert {r.key for r in seen} <= {r.key for r in stored}
    if len(seen) == outcome:
        assert summary.interrupted
        assert len(stored) == sum(sum(s.outcomes.values()) for s in summary.searches)


def test_a_neighbour_that_never_rests_costs_few_repetitions(clock: Clock) -> None:
    quiet, noisy = (
        tuned(LIGHT, Database("sqlite://"), Budget(60), SimulatedMeasurer(clock, noise=noise))
        for noise in (0.0, 1.0)
    )
    assert noisy.trials > 0.8 * quiet.trials


def test_an_accident_is_repeated_and_a_noisy_minute_is_not() -> None:
    disturbances = fastrun.Disturbances()
    accidents = [disturbances.unusual(i % 5 == 4) for i in range(40)]
    assert all(accidents)
    assert not any([disturbances.unusual(True) for _ in range(20)][8:])
    assert all([disturbances.unusual(False) for _ in range(30)][-10:])

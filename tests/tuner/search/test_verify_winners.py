"""Stored winners that race again: who still wins, who lost, and what is stored of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import main
from fastrun.tuner.measure.measurer import heuristic_text
from fastrun.tuner.measure.races import FINAL
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import Outcome, Record
from fastrun.tuner.search.verify_winners import Verification, verify
from fastrun.tuner.store.database import Database
from tests.support.records import placed, record

P = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1 bias")
OTHER = ConvProblem.parse("conv 1x16x8x8 16x1x1 s1 p0")
SLOW = "naive(layout=NCHW)"


def stored(problem: ConvProblem, schedule: str, seconds: float, **fields: object) -> Record:
    usual = {
        "problem": str(problem),
        "schedule": schedule,
        "machine": Cpu.host().fingerprint,
        "toolchain": toolchain(),
        "stage": "final",
        "run": "before",
    }
    return record(samples=[seconds] * 15, **{**usual, **placed(15, 3), **fields})


def test_a_winner_that_was_never_one_loses_and_the_race_is_stored(tmp_path: Path) -> None:
    with Database(tmp_path / "records.db") as database:
        database.add(stored(P, SLOW, 1e-6))
        database.add(stored(P, heuristic_text(P), 2e-6, heuristic=True))
        [found] = verify(database, [P, OTHER])
        new = [r for r in database.records(stage="final") if r.run != "before"]
        [environment] = database.environments(new[0].run)
    assert found.before == pytest.approx(2.0)
    assert found.now < 0.9
    assert found.verdict == "slower"
    assert not found.holds
    assert found.drift == pytest.approx(found.now / 2 - 1)
    assert {r.schedule for r in new} == {SLOW, heuristic_text(P)}
    assert all(len(r.samples) == FINAL.processes * FINAL.rounds for r in new)
    assert environment.machine == Cpu.host().fingerprint


def test_a_schedule_that_cannot_be_built_any_more_has_failed(tmp_path: Path) -> None:
    with Database(tmp_path / "records.db") as database:
        database.add(stored(P, "forgotten(layout=NCHW)", 1e-6, toolchain="llvm 0, kernels 0"))
        [found] = verify(database, [P])
    assert (found.verdict, found.stale, found.holds) == ("failed", True, False)
    assert "forgotten" in found.winner.reason
    assert found.before != found.before  # no heuristic ran then
    assert found.heuristic.outcome == Outcome.CORRECT


@pytest.mark.parametrize(
    ("times", "verdict", "holds"),
    [(1.2, "faster", True), (1.01, "tie", True), (0.9, "slower", False), (None, "failed", False)],
)
def test_verdicts(times: float | None, verdict: str, holds: bool) -> None:
    winner = stored(P, "direct(layout=NHWC, mr=8)", 1e-3)
    if times is None:
        winner = replace(winner, outcome=Outcome.CORRECTNESS, samples=(), processes=(), rounds=())
    heuristic = stored(P, heuristic_text(P), 1e-3 * (times or 1), heuristic=True)
    found = Verification(P, winner, 1.1, False, winner, heuristic)
    assert (found.verdict, found.holds) == (verdict, holds)


def test_the_command_says_it_in_words_json_and_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "records.db")
    with Database(path) as database:
        database.add(stored(P, heuristic_text(P), 1e-6, heuristic=True))
    assert main(["verify", str(P), "--db", path]) == 0
    assert "1 winner raced the heuristic again, none have lost" in capsys.readouterr().out
    with Database(path) as database:
        database.add(stored(P, SLOW, 1e-9, time="2126-01-01T00:00:00+00:00"))
    assert main(["verify", str(P), "--db", path, "--json"]) == 1
    [row] = json.loads(capsys.readouterr().out)["problems"]
    assert (row["schedule"], row["verdict"], row["holds"]) == (SLOW, "slower", False)
    assert row["now_over_heuristic"] < 1
    assert main(["verify", str(OTHER), "--db", path]) == 0
    assert "1 problem not measured" in capsys.readouterr().out

"""The Pareto front: schedules with less workspace or a smaller error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import main
from fastrun.tuner.records.record import Errors, Record
from fastrun.tuner.report.frames import pareto_frame
from fastrun.tuner.report.plots import pareto
from fastrun.tuner.report.style import svg
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.standing import WORTH, front
from tests.support.records import record
from tests.support.synthetic import records

P = ConvProblem.parse("conv 1x64x56x56 64x3x3 s1 p1")


def at(mr: int, ms: float, workspace: int, error: float) -> Record:
    return record(mr, [1e-3 * ms], workspace=workspace, errors=Errors(10 * error, error, 0.0))


def test_each_of_the_front_beats_all_faster_ones_at_something() -> None:
    fastest, leaner = at(1, 1.0, 1000, 1e-6), at(2, 1.2, 500, 1e-6)
    finer, both = at(3, 1.3, 1000, 5e-7), at(4, 2.0, 0, 1e-7)
    dominated = [at(5, 1.1, 1000, 1e-6), at(6, 1.25, 600, 1e-6), at(7, 3.0, 0, 1e-7)]
    assert front([fastest, *dominated, both, finer, leaner]) == [fastest, leaner, finer, both]


def test_a_time_that_was_lucky_does_not_displace_the_winner() -> None:
    winner, lucky = at(1, 1.0, 1000, 1e-6), at(2, 0.9, 0, 1e-7)  # in the ranking's order
    leaner = at(3, 1.2, 500, 1e-6)
    assert front([winner, lucky, leaner]) == [winner, leaner]


def test_what_is_hardly_less_is_not_worth_a_line() -> None:
    fastest = at(1, 1.0, 1000, 1e-6)
    assert front([fastest, at(2, 1.1, 950, 0.95e-6)]) == [fastest]
    leaner = at(3, 1.1, int(1000 * WORTH) - 1, 1e-6)
    assert front([fastest, leaner]) == [fastest, leaner]


def test_baselines_old_code_and_what_has_no_error_are_left_out() -> None:
    known = at(1, 1.0, 0, 1e-6)
    ours = {"machine": Cpu.host().fingerprint, "problem": str(P)}
    stale = replace(at(2, 0.5, 0, 1e-7), **ours)
    assert front([known, stale, replace(known, baseline=True)]) == [known]
    assert front([replace(known, errors=None)]) == []


def test_the_figure_shows_every_algorithm_of_the_front() -> None:
    found = records([P], trials=40)
    table = pareto_frame({P: [r for r in found if r.errors and not r.baseline][:9]})
    picture = svg(pareto(table))
    for algorithm in table["algorithm"].unique():
        assert algorithm in picture
    assert (table["slower"] > 0).all()


def test_the_command_lists_the_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = "conv 1x9x9x9 9x3x3 s1 p1"
    path = str(tmp_path / "records.db")
    with Database(path) as database:
        for r in records([P], trials=12):
            database.add(r)
    assert main(["best", str(P), "--pareto", "--json", "--db", path]) == 0
    [found] = json.loads(capsys.readouterr().out)["problems"]
    times = [row["seconds"] for row in found["pareto"]]
    assert len(times) >= 1
    assert times == sorted(times)
    assert main(["best", str(P), "--pareto", "--db", path]) == 0
    out = capsys.readouterr().out
    assert all(row["schedule"].partition("(")[0] in out for row in found["pareto"])
    assert main(["best", other, "--pareto", "--db", path]) == 0
    assert "1 problem not measured" in capsys.readouterr().out

"""Replays of recorded spaces: the calculated baseline, scores, files, the command."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest

from fastrun import main as cli
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.record import Outcome, Record
from fastrun.tuner.records.statistics import mean_interval
from fastrun.tuner.report.plots import search_curves
from fastrun.tuner.report.style import svg
from fastrun.tuner.search.replay import (
    RecordedSpace,
    Replays,
    compare,
    curves_frame,
    overall_frame,
    recorded_spaces,
    replay,
    scores_frame,
)
from fastrun.tuner.search.sampler_choice import SAMPLERS
from fastrun.tuner.store import exchange
from fastrun.tuner.store.database import Database
from tests.support.records import PROBLEM, record


def made_up() -> list[Record]:
    """A bowl with a slow layout, illegal corners and failures: the optimum is one point."""
    records = []
    for layout, a, b in itertools.product(("NCHW", "NHWC"), range(12), (1, 2, 4, 8, 16)):
        if a + b > 20:
            continue
        text = f"direct(layout={layout}, a={a}, b={b})"
        seconds = 1e-3 * (1 + 0.03 * (a - 8) ** 2 + 0.1 * abs(b - 4) + 0.3 * (layout == "NCHW"))
        if a == 3:
            records.append(failed(text))
        else:
            records.append(record(schedule=text, samples=(seconds,)))
    return records


def failed(text: str) -> Record:
    return record(schedule=text, samples=(), outcome=Outcome.COMPILE, errors=None, reason="no")


@pytest.fixture(scope="module")
def space() -> RecordedSpace:
    (found,) = recorded_spaces(made_up())
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bowl.json.gz"
    exchange.write(path, "t4", made_up(), [Environment.host()])
    return path


def test_a_space_is_what_was_recorded(space: RecordedSpace) -> None:
    assert dict(space.space.domains) == {
        "layout": ["NCHW", "NHWC"],
        "a": list(range(12)),
        "b": [1, 2, 4, 8, 16],
    }
    assert len(list(space.space)) == len(space.values) == len(made_up())
    assert space.optimum == pytest.approx(1e-3)
    assert space.near == 1
    assert max(space.values) == space.slowest < math.inf
    assert math.inf in space.seconds.values()


def test_of_several_measurements_screening_counts_and_the_newest() -> None:
    again = [record(schedule=r.schedule, samples=(7e-3,)) for r in made_up()[:1]]
    raced = [record(schedule=r.schedule, samples=(1e-9,), stage="race") for r in made_up()]
    naive = [record(schedule="naive(layout=NCHW)", samples=(1e-9,), baseline=True)]
    (found,) = recorded_spaces([*made_up(), *again, *raced, *naive])
    assert next(iter(found.seconds.values())) == 7e-3
    assert found.optimum == pytest.approx(1e-3)


def test_what_is_too_small_is_no_space() -> None:
    assert recorded_spaces(made_up()[:20]) == []
    assert recorded_spaces([failed(r.schedule) for r in made_up()]) == []


def test_random_search_is_calculated() -> None:
    """Against all draws there are."""
    seconds = dict(enumerate([5.0, 1.0, 3.0, 3.0, math.inf, 2.0]))
    tiny = RecordedSpace("tiny", None, seconds)  # type: ignore[arg-type]
    values = [5.0, 1.0, 3.0, 3.0, 5.0, 2.0]
    for k in range(1, 7):
        draws = [min(draw) for draw in itertools.combinations(values, k)]
        assert tiny.random[k - 1] == pytest.approx(np.mean(draws))
    near = [1.0 in draw for draw in itertools.combinations(values, 3)]
    assert np.mean(near) == 0.5
    assert tiny.random_needs == 3
    assert tiny.random[tiny.horizon - 1] <= 1 + 0.05 * (3 - 1) < tiny.random[tiny.horizon - 2]


def test_scores_are_0_for_random_search_and_1_for_the_optimum(space: RecordedSpace) -> None:
    h = space.horizon
    walks = np.array([space.random[:h], np.full(h, space.optimum)])
    assert Replays(space, "x", walks).scores == pytest.approx([0, 1])
    assert Replays(space, "x", walks).needed.tolist() == [math.inf, 1]
    failing = np.array([[math.inf] * 3 + [space.optimum] * (h - 3)])
    assert -math.inf < Replays(space, "x", failing).scores[0] < 1
    assert Replays(space, "x", failing).needed[0] == 4


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "local", "exhaustive"])
def test_walks_fall_and_are_repeatable(space: RecordedSpace, sampler: str) -> None:
    walk = replay(space, sampler, seed=3)
    assert (walk == replay(space, sampler, seed=3)).all()
    finite = walk[np.isfinite(walk)]
    assert (np.diff(finite) <= 0).all()
    assert walk[-1] in space.seconds.values()
    assert sampler in SAMPLERS


def test_random_replays_score_nothing_and_learners_do(space: RecordedSpace) -> None:
    found = compare(space, ["random", "local", "tpe", "gp"], repeats=30)
    random, local, tpe, gp = (r.scores for r in found)
    low, high = mean_interval(random)
    assert low - 0.1 < 0 < high + 0.1
    assert local.mean() > 0.1
    assert tpe.mean() > 0.3
    assert gp.mean() > 0.3
    table = scores_frame(found)
    assert list(table["sampler"]) == ["random", "local", "tpe", "gp"]
    assert (table["low"] <= table["score"]).all()
    assert table["share"][2] < table["random_share"][2]
    assert list(overall_frame(found)["score"]) == pytest.approx(list(table["score"]))


def test_any_sampler_of_optuna_can_be_compared(
    space: RecordedSpace, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = compare(space, [optuna.samplers.QMCSampler], repeats=3)
    assert found.sampler == "QMCSampler"
    assert len({walk.tobytes() for walk in found.best}) == 3  # each walk has its own seed
    words = ["--samplers", "optuna.samplers.BruteForceSampler,local", "--repeats", "2"]
    assert cli.main(["compare-search", str(file), *words]) == 0
    assert "BruteForce" in capsys.readouterr().out
    assert cli.main(["compare-search", str(file), "--samplers", "optuna.samplers.Missing"]) == 2
    assert "no sampler 'optuna.samplers.Missing'" in capsys.readouterr().err


def test_the_figure_shows_every_space_and_method(space: RecordedSpace) -> None:
    found = compare(space, ["random", "local"], repeats=5)
    table = curves_frame(found)
    assert len(table) == 2 * space.horizon
    assert (table["low"] <= table["high"]).all()
    other = table.assign(space="another space")
    drawn = svg(search_curves(pd.concat([table, other])))
    for words in ("another space", "random, calculated", "local"):
        assert words in drawn


def test_the_command_compares_files(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.jsonl"
    exchange.write(other, "jsonl", made_up(), [])
    words = ["compare-search", str(file), str(other), "--samplers", "random,local"]
    out = tmp_path / "out"
    assert cli.main([*words, "--repeats", "5", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^bowl: \d+ schedules, 1 within 2 % of the optimum, 1.0+ ms$", printed, re.M)
    assert "all spaces" in printed
    assert "calculated" in printed
    table = pd.read_csv(out / "search.csv")
    assert set(table["space"]) == {"bowl", "other"}
    assert {p.name for p in out.iterdir()} == {"search.png", "search.csv", "scores.csv"}


def test_the_command_compares_what_the_database_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.db"
    with Database(path) as database:
        for r in made_up():
            database.add(record(**{**vars(r), "machine": Environment.host().machine}))
    words = ["compare-search", PROBLEM, "--samplers", "local", "--repeats", "5", "--db", str(path)]
    assert cli.main(words) == 0
    assert f"direct on {PROBLEM}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none.json"], "none.json"),
        ([PROBLEM, "--samplers", "tpe,best"], "no sampler 'best'"),
        ([PROBLEM, "--samplers", "tpe,optuna.samplers."], "no sampler 'optuna.samplers.'"),
    ],
)
def test_mistakes_are_explained(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = cli.main(["compare-search", *words])
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    assert code == 2
    assert says in capsys.readouterr().err


def test_a_file_without_a_space_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "few.jsonl"
    exchange.write(path, "jsonl", made_up()[:5], [])
    assert cli.main(["compare-search", str(path)]) == 2
    assert "few.jsonl: no algorithm has the 65 measured schedules" in capsys.readouterr().err

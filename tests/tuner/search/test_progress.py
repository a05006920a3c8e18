"""What is seen of a search in Python: the line while it runs, the summary after it."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastrun.tuner.search.fastrun as search
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.problem_search import ProblemSearch
from fastrun.tuner.search.progress import ProgressLine, _Cell, _Terminal, default_observer
from fastrun.tuner.search.summary import Summary
from fastrun.tuner.store.database import Database
from tests.support.simulated import Clock, SimulatedMeasurer

LAYERS = [(ConvProblem.parse(f"conv 1x16x{n}x{n} 16x3x3 s1 p1"), n) for n in (8, 12)]


@pytest.fixture
def database(tmp_path: Path) -> Database:
    with Database(tmp_path / "records.db") as opened:
        yield opened


def tuned(database: Database, monkeypatch: pytest.MonkeyPatch, **further: object) -> Summary:
    clock = Clock()
    monkeypatch.setattr(search, "monotonic", clock)
    measurer = SimulatedMeasurer(clock)
    return fast_run(LAYERS, database, Budget(trials=6), measurer=measurer, **further)


def test_the_line_says_how_far_and_how_fast(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[tuple[float, str, bool]] = []
    line = ProgressLine(Budget(trials=6), lambda *shown: lines.append(shown))
    monkeypatch.setattr("fastrun.tuner.search.progress._EVERY", 0.0)
    summary = tuned(database, monkeypatch, observe=line)
    shares = [share for share, _, _ in lines]
    assert shares == sorted(shares)
    assert lines[-1][0] == 1.0
    assert [done for _, _, done in lines].count(True) == 1
    best = sum(s.occurrences * s.best for s in summary.searches)
    assert f"{summary.trials} trials · best {1e3 * best:.3g}"[:16] in lines[-1][1]
    assert "over naive" in lines[-1][1]


def test_scripts_without_a_terminal_stay_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert default_observer(Budget(1.0)) is None


def test_nothing_is_shown_on_request(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_: Budget) -> None:
        raise AssertionError("a line is shown")

    monkeypatch.setattr(search, "default_observer", never)
    tuned(database, monkeypatch, quiet=True)


def test_a_terminal_has_one_line_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = io.StringIO()
    show = _Terminal(stream)
    show(0.5, "12 trials · " + "x" * 100, False)
    show(1.0, "done", True)
    first, second = stream.getvalue().split("\r\x1b[K")[1:]
    assert len(first) == 39
    assert second == f"{'━' * 24} done\n"


def test_a_notebook_has_one_picture_that_is_replaced() -> None:
    pictures = []

    def display(picture: str, display_id: bool) -> SimpleNamespace:
        pictures.append(picture)
        return SimpleNamespace(update=lambda new: pictures.append(new))

    cell = _Cell(display, str)
    cell(0.25, "a < b", False)
    cell(1.0, "done", True)
    assert "0.250" in pictures[0]
    assert "a &lt; b" in pictures[0]
    assert len(pictures) == 2


def test_the_summary_is_text_table_and_figure(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tuned(database, monkeypatch, quiet=True)
    table = summary.frame()
    assert list(table["problem"]) == [str(p) for p, _ in LAYERS]
    assert list(table["occurrences"]) == [8, 12]
    assert (table["over_naive"] == table["naive"] / table["best"]).all()
    assert table["trials"].sum() == sum(s.outcomes.total() for s in summary.searches)
    for text in (str(summary), summary._repr_html_()):
        assert summary.run in text
        assert str(LAYERS[1][0]) in text
    axes = summary.plot().axes[0]
    assert len(axes.lines) == 1 + len(LAYERS)  # and their median
    one = summary.searches[0]
    assert str(one.problem) in repr(one)
    assert one.incumbent is not None
    assert one.incumbent.schedule in one._repr_html_()


def test_a_summary_of_nothing_measured() -> None:
    cpu = SimulatedMeasurer(Clock()).cpu
    empty = Summary("run", [ProblemSearch(LAYERS[0][0], 1, cpu)], 0, 0, 0.0, interrupted=True)
    assert math.isnan(empty.frame()["best"][0])
    assert "interrupted" in str(empty)
    assert empty._repr_html_()

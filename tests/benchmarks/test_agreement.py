"""The experiments on agreement and near shapes, on tiny layers."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fastrun.benchmarks.experiments import agreement, nearest
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.measurer import heuristic_text
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.store.database import Database
from tests.support.commands import short_finals
from tests.tuner.search.test_verify_winners import stored

pytestmark = pytest.mark.slow

P = "conv 1x8x8x8 8x3x3 s1 p1 bias"
OTHER = "conv 1x16x16x16 16x3x3 s1 p1 bias"


def test_agreement_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agreement, "REPEATED", (P,))
    monkeypatch.setattr(agreement, "LATER", (P,))
    monkeypatch.setattr(agreement, "TUNINGS", 1)
    short_finals(monkeypatch)
    # A number of trials, because no time is enough on every machine.
    monkeypatch.setattr(agreement, "Budget", lambda seconds: Budget(trials=4))
    options = ["--work", str(tmp_path), "--csv", str(tmp_path), "--seconds", "2"]
    assert agreement.main([*options, "--minutes", "0"]) == 0
    assert "3 steps left" in capsys.readouterr().err
    assert agreement.main(options) == 0
    out = capsys.readouterr().out
    assert "1 tunings each" in out
    assert "all layers: 1;" in out
    tunings = pd.read_csv(tmp_path / "agreement-tunings.csv")
    assert list(tunings["tuning"]) == [0]
    assert tunings["behind"].min() == 0
    [later] = pd.read_csv(tmp_path / "agreement-later.csv").itertuples()
    assert later.drift == pytest.approx(later.again / later.reported - 1, abs=2e-3)
    assert agreement.main(options) == 0
    assert "tun" not in capsys.readouterr().err  # nothing is left to be done


def test_a_near_shape_s_winner_races_the_heuristic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.db"
    with Database(path) as database:
        for text in (P, OTHER):
            p = ConvProblem.parse(text)
            database.add(stored(p, heuristic_text(p), 1e-6, heuristic=True))
    assert nearest.main(["--db", str(path), "--csv", str(tmp_path), "--filter", P]) == 0
    [row] = pd.read_csv(tmp_path / "nearest.csv").itertuples()
    assert row.nearest == "3x3 16→16 @16"
    assert row.gain > 0
    assert "geometric mean" in capsys.readouterr().out

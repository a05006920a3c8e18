"""The experiments on several tunings of a network and on other settings of peers."""

from __future__ import annotations

from pathlib import Path

import onnx
import pandas as pd
import pytest

from fastrun.benchmarks.experiments import settings, tunings
from fastrun.benchmarks.peers import missing
from fastrun.tuner.search.budget import Budget
from tests.support.commands import short_finals
from tests.support.graph_models import model, node, normal


@pytest.fixture
def network(tmp_path: Path) -> str:
    convolution = node("Conv", "x w b", "y", pads=[1, 1, 1, 1])
    weights = {"w": normal(16, 16, 3, 3), "b": normal(16)}
    path = tmp_path / "small.onnx"
    onnx.save(model([convolution], weights, shape=(1, 16, 12, 12)), path)
    return str(path)


@pytest.mark.slow
def test_tunings_go_on_where_they_were_stopped(
    network: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short_finals(monkeypatch)
    # A number of trials, because no time is enough on every machine.
    monkeypatch.setattr(tunings, "Budget", lambda seconds: Budget(trials=2))
    words = [network, "--tunings", "1", "--longer", "0", "--work", str(tmp_path)]
    assert tunings.main([*words, "--minutes", "0"]) == 0
    assert "2 steps left" in capsys.readouterr().err
    assert tunings.main([*words, "--csv", str(tmp_path)]) == 0
    assert "of 1 tuning within 2 % of the fastest plan" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "tunings.csv")
    assert list(table["tuning"]) == ["heuristic", "0"]
    assert table["behind"].min() == 0
    before = (tmp_path / "small-1-race.json").read_bytes()
    assert tunings.main(words) == 0
    assert (tmp_path / "small-1-race.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(bool(missing("ort")), reason="onnxruntime is not installed")
def test_settings_race_those_of_the_benchmark(
    network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [network, "--rounds", "5", "--tool-seconds", "0", "--csv", str(tmp_path)]
    assert settings.main(words) == 0
    table = pd.read_csv(tmp_path / "settings.csv").query("engine == 'ort'")
    assert set(table["setting"]) == set(settings.ENGINES["ort"].settings)
    [benched] = table.query("setting == @settings.BENCHED")["faster"]
    assert benched == 1
    assert "threads do not spin" in capsys.readouterr().out


def test_times_are_read_with_their_unit() -> None:
    engines = settings.ENGINES
    assert engines["ort"].tool
    assert engines["openvino"].tool
    printed = "[ INFO ]    Median:        912.42 us\n[ INFO ]    Average:  1.02 ms"
    assert settings.seconds_said(engines["openvino"].tool, printed) == pytest.approx(912.42e-6)
    printed = "iterations: 10\navg latency: 33.5 ms\n"
    assert settings.seconds_said(engines["ort"].tool, printed) == pytest.approx(33.5e-3)
    with pytest.raises(RuntimeError, match="no time in what the tool printed: nothing"):
        settings.seconds_said(engines["ort"].tool, "nothing")

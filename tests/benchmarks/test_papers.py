"""Papers' tables beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrun.benchmarks import papers
from fastrun.graph.core.errors import GraphError
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import main
from fastrun.tuner.records.record import Record
from fastrun.tuner.store.database import Database
from tests.support.records import record


def test_shares_are_of_each_side_s_own_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Database(tmp_path / "empty.db").close()
    peak = papers.probe().peak
    measured = []

    def remeasure(p: ConvProblem, schedule: str, threads: int, regime: str) -> Record:
        measured.append((schedule, threads, regime))
        return record(schedule=schedule, samples=[p.flops / (2 * peak)] * 5)

    monkeypatch.setattr(papers, "remeasure", remeasure)
    assert main(["bench", "--paper", "tvm-winograd", "--db", str(tmp_path / "empty.db")]) == 0
    out = capsys.readouterr().out
    assert len(measured) == 4
    assert all(schedule.startswith("winograd(") for schedule, _, _ in measured)
    assert "161 %" in out  # 193 of 120 GFLOP/s
    assert out.count("200 %") == 4
    assert "https://github.com/apache/tvm/pull/2111" in out


def test_an_unknown_paper_is_refused() -> None:
    from fastrun.commands.bench import _paper

    with pytest.raises(GraphError, match="no paper 'x': there are tvm-winograd"):
        _paper("x", None)

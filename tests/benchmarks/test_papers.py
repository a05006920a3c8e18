"""Papers' tables beside ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastrun.benchmarks import paper_networks, papers
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
    # Where a processor has tile registers they may be faster than Winograd's method.
    assert {schedule.partition("(")[0] for schedule, _, _ in measured} <= {"winograd", "amx"}
    assert "161 %" in out  # 193 of 120 GFLOP/s
    assert out.count("200 %") == 4
    assert "https://github.com/apache/tvm/pull/2111" in out


def test_a_paper_without_rates_is_compared_as_it_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Database(tmp_path / "empty.db").close()
    peak = papers.probe().peak

    def remeasure(p: ConvProblem, schedule: str, threads: int, regime: str) -> Record:
        slower = 4 if schedule.startswith("im2col(") else 2
        assert "fused=no" in schedule or slower == 2
        return record(schedule=schedule, samples=[slower * p.flops / peak] * 5)

    monkeypatch.setattr(papers, "remeasure", remeasure)
    for name, algorithm in (("mec", "mec"), ("zhang", "direct")):
        assert main(["bench", "--paper", name, "--db", str(tmp_path / "empty.db")]) == 0
        out = capsys.readouterr().out
        layers = len(papers.PAPERS[name].layers)
        assert out.count(algorithm) >= layers
        assert "\nthe layers: " in out  # where the list is from
        assert "theirs" not in out  # the paper's figures are in plots only
        assert "over im2col of the whole image, packed separately: 2.00x" in out
        assert out.count(" 50 %") >= layers
        assert out.count(" 25 %") >= layers


@pytest.mark.slow
def test_networks_of_one_layout_race_with_free_ones(capsys: pytest.CaptureFixture[str]) -> None:
    found = paper_networks.ablation("squeezenet1.1", quick=True)
    assert set(found.seconds) == {"heuristic", "all NCHWc", "all NHWC", "all NCHW"}
    assert 0 < found.share < 3
    paper_networks.show([found])
    assert "free over all NCHW:" in capsys.readouterr().out


def test_an_unknown_paper_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--paper", "x"]) != 0
    assert "no paper 'x': there are tvm-winograd" in capsys.readouterr().err

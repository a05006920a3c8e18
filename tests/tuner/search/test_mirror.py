"""Trials in Optuna's own storage, and optuna-dashboard showing them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import optuna
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import main
from fastrun.tuner.records.record import Outcome, Record
from fastrun.tuner.search.fastrun import Progress
from fastrun.tuner.search.mirror import Mirror
from fastrun.tuner.store.database import Database
from tests.support.synthetic import records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
P = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1 bias relu")


def told(record: Record) -> Progress:
    return Progress("search", [], record, 1, 1.0, None)


def test_every_trial_is_mirrored(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    made = records([P], trials=30)
    for half in (made[:20], made[20:]):  # another run goes on with the same studies
        with Mirror(url, Cpu.host()) as mirror:
            for record in half:
                mirror(told(record))
        assert mirror.error is None
    screened = [r for r in made if r.stage == "screen" and not r.baseline]
    mirrored = {}
    for summary in optuna.get_all_study_summaries(url):
        study = optuna.load_study(study_name=summary.study_name, storage=url)
        assert summary.study_name.startswith(f"{P}, ")
        mirrored |= {t.user_attrs["schedule"]: t for t in study.trials}
    assert mirrored.keys() == {r.schedule for r in screened}
    for r in screened:
        trial = mirrored[r.schedule]
        assert trial.params.items() <= r.parameters.items()
        assert {n for n, v in r.parameters.items() if type(v) is int} <= trial.params.keys()
        if r.outcome == Outcome.CORRECT:
            assert trial.value == pytest.approx(1e3 * r.seconds_per_call, rel=1e-4)
        else:
            assert trial.state == optuna.trial.TrialState.FAIL
            assert trial.user_attrs["reason"] == r.reason


def test_tune_mirrors_what_it_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, database = f"sqlite:///{tmp_path}/optuna.db", tmp_path / "records.db"
    assert main(["tune", str(P), "--trials", "6", "--db", str(database), "--mirror", url]) == 0
    assert f"mirrored in {url}" in capsys.readouterr().out
    with Database(database) as stored:
        count = sum(not r.baseline for r in stored.records(stage="screen"))
    assert sum(s.n_trials for s in optuna.get_all_study_summaries(url)) == count


def test_no_storage_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.db"
    text.write_text("no database at all\n" * 99)
    for url in ("nosuch://x", "nothing", f"sqlite:///{tmp_path}/no/x.db", f"sqlite:///{text}"):
        assert main(["tune", str(P), "--mirror", url, "--db", str(tmp_path / "x.db")]) == 2
        assert capsys.readouterr().err.startswith("fastrun: error: no Optuna storage at ")


def test_the_dashboard_shows_the_studies(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra `dashboard` is not installed")
    url = f"sqlite:///{tmp_path}/optuna.db"
    with Mirror(url, Cpu.host()) as mirror:
        for record in records([P], trials=8):
            mirror(told(record))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "fastrun", "dashboard", url, "--port", str(port)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout
            page = re.findall(r"http://\S+/", serving.stdout.readline())[0]
            with urlopen(f"{page}dashboard/", timeout=20) as answer:
                assert b"<html" in answer.read().lower()
            with urlopen(f"{page}api/studies", timeout=20) as answer:
                studies = json.load(answer)["study_summaries"]
            assert {s["study_name"] for s in studies} == {
                s.study_name for s in optuna.get_all_study_summaries(url)
            }
            first = studies[0]["study_id"]
            with urlopen(f"{page}api/studies/{first}?after=0", timeout=20) as answer:
                assert json.load(answer)["trials"]
        finally:
            serving.kill()


def test_a_dashboard_of_nothing_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra `dashboard` is not installed")
    assert main(["dashboard", f"sqlite:///{tmp_path}/optuna.db"]) == 2
    assert "--mirror" in capsys.readouterr().err
    assert not (tmp_path / "optuna.db").exists()

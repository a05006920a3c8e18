"""Studies in a journal file, and optuna-dashboard showing them."""

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

from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import main
from fastrun.tuner.records.record import Outcome
from fastrun.tuner.search.storage import journal
from fastrun.tuner.store.database import Database

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
P = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1 bias relu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one search, with its database and its journal."""
    folder = tmp_path_factory.mktemp("journal")
    words = ["--db", str(folder / "records.db"), "--storage", str(folder / "optuna.journal")]
    for trials in ("6", "4"):
        assert main(["tune", str(P), "--trials", trials, *words]) == 0
    return folder


def test_the_studies_of_a_run_are_in_the_journal(folder: Path) -> None:
    storage = journal(folder / "optuna.journal")
    with Database(folder / "records.db") as database:
        records = [r for r in database.records() if r.screened]
        first, second = (run.name for run in database.runs())
    for run, known in ((first, []), (second, [r for r in records if r.run == first])):
        own = [name for name in optuna.get_all_study_names(storage) if name.endswith(run)]
        trials = {}
        for name in own:
            study = optuna.load_study(study_name=name, storage=storage)
            assert name.startswith(f"{P}, ")
            assert study.metric_names == ["ms per call"]
            trials |= {t.user_attrs["schedule"]: (study, t) for t in study.trials}
        expected = [r for r in records if r.run == run]
        assert trials.keys() == {r.schedule for r in [*expected, *known]}
        for r in expected:
            study, trial = trials[r.schedule]
            assert trial.state.is_finished()
            studied = {k: study.user_attrs[k][at] for k, at in trial.params.items()}
            assert studied == r.parameters
            if r.outcome == Outcome.CORRECT:
                assert trial.value == pytest.approx(1e3 * r.seconds_per_call)
            else:
                assert trial.user_attrs["reason"].startswith(r.outcome)


def test_what_is_no_journal_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.db"
    text.write_text("no journal at all\n" * 99)
    (tmp_path / "binary.db").write_bytes(bytes(range(256)))
    nowhere = tmp_path / "no" / "x.journal"
    with pytest.raises(SystemExit) as left:
        main(["tune", str(P), "--storage", str(nowhere)])
    assert left.value.code == 2
    assert str(nowhere) in capsys.readouterr().err
    for path in (text, tmp_path / "binary.db"):
        assert main(["tune", str(P), "--storage", str(path), "--db", str(tmp_path / "x.db")]) == 2
        assert str(path) in capsys.readouterr().err
    for path in (text, tmp_path / "binary.db", nowhere):
        assert main(["dashboard", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_the_dashboard_shows_the_studies(folder: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra `dashboard` is not installed")
    path = folder / "optuna.journal"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "fastrun", "dashboard", str(path), "--port", str(port)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout
            page = re.findall(r"http://\S+/", serving.stdout.readline())[0]
            with urlopen(f"{page}dashboard/", timeout=20) as answer:
                assert b"<html" in answer.read().lower()
            with urlopen(f"{page}api/studies", timeout=20) as answer:
                studies = json.load(answer)["study_summaries"]
            assert {s["study_name"] for s in studies} == set(
                optuna.get_all_study_names(journal(path))
            )
            first = studies[0]["study_id"]
            with urlopen(f"{page}api/studies/{first}?after=0", timeout=20) as answer:
                assert json.load(answer)["trials"]
        finally:
            serving.kill()


def test_a_dashboard_of_nothing_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna_dashboard", reason="the extra `dashboard` is not installed")
    assert main(["dashboard", str(tmp_path / "optuna.journal")]) == 2
    assert "--storage" in capsys.readouterr().err
    assert not (tmp_path / "optuna.journal").exists()

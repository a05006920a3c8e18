"""The examples are short, and work."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastrun.graph.plan.plan import Plan
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.records.record import Outcome
from fastrun.tuner.store import exchange
from fastrun.tuner.store.database import Database
from tests.support.commands import fresh_cache
from tests.support.graph_models import model, node, normal
from tests.support.records import record
from tests.support.synthetic import records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
P = ConvProblem.parse("conv 1x16x14x14 16x3x3 s1 p1 bias relu")


def run(folder: Path, example: str, *words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / example, *words],
        capture_output=True, text=True, cwd=folder, timeout=900,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder and a cache; in the folder is a model of two convolutions."""
    made = tmp_path_factory.mktemp("examples")
    nodes = [
        node("Conv", "x v", "a", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("Conv", "b w", "y"),
    ]
    weights = {"v": normal(16, 4, 3, 3), "w": normal(8, 16, 1, 1)}
    onnx.save(model(nodes, weights, shape=(1, 4, 12, 12)), made / "two.onnx")
    with pytest.MonkeyPatch.context() as patch:
        fresh_cache(made / "cache", patch)
        yield made


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_are_short(path: Path) -> None:
    trains = path.name == "one_bit.py"
    assert len(path.read_text().splitlines()) < (180 if trains else 60)


def test_tune_a_model_and_embed_it(folder: Path) -> None:
    options = ("--seconds", "25", "--trials", "2", "--plan", "two.plan", "--db", "two.db")
    out = run(folder, "tune_model.py", "two.onnx", *options)
    assert "conv 1x4x12x12 16x3x3 s1 p1 relu: " in out
    assert out.splitlines()[-1] == "plan: two.plan"
    plan = Plan.load(folder / "two.plan")
    assert sum("(" in form.algorithm for form in plan.forms.values()) == 2
    out = run(folder, "embed.py", "two.onnx", "--plan", "two.plan", "--requests", "9")
    speed, refusal = out.splitlines()
    assert float(speed.split()[0]) > 0
    assert refusal.startswith("refused: ")
    assert "(1, 4, 12, 11)" in refusal


def test_a_service_answers_like_its_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from embed import Service

    from fastrun import load

    image = normal(1, 4, 12, 12)
    (expected,) = load(folder / "two.onnx", policy="heuristic").run({"x": image}).values()
    service = Service(str(folder / "two.onnx"), None, clones=3, threads=1)
    for _ in range(5):
        assert np.array_equal(service(image), expected)


def test_an_own_sampler(folder: Path) -> None:
    out = run(folder, "own_sampler.py", str(P), "--trials", "5", "--db", "own.db")
    assert "after 5 trials" in out
    with Database(folder / "own.db") as database:
        assert len(database.records(stage="screen")) == 5
        assert out.splitlines()[-1] in {r.schedule for r in database.records(problem=P)}


def test_merge_two_machines_and_report(folder: Path) -> None:
    here = records([P])
    board = [replace(r, machine="0123456789abcdef") for r in records([P], seed=1)]
    for name, found in (("here.db", here), ("board.db", board)):
        with Database(folder / name) as database:
            for r in found:
                database.add(r)
    out = run(folder, "merge_and_report.py", "all.db", "here.db", "board.db", "--out", "report")
    assert f"board.db: {len(board)} new records" in out
    assert here[0].machine in out
    assert "0123456789abcdef" in out
    assert (folder / "report" / "report.html").is_file()
    with Database(folder / "all.db") as merged:
        assert merged.merge(folder / "board.db") == 0


def test_open_data_in_kernel_tuner(folder: Path) -> None:
    pytest.importorskip("kernel_tuner")
    data = ROOT / "results" / "open-data" / "im2col-resnet-14x14.json.gz"
    out = run(folder, "kernel_tuner_simulation.py", data, "--strategy", "brute_force")
    assert "brute_force: 1248 schedules tried" in out
    assert "1.000 times the optimum of the 1248 schedules measured" in out
    failed = replace(record(9, ()), outcome=Outcome.RUNTIME, errors=None, reason="crashed")
    exchange.write(folder / "some.json", "t4", [record(6), record(7), record(8), failed], [])
    options = ("--strategy", "random_sample", "--evaluations", "4")
    out = run(folder, "kernel_tuner_simulation.py", "some.json", *options)
    assert "random_sample: 4 schedules tried" in out

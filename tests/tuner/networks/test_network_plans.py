"""Experiment 4: which plans compete, what is compared, and what is printed and stored."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pandas as pd
import pytest

from fastrun.benchmarks.experiments import network_plans
from fastrun.benchmarks.experiments.network_plans import (
    FINAL,
    HEURISTIC,
    IM2COL,
    NAIVE,
    TUNED,
    WITHOUT,
    named_plans,
    speedups,
)
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.plan import Plan
from fastrun.graph.zoo.writer import Writer
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.store.database import Database

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path: Path) -> str:
    net = Writer("small", (1, 16, 28, 28))
    x = net.relu("r1", net.conv("a", net.input, 32, 3, padding=1, bias=True))
    x = net.relu("r2", net.conv("b", x, 32, 3, padding=1, bias=True))
    path = tmp_path / "small.onnx"
    onnx.save(net.model(net.conv("c", x, 24, 1, bias=True)), path)
    return str(path)


def algorithms(plan: Plan) -> set[str]:
    return {form.algorithm.partition("(")[0] for form in plan.forms.values()}


def test_plans_keep_to_their_names(model: str, tmp_path: Path) -> None:
    with Database(tmp_path / "empty.db") as store:
        plans = named_plans(optimise(load_network(model)), store, Cpu.host(), 1)
    assert algorithms(plans[NAIVE]) == {"naive"}
    assert "im2col" in algorithms(plans[IM2COL])
    assert "winograd" in algorithms(plans[HEURISTIC])
    assert "winograd" not in algorithms(plans[WITHOUT])
    assert {str(f.writes) for f in plans["all NHWC"].forms.values()} == {"NHWC"}
    assert plans[TUNED] == plans[HEURISTIC]
    assert FINAL not in plans


def test_the_command_tunes_races_prints_and_stores(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    words = [model, "--quick", "--seconds", "2", "--db", str(tmp_path / "own.db")]
    assert network_plans.main([*words, "--csv", str(tmp_path), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "tuning, Winograd in both" in printed
    table = pd.read_csv(tmp_path / "network-plans.csv")
    assert set(table["network"]) == {"small"}
    assert {NAIVE, HEURISTIC, FINAL} <= set(table["plan"])
    assert (table["seconds"] > 0).all()
    [part] = json.loads(out.read_text())["parts"].values()
    assert {len(row["samples"]) for row in part["table"] if row["plan"] != NAIVE} == {5}


def test_comparisons_are_paired_but_for_naive_loops() -> None:
    rows = [
        ("n", 1, NAIVE, "", 9.0, [9.0]),
        ("n", 1, WITHOUT, "", 4.0, [4.0] * 36),
        ("n", 1, HEURISTIC, "", 2.0, [2.0] * 36),
        ("n", 1, TUNED, HEURISTIC, 2.0, [2.0] * 36),
        ("n", 1, FINAL, "", 1.99, [1.99] * 36),
    ]
    columns = ["network", "threads", "plan", "same", "seconds", "samples"]
    found = speedups(pd.DataFrame(rows, columns=columns)).set_index("comparison")
    assert found.loc["Winograd is available", "speedup"] == pytest.approx(2.0)
    assert found.loc["Winograd is available", "verdict"] == "faster"
    assert found.loc["tuning, Winograd in both", "verdict"] == "tie"
    assert found.loc["all together", "verdict"] == "unsure"
    assert "tuning, Winograd in neither" not in found.index
    same = speedups(pd.DataFrame(rows[2:4], columns=columns).assign(plan=[HEURISTIC, FINAL]))
    assert list(same["verdict"]) == ["same plan"]

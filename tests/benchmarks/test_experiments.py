"""The experiments: their schedules, races, tables, files and figures."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pandas as pd
import pytest

from fastrun.benchmarks import figures as comparisons
from fastrun.benchmarks.experiments import (
    bands,
    command,
    emulated,
    exported,
    formulas,
    im2col,
    metaschedule,
    pack,
    pairs,
    prefetch,
    starts,
    winograd,
)
from fastrun.benchmarks.experiments.pairs import Findings, Pair
from fastrun.graph.zoo.writer import Writer
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule, templates
from fastrun.tuner.records.record import Record
from fastrun.tuner.records.verdicts import verdict
from fastrun.tuner.report.frames import rows
from fastrun.tuner.report.style import svg
from fastrun.tuner.store.database import Database
from tests.support.records import placed, record

pytestmark = pytest.mark.slow

P = ConvProblem.parse("conv 1x16x14x14 32x3x3 s1 p1 bias relu")


def timed(*samples: float) -> Record:
    fields = placed(len(samples), max(1, len(samples) // 5))
    return replace(record(), samples=samples, run="r", stage="final", **fields)


def made_up() -> pd.DataFrame:
    columns = ["layer", "kind", "speedup", "low", "high", "verdict", "before_bytes", "after_bytes"]
    rows = [
        ("a", "x", 2.0, 1.9, 2.1, "faster", 9 << 20, 1 << 18),
        ("a", "y", 8.0, 0.9, 9.1, "tie", 9 << 20, 1 << 18),
        ("b", "x", 0.5, 0.4, 0.6, "slower", 1 << 12, 1 << 12),
    ]
    return pd.DataFrame(rows, columns=columns)


def test_the_command_prints_and_stores_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = tmp_path / "out.json"
    assert pack.main(["--quick", "--csv", str(tmp_path), "--json", str(samples)]) == 0
    printed = capsys.readouterr().out
    assert "fused" in printed
    table = pd.read_csv(tmp_path / "pack.csv")
    assert list(table["layout"]) == ["NCHW", "NHWC"]
    assert (table[["before", "after", "speedup"]] > 0).all(axis=None)
    assert (table["before_bytes"] > table["after_bytes"]).all()
    assert (table["after_error"] < 1e-6).all()
    stored = json.loads(samples.read_text())["parts"]["pack"]
    assert len(stored["table"]) == 2
    finals = [r for r in map(Record.from_dict, stored["records"]) if r.stage == "final"]
    assert {len(r.samples) for r in finals} == {5}
    assert {r.schedule for r in finals} == {*table["before_schedule"], *table["after_schedule"]}


def test_a_side_of_which_nothing_runs_is_an_error() -> None:
    impossible = [
        templates()["im2col"].text(replace(im2col.on_tile(P, "NCHW"), cols=cols, rows=40))
        for cols in (4, 6)
    ]
    possible = im2col.schedules(P, ["NCHW"], [24], fused=True)
    with pytest.raises(RuntimeError, match="no schedule can be timed: constraints: tile needs"):
        pairs.race_pairs([Pair(P, impossible, possible, {})], quick=True)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([2.0] * 15, [1.0] * 15, "faster"),
        ([1.0] * 15, [2.0] * 15, "slower"),
        ([1.02] * 15, [1.0] * 15, "tie"),
        ([2.0] * 10, [1.0] * 10, "unsure"),
    ],
)
def test_verdicts(before: list[float], after: list[float], expected: str) -> None:
    assert verdict(timed(*before), timed(*after)) == expected


def test_whole_and_blocked_differ_in_nothing_but_the_block() -> None:
    for p in im2col.layers():
        pixels = p.oh * p.ow
        for layout in im2col.LAYOUTS:
            sides = [
                {parse_schedule(s)[1] for s in im2col.schedules(p, [layout], blocks, False)}
                for blocks in ([pixels], im2col.blocks(p))
            ]
            assert {s.block for s in sides[1]} == {b for b in im2col.blocks(p) if b < pixels}
            assert {replace(s, block=0) for s in sides[0]} == {
                replace(s, block=0) for s in sides[1]
            }


def test_the_layers_of_the_article_are_there() -> None:
    texts = {str(p) for p in im2col.layers()}
    assert "conv 1x3x224x224 64x7x7 s2 p3 bias relu" in texts
    assert "conv 1x512x14x14 512x3x3 s1 p1 bias relu" in texts
    assert len(texts) >= 20


def test_engineered_keeps_the_tile() -> None:
    p = winograd.layer(64, 56)
    for m in winograd.TILES:
        found = parse_schedule(winograd.engineered(p, m))[1]
        assert (found.mh, found.mw) == (m, m)


def test_prefetch_is_the_only_difference() -> None:
    for label, algorithm, text in prefetch.LAYERS:
        found = prefetch.pair(label, algorithm, text, "hot")
        without, with_ = (
            [parse_schedule(schedule)[1] for schedule in side] for side in found.sides
        )
        assert {s.prefetch for s in without} == {0}
        assert min(s.prefetch for s in with_) > 0
        assert {replace(s, prefetch=0) for s in with_} == set(without)


def test_formulas_are_varied_round_what_they_say() -> None:
    cpu = Cpu.host()
    for formula in formulas.FORMULAS.values():
        for text in formula.layers:
            p = ConvProblem.parse(text)
            template = templates()[formula.algorithm]
            says, tried = formula.schedules(p)
            assert says == template.text(template.heuristic(p, cpu))
            values = [getattr(parse_schedule(s)[1], formula.field) for s in tried]
            assert says in tried
            assert values == sorted(set(values))
            assert values[-1] == formula.everything(p, parse_schedule(says)[1])


def test_curves_are_of_the_first_race() -> None:
    name, formula = next(iter(formulas.FORMULAS.items()))
    p = ConvProblem.parse(formula.layers[0])
    says, tried = formula.schedules(p)
    races = [
        replace(record(), problem=str(p), schedule=s, stage="race", samples=(1.0 + n,))
        for n, s in enumerate(tried)
    ]
    value = formula.value(says)
    table = pd.DataFrame(
        [(name, "a", value, str(p))], columns=["formula", "layer", "value", "problem"]
    )
    final = replace(races[0], stage="final", samples=(9.0,))
    curve = formulas.curves(Findings(table, [*races, final]))
    assert list(curve["slower"]) == [1.0 + n for n in range(len(tried))]
    assert float(curve[curve["value"] == value]["times"].iloc[0]) == 1.0


def test_bands_race_the_same_kernels_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bands.main(["--quick", "--csv", str(tmp_path)]) == 0
    assert "in bands" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "bands.csv")
    assert list(table["layer"].unique()) == [bands.LAYERS[0].label]
    assert (table[["before", "after", "speedup", "rows"]] > 0).all(axis=None)


def test_summary_counts_and_averages() -> None:
    found = command.summary(made_up(), by="kind").set_index("group")
    assert list(found.index) == ["x", "y", "all"]
    assert found.loc["x", "mean"] == pytest.approx(1.0)
    assert found.loc["all", "mean"] == pytest.approx(2.0)
    assert list(found.loc["all", ["pairs", "faster", "tie", "slower", "unsure"]]) == [3, 1, 1, 1, 0]


def test_figures_of_comparisons() -> None:
    table = made_up()
    caches = {"L2": 1 << 20, "none": 1 << 60}
    speedups = svg(comparisons.speedups(table, "Title", by="kind"))
    assert all(word in speedups for word in ("Title", ">a<", ">b<", ">x<", ">y<"))
    memory = svg(comparisons.workspaces(table[table["kind"] == "x"], "M", "big", "small", caches))
    assert "36.0x" in memory
    assert ">L2<" in memory
    assert ">none<" not in memory
    x, y = ("speedup", "times"), ("after_bytes", "bytes")
    assert ">x<" in svg(comparisons.curves(table, "Curves", x, y, "kind", reference=1.0))
    engines = pd.DataFrame(
        {"engine": ["a", "b"], "seconds": [1.0, 3.0], "accuracy": 0.9, "low": 0.8, "high": 0.95}
    )
    assert ">b<" in svg(comparisons.trade(engines, "Trade"))
    many = pd.DataFrame({"x": [1.0, 2.0] * 12, "y": 1.0, "kind": [n // 2 for n in range(24)]})
    lines = comparisons.curves(many, "Many", ("x", "x"), ("y", "y"), "kind").axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 12


def tiny(folder: Path) -> Path:
    """A network of one layer."""
    net = Writer("tiny", (1, 8, 9, 9))
    model = folder / "tiny.onnx"
    onnx.save(net.model(net.conv("a", net.input, 16, 3, padding=1, bias=True)), model)
    return model


@pytest.mark.skipif(not shutil.which("qemu-aarch64"), reason="qemu-aarch64 is not installed")
def test_a_search_on_an_emulated_device_loses_nothing_to_a_kill(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--quick", "--trials", "6", "--csv", str(tmp_path), "--json", str(tmp_path / "out")]
    assert emulated.main(words) == 0
    assert "trials" in capsys.readouterr().out
    (row,) = rows(pd.read_csv(tmp_path / "emulated.csv"))
    assert row.lost == 0
    assert row.timed >= 2
    assert row.searched == row.direct or row.ratio > 1
    stored = json.loads((tmp_path / "out").read_text())["parts"]["emulated"]["records"]
    machines = {Record.from_dict(data).machine for data in stored}
    assert len(machines) == 1
    assert machines != {Cpu.host().fingerprint}


def test_exported_sizes_and_first_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tiny(tmp_path)), "--target", "native", "riscv64gcv", "--quick"]
    assert exported.main([*words, "--csv", str(tmp_path)]) == 0
    assert "riscv64gcv" in capsys.readouterr().out
    here, there = rows(pd.read_csv(tmp_path / "exported.csv"))
    assert 4e3 < here.code < 1e5
    assert here.weights >= 4 * 16 * 8 * 9
    assert 0 < here.open < 1
    assert math.isnan(there.open)
    if shutil.which("cc") and shutil.which("make"):
        assert 0 < here.first < 10
        assert here.over < 1 << 24


def test_starts_find_code_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny(tmp_path)
    Database(tmp_path / "own.db").close()
    words = [str(model), "--quick", "--db", str(tmp_path / "own.db"), "--csv", str(tmp_path)]
    assert starts.main(words) == 0
    assert "first" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "starts.csv").set_index("start")
    assert (table[["seconds", "cpu", "imports", "load"]] > 0).all(axis=None)
    assert table.loc["first", "load"] > table.loc["again", "load"]
    with pytest.raises(RuntimeError, match="does not start from"):
        starts.Starts(["no network"], 1, str(tmp_path / "own.db")).measure()


def test_a_search_without_tiles_stands_beside_that_of_tvm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho \'{"trials": 3, "seconds": 2.0, "samples": [2.0]}\'\n')
    python.chmod(0o700)
    words = ["conv 1x64x14x14 64x1x1 s1 p0 bias relu", "--tvm", str(python), "--seconds", "2"]
    assert metaschedule.main([*words, "--csv", str(tmp_path)]) == 0
    assert "1x1 64" in capsys.readouterr().out
    theirs, *ours = rows(pd.read_csv(tmp_path / "metaschedule.csv", keep_default_na=False))
    assert (theirs.search, theirs.trials, theirs.seconds) == ("TVM", 3, 2.0)
    assert [row.search for row in ours[-1:]] == ["ours"]
    assert len(ours) == (2 if "+amx-tile" in Cpu.host().features else 1)
    assert all(row.trials > 0 and row.faster > 1 for row in ours)
    assert not any(row.schedule.startswith("amx") for row in ours[:-1])
    python.write_text("#!/bin/sh\necho no TVM here >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match="no TVM here"):
        metaschedule.main(words)

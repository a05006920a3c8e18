"""Times and accuracy of engines in low precision: a small network, tables, files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastrun.benchmarks import accuracy, precision, precision_table
from fastrun.benchmarks.accuracy.score import Score
from fastrun.benchmarks.accuracy.task import CALIBRATION, TEST, Sample, Task, draws
from fastrun.benchmarks.one_layer import one_layer
from fastrun.benchmarks.peers import low
from fastrun.benchmarks.peers.low.original import Original
from fastrun.benchmarks.precision_table import Comparison
from fastrun.benchmarks.race import EntryTimes
from fastrun.benchmarks.report import EngineRace
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import random_operands

PROBLEM = ConvProblem.parse("conv 1x16x6x5 24x3x3 s1 p1 bias relu")


def small() -> Task:
    """A convolution; half of its samples have a right answer, which is true of every output."""
    model = one_layer(PROBLEM, random_operands(PROBLEM, 0))

    def inputs(kind: int, i: int) -> dict[str, np.ndarray]:
        return {"x": draws(kind, i).standard_normal((1, 16, 6, 5), dtype=np.float32)}

    def samples() -> Iterator[Sample]:
        for i in range(6):
            yield Sample(inputs(TEST, i), (lambda _: True) if i % 2 else None)

    return Task("small", model, [inputs(CALIBRATION, i) for i in range(4)], samples)


def race(threads: int, **seconds: float) -> EngineRace:
    engines = {name.replace("_", "-"): s for name, s in seconds.items()}
    entries = (EntryTimes(e, (s,), 1, None, 0.0, "") for e, s in engines.items())
    return EngineRace("small", "all", threads, tuple(entries))


def test_engines_in_low_precision_are_timed_and_scored(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    engines = ("ours", "ort", "ort-u8s8", "ort-u8s7", "ort-exact", "ort-own")
    found = precision.compare(small(), engines, (1,), 2, 4, place=tmp_path)
    scores = found.scores["small"]
    assert list(scores) == list(engines)
    for name in engines:
        assert found.seconds("small", name, 1) > 0
        assert (scores[name].right, scores[name].labelled) == (2, 2)
        low_precision = name in low.VARIANTS
        assert (25 if low_precision else 100) < scores[name].sqnr
        assert not low_precision or scores[name].sqnr < 60
    kept = {path.stat().st_mtime_ns for path in tmp_path.rglob("model.onnx")}
    assert len(kept) == 3  # weights of 8 bits and of 7, and those of fastrun's quantiser
    precision.compare(small(), ("ort-u8s7",), (1,), 1, 0, place=tmp_path)
    assert kept == {path.stat().st_mtime_ns for path in tmp_path.rglob("model.onnx")}


def test_weights_of_seven_bits(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    task = small()
    original = Original(task.model, task.calibration, tmp_path)
    largest = {}
    for bits in (7, 8):
        arrays = map(onnx.numpy_helper.to_array, original.quantised(bits).graph.initializer)
        [weights] = [a for a in arrays if a.dtype == np.int8 and a.ndim == 4]
        largest[bits] = int(np.abs(weights.astype(int)).max())
    assert largest == {7: 64, 8: 127} or largest == {7: 63, 8: 127}


def test_an_engine_that_cannot_load_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(original: Original, threads: int) -> precision.Session:
        raise precision.LoadError("no such layer")

    broken = replace(low.VARIANTS["ort-u8s8"], load=load)
    monkeypatch.setitem(low.VARIANTS, "ort-u8s8", broken)
    found = precision.compare(small(), ("ours", "ort-u8s8"), (1,), 1, 1, place=tmp_path)
    assert found.seconds("small", "ort-u8s8", 1) == math.inf
    precision_table.show(found, found.networks)
    assert "ort-u8s8: not timed: no such layer" in capsys.readouterr().out


def test_files_hold_what_was_measured(tmp_path: Path) -> None:
    score = Score(9, 10, 1, 0, 100.0, 1.0, 19, 20)
    found = Comparison(
        [race(1, ours=4.0, ours_int8=1.0), race(2, ours=2.0)], {"small": {"ours-int8": score}}
    )
    precision_table.write_json(tmp_path / "out.json", found)
    again = precision_table.read_json(tmp_path / "out.json")
    assert again == found
    table = precision_table.frame(again).set_index(["engine", "threads"])
    row = table.loc[("ours-int8", 1)]
    assert (row["over_f32"], row["accuracy"], row["only_wrong"]) == (4.0, 0.9, 1)
    assert row["sqnr"] == pytest.approx(20)
    assert math.isnan(table.loc[("ours-int8", 2), "seconds"])
    assert math.isnan(table.loc[("ours", 1), "accuracy"])
    heads, ours, int8 = precision_table.text_rows(again, "small")
    assert ours[0] == "ours"
    assert dict(zip(heads, int8, strict=True))["right>"] == "90.0 % of 10"


def test_summary_names_the_fastest_peer_and_its_accuracy() -> None:
    raced = race(1, ours=4.0, ours_int8=1.0, ort=0.5, ort_u8s8=3.0, ort_exact=2.0)
    scores = {"ours": Score(10, 10), "ort-exact": Score(8, 10), "ours-int8": Score(9, 10)}
    heads, row = precision_table.summary(Comparison([raced], {"small": scores}))
    assert row[1:5] == ["4000", "1000", "2000 ort-exact", "2.00x"]
    assert row[5:] == ["100.0 % of 10", "90.0 % of 10", "80.0 % of 10"]
    assert len(heads) == len(row)
    only_f32 = precision_table.summary(Comparison([race(1, ours=4.0, ort_u8s8=2.0)]))
    assert only_f32[1] == ["small", "4000", "2000 ort-u8s8", "0.500x", "-", "-"]
    assert len(only_f32[0]) == len(only_f32[1])


def test_a_later_run_replaces_what_it_measures_again() -> None:
    old = Comparison(
        [race(1, ours=4.0), race(2, ours=3.0)], {"small": {"ours": Score(1), "ort": Score(2)}}
    )
    new = Comparison([race(1, ours=2.0)], {"small": {"ort": Score(3)}})
    both = old.updated(new)
    assert both.seconds("small", "ours", 1) == 2.0
    assert both.seconds("small", "ours", 2) == 3.0
    assert {name: s.right for name, s in both.scores["small"].items()} == {"ours": 1, "ort": 3}


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accuracy, "task", lambda name: small())
    json, csv = tmp_path / "out.json", tmp_path / "out.csv"
    words = ["squeezenet1.1", "--engines", "ours", "--rounds", "2", "--samples", "3"]
    files = ["--json", str(json), "--csv", str(csv), "--work", str(tmp_path)]
    assert precision.main([*words, *files]) == 0
    assert "100.0 % of 1" in capsys.readouterr().out
    assert precision_table.read_json(json).networks == ["small"]
    assert "sqnr" in csv.read_text().splitlines()[0]


@pytest.mark.parametrize("words", [["nothing"], ["ocr", "--engines", "nothing"]])
def test_unknown_names_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        precision.main(words)
    assert "no 'nothing': there are" in capsys.readouterr().err


def test_what_cannot_be_used_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    none = replace(low.VARIANTS["ort-exact"], packages=("no_such_package",))
    monkeypatch.setitem(low.VARIANTS, "ort-exact", none)
    slow = replace(low.VARIANTS["ort-u8s7"], packages=(), features=("no-such-feature",))
    monkeypatch.setitem(low.VARIANTS, "ort-u8s7", slow)
    assert precision.usable(["ours", "ort-exact", "ort-u8s7"]) == ["ours"]
    said = capsys.readouterr().err
    assert "ort-exact is left out: no_such_package is not installed" in said
    assert "ort-u8s7 is left out: the processor has no no-such-feature" in said

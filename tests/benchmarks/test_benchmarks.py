"""The benchmarks: checks, tables, missing and wrong peers."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fastrun.benchmarks import layers, networks, ours, peers, race, readme, report
from fastrun.benchmarks.apart import apart
from fastrun.benchmarks.one_layer import one_layer
from fastrun.benchmarks.peers import Array, LoadError
from fastrun.benchmarks.race import Entry, EntryTimes
from fastrun.benchmarks.report import EngineRace, read_races
from fastrun.graph.core.errors import GraphError
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import convolve, random_operands
from fastrun.kernels.registry import heuristic_choice, templates
from fastrun.main import main
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.operands import Operands, Scratch
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import Errors, Outcome, Record
from fastrun.tuner.store.database import Database
from tests.support.graph_models import model, node

TINY = "conv 1x16x6x5 24x3x3 s2 p1 bias add relu6"


def bench(*words: str | Path) -> int:
    return main(["bench", *map(str, words)])


def test_every_layer_of_the_list_is_a_problem_with_a_name_of_its_own() -> None:
    found = layers.published()
    assert len({x.name for x in found}) == len(found)
    assert len({x.problem for x in found}) == len(found)


def test_layers_are_found_by_group_name_and_problem() -> None:
    for text in ("depthwise", "SqueezeNet", "7x7 s2"):
        assert 0 < len(layers.published(text)) < len(layers.published())


def _slow(engine: str, seconds: float) -> Entry:
    return Entry(engine, lambda repeats: repeats * seconds, start=seconds, memory=8)


def _dies() -> Entry:
    os._exit(3)


def _dies_timed() -> Entry:
    return Entry("late", lambda repeats: os._exit(4))


def test_engines_in_processes_of_their_own() -> None:
    makers = [functools.partial(_slow, name, s) for name, s in [("a", 0.1), ("a", 0.3), ("b", 0.2)]]
    with apart([*makers, _dies], 1) as entries:
        *times, dead = race.race_engines(entries, 1, 4)
    assert [t.engine for t in times] == ["a", "a", "b"]
    assert dead.note == "its process ended with code 3"
    assert not dead.samples
    a = race.merged(times[:2])
    assert a.by_process == pytest.approx((0.1, 0.3))
    assert a.seconds == pytest.approx(math.sqrt(0.03))
    assert a.against_itself == pytest.approx(1)
    assert (a.start, a.memory, a.processes) == (pytest.approx(0.2), 8, 2)
    assert not race.merged([times[0], dead]).samples
    with apart([_dies_timed], 1) as [late], pytest.raises(ConnectionError, match=r"late ended.* 4"):
        race.race_engines([late], 1, 2)


def test_a_network_in_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "tiny.onnx", tmp_path / "out.json"
    onnx.save(model([node("Relu", "x", "y")]), path)
    words = ("--peers", "none", "--rounds", "2", "--processes", "2", "--json", out)
    assert bench(path, *words, "--db", _empty_database(tmp_path)) == 0
    assert re.search(r"processes", capsys.readouterr().out)
    [raced] = read_races(json.loads(out.read_text()))
    [ours_] = raced.entries
    assert ours_.processes == 2
    assert len(ours_.samples) == 4
    assert raced.peak
    assert bench(TINY, "--processes", "2") == 2
    assert "not for layers" in capsys.readouterr().err


def test_ours_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, database = tmp_path / "out.json", _empty_database(tmp_path)
    words = (TINY, "--peers", "none", "--rounds", "2", "--json", out, "--db", database)
    assert bench(*words) == 0
    assert TINY in capsys.readouterr().out
    [result] = json.loads(out.read_text())["results"]
    assert result["engine"] == "ours"
    assert result["note"].startswith("heuristic: ")
    assert len(result["samples"]) == 2
    assert 0 < result["errors"]["rms"] < race.LOOSE


def test_missing_peer_is_left_out_with_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    absent = {"MNN": None}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda x: absent[x] if x in absent else find(x)
    )
    assert bench(TINY, "--peers", "mnn", "--rounds", "1") == 0
    printed = capsys.readouterr()
    assert "mnn is left out: MNN is not installed: pip install" in printed.err
    assert "mnn" not in printed.out


@pytest.mark.parametrize("name", peers.NAMES)
@pytest.mark.parametrize("inner", [False, True])
def test_peer_computes_a_layer(name: str, inner: bool) -> None:
    engine = peers.engine(name)
    if reason := peers.missing(name):
        pytest.skip(reason)
    for text in ("conv 1x16x6x5 24x3x3 s2 p1 bias relu6", "conv 1x8x7x7 8x3x3 s1 p1 g8 bias"):
        p = ConvProblem.parse(text)
        operands = random_operands(p, 0)
        session = engine.load(one_layer(p, operands), 1, inner)
        inputs: Mapping[str, Array] = {"x": operands["x"]}
        truth = convolve(p, operands["x"], operands["weights"], operands["bias"])
        for _ in range(2):
            [found] = session.run(inputs)
            session.call()
            assert Errors.of(found, truth).rms < race.LOOSE


def test_onnxruntime_in_turns_with_ours(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out.json"
    assert bench(TINY, "--peers", "ort", "--rounds", "3", "--json", out) == 0
    ours_, ort = json.loads(out.read_text())["results"]
    assert len(ours_["samples"]) == len(ort["samples"]) == 3
    assert 0 < ort["seconds"] < np.median(ort["samples"])
    assert ort["overhead"] > 0


def test_tuned_schedule_comes_from_the_database(tmp_path: Path) -> None:
    p = ConvProblem.parse(TINY)
    cpu = Cpu.host()
    im2col = templates()["im2col"]
    schedule = im2col.heuristic(p, cpu)
    record = Record(
        problem=str(p),
        schedule=im2col.text(schedule),
        machine=cpu.fingerprint,
        threads=1,
        regime="hot",
        toolchain=toolchain(),
        ir_hash=im2col.program(p, schedule, cpu).ir_hash,
        outcome=Outcome.CORRECT,
        samples=(1e-6,),
    )
    assert heuristic_choice(p, cpu)[0] is not im2col
    with Database(tmp_path / "tuned.db") as database, Scratch() as scratch:
        database.add(record)
        operands = Operands.make(p, scratch)
        assert ours.layer(operands, 1, database).note == f"tuned: {record.schedule}"
        if cpu.cores > 1:
            assert ours.layer(operands, 2, database).note.startswith("heuristic: ")


def test_wrong_output_is_reported_and_not_timed() -> None:
    truth = np.ones((1, 2, 3, 3))
    entry = Entry("mnn", lambda repeats: 1.0)
    bfloat16 = (truth * (1 + 2**-9)).astype(np.float32)
    refused = race.checked(entry, [bfloat16], [truth])
    assert refused.calls is None
    assert "rms error 2.0e-03" in refused.note
    assert race.checked(entry, [truth.astype(np.float32)], [truth]).calls
    assert race.checked(entry, [np.ones((1, 2, 3), np.float32)], [truth]).calls is None


def test_a_network_off_by_three_thousandths_is_not_timed() -> None:
    truth = np.random.default_rng(0).standard_normal((1, 1000))
    entry = Entry("x", lambda repeats: 0.0)
    for share, timed in ((3e-3, False), (3e-4, True)):
        found = (truth * (1 + share)).astype(np.float32)
        checked = race.checked(entry, [found], [truth], networks.WRONG)
        assert (checked.calls is not None) == timed


def test_engine_that_cannot_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def load(self, *_: object) -> None:
            raise LoadError("no such layer")

    monkeypatch.setattr(race, "engine", lambda name: Broken())
    p = ConvProblem.parse(TINY)
    model = one_layer(p, random_operands(p, 0))
    assert race.peer("ncnn", model, {}, [], 1) == Entry("ncnn", None, note="no such layer")


def test_overhead_is_taken_off_up_to_half_a_call() -> None:
    def seconds(overhead: float) -> float:
        return EntryTimes("ort", (3.0, 1.0, 1.0), 1, None, overhead, "").seconds

    assert seconds(0.25) == 0.75
    assert seconds(0.9) == 0.5


def test_ratios_and_means() -> None:
    def raced(subject: str, **seconds: float) -> EngineRace:
        entries = (EntryTimes(e, (s,), 1, None, 0.0, "") for e, s in seconds.items())
        return EngineRace(subject, "g", 1, (*entries, EntryTimes("mnn", (), 0, None, 0.0, "wrong")))

    first, second = raced("a", ours=1.0, ort=4.0, ncnn=3.0), raced("b", ours=6.0, ort=2.0)
    assert (first.best_peer, second.best_peer) == ("ncnn", "ort")
    assert first.over_best == 3.0
    assert np.isnan(first.over("mnn"))
    mean = report.geometric_mean([first.over_best, second.over_best, first.over("mnn")])
    assert mean == pytest.approx(1.0)


def test_a_race_says_what_the_cores_did_around_it(capsys: pytest.CaptureFixture[str]) -> None:
    known = probe().peak
    entries = (EntryTimes("ours", (0.5, 0.5), 1, None, 0.0, ""),)
    for threads in (1, 2):
        report.engines_table([EngineRace("a", "all", threads, entries, (known, known / 2))])
    said = capsys.readouterr().out
    assert "a: one core did 100 % of a core's measured peak before the race, 50 % after" in said
    assert "a: each of 2 cores at once did 100 % of a core's measured peak before" in said


def test_a_race_waits_for_cores_that_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    known, waits = probe().peak, list[float]()
    monkeypatch.setattr(networks.time, "sleep", waits.append)
    looks = iter([known, known, 2 * known])  # of two cores together
    monkeypatch.setattr(networks, "peak_flops", lambda cpu, cores: next(looks))
    monkeypatch.setattr(networks.Cores, "split", lambda threads: Cores((0, 1), (0, 1)))
    assert networks._peak_apart(2) == known
    assert len(waits) == 2
    monkeypatch.setattr(networks, "peak_flops", lambda cpu, cores: known)
    assert networks._peak_apart(2) == known / 2  # a race is not put off for ever
    assert 10 < len(waits) < 40


def test_a_race_is_held_again_if_cores_were_shared_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, held = probe().peak, list[int]()
    monkeypatch.setattr(networks, "race_engines", lambda *_: held.append(1) or [])
    peaks = iter([1.0, 0.4, 1.0, 1.0])
    monkeypatch.setattr(networks, "_peak", lambda threads: next(peaks) * known)
    assert networks._race([], 2, 3) == ([], (known, known))
    assert len(held) == 2
    monkeypatch.setattr(networks, "_peak_apart", lambda threads: known)
    monkeypatch.setattr(networks, "_peak", lambda threads: known / 2)
    assert networks._race([], 2, 3)[1] == (known, known / 2)  # not for ever
    assert len(held) < 10


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        (("x holds no current measurement of 15 of 15 convolutions: the heuristic", ""), "as far"),
        (
            ("x holds no current measurement of 15 of 15 convolutions: the heuristic",),
            "nothing tuned",
        ),
        (("x holds no current measurement of 5 of 15 convolutions: the heuristic",), "as far"),
        (("nothing is tuned here: running by heuristics (`fastrun tune`)",), "nothing tuned"),
        (("3 of 9 run by winners that come with the package, the others by heuristics",), "as far"),
        (("packed weights of 3 MiB",), "has left it"),
    ],
)
def test_the_table_says_how_much_was_tuned(notes: tuple[str, ...], said: str) -> None:
    entries = [EntryTimes("ours", (1.0,), 1, None, 0.0, note) for note in notes]
    races = [EngineRace("a", "all", 1, (entry,)) for entry in entries]
    assert said in readme._plans(readme.Bench({}, races))


def test_network_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert bench("shufflenetv2", "--peers", "none", "--rounds", "2", "--json", out) == 0
    assert "shufflenetv2" in capsys.readouterr().out
    [result] = json.loads(out.read_text())["results"]
    assert result["errors"]["rms"] < race.LOOSE
    assert len(result["samples"]) == 2


def _small() -> onnx.ModelProto:
    p = ConvProblem.parse("conv 1x16x6x5 24x3x3 s2 p1 bias relu6")
    return one_layer(p, random_operands(p, 0))


def test_network_that_cannot_run_is_refused_before_any_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, out = tmp_path / "good.onnx", tmp_path / "bad.onnx", tmp_path / "out.json"
    model = _small()
    onnx.save(model, good)
    model.graph.node.add(op_type="Bernoulli", name="det", input=["y"], output=["z"])
    model.graph.output[0].name = "z"
    onnx.save(model, bad)
    assert bench(good, bad, "--peers", "none", "--rounds", "1", "--json", out) == 2
    printed = capsys.readouterr()
    assert "'det' (Bernoulli)" in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("end", "code"), [(GraphError("no memory"), 2), (KeyboardInterrupt(), 130)]
)
def test_what_was_timed_outlives_a_later_failure(
    end: BaseException,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    races = networks.races

    def failing(name: str, *more: Any) -> list[EngineRace]:
        if Path(name).stem == "second":
            raise end
        return races(name, *more)

    monkeypatch.setattr(networks, "races", failing)
    paths = [tmp_path / f"{name}.onnx" for name in ("first", "second")]
    for path in paths:
        onnx.save(_small(), path)
    out = tmp_path / "out.json"
    assert bench(*paths, "--peers", "none", "--rounds", "1", "--json", out) == code
    assert [r["subject"] for r in json.loads(out.read_text())["results"]] == ["first"]
    printed = capsys.readouterr()
    assert "first" in printed.out
    assert ("no memory" if code == 2 else "interrupted") in printed.err


def test_an_engine_is_compared_with_itself() -> None:
    def ratio(*samples: float) -> float:
        return EntryTimes("ort", samples, 1, None, 0.0, "").against_itself

    assert ratio(3.0, 2.0, 3.0, 2.0) == 1.5
    assert math.isnan(ratio(3.0))


def test_networks_within_limits_show_error_start_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(_small(), tmp_path / "small.onnx")
    out = tmp_path / "out.json"
    words = "--peers", "none", "--rounds", "2", "--max-error", "2e-6", "--json", out
    assert bench(tmp_path / "small.onnx", *words) == 0
    [result] = json.loads(out.read_text())["results"]
    assert result["errors"]["rms"] < 2e-6
    assert result["start"] > 0
    [entry] = read_races({"results": [result]})[0].entries
    assert (entry.start, entry.memory) == (result["start"], result["memory"])
    assert f"{result['errors']['rms']:.1e}" in (printed := capsys.readouterr().out)
    assert "packed weights of" in printed
    assert bench("conv 1x8x8x8 8x1x1", "--max-error", "2e-6", "--peers", "none") == 2
    assert "for networks, not for layers" in capsys.readouterr().err


def test_network_file_with_an_open_batch_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := peers.missing("ort"):
        pytest.skip(reason)
    model = _small()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, tmp_path / "small.onnx")
    assert bench(tmp_path / "small.onnx", "--peers", "ort", "--rounds", "1") == 0
    assert "not timed" not in (out := capsys.readouterr().out)
    assert "small" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "0"], "at least 1"),
        (["--threads", "1,9999"], "9999 threads"),
        (["--peers", "ort,tflow"], "no peer 'tflow': there are ort, openvino"),
        (["resnet81"], "did you mean resnet18"),
        (["shufflenetv2", "conv 1x8"], "not a problem"),
        (["--layers", "no such words"], "no layer's description has"),
        ([TINY, "--json", "no/such/folder.json"], "no/such/folder.json"),
    ],
)
def test_mistakes_take_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = bench(*words)
    except SystemExit as leaving:
        code = int(str(leaving.code))
    assert code == 2
    mistake = capsys.readouterr().err
    assert mistake.count("\n") == 1
    assert message in mistake


def _empty_database(folder: Path) -> Path:
    with Database(folder / "empty.db"):
        return folder / "empty.db"

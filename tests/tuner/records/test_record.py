"""Records and environments: the JSON form, the ranked time, refused data."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.records import environment
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.provenance import Run, command_line
from fastrun.tuner.records.record import (
    LATER,
    REGIMES,
    Errors,
    Outcome,
    Record,
    RecordError,
    Stage,
)
from tests.support.records import record

line = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20)
time = st.floats(min_value=0, max_value=1e6, exclude_min=True)
number = st.floats(allow_nan=True, allow_infinity=True)


def placed(r: Record) -> Record:
    """The record with a number of each kind beside a sample, unless their number is odd."""
    numbers = tuple(range(len(r.samples)))
    if len(numbers) % 2:
        return r
    clocks, degrees = tuple(n + 800 for n in numbers), tuple(n - 20.5 for n in numbers)
    known = {"processes": numbers, "rounds": numbers, "clocks": clocks, "temperatures": degrees}
    return replace(r, **known)


records = st.builds(
    Record,
    problem=line,
    schedule=line,
    machine=line,
    threads=st.integers(1, 512),
    regime=st.sampled_from(REGIMES),
    toolchain=line,
    ir_hash=line,
    outcome=st.sampled_from(Outcome),
    reason=st.text(max_size=40),
    stage=st.sampled_from(Stage),
    samples=st.lists(time, max_size=8).map(tuple),
    errors=st.none() | st.builds(Errors, number, number, number),
    workspace=st.integers(0, 2**63 - 1),
    seconds=st.dictionaries(line, st.floats(0, 1e9), max_size=4),
    baseline=st.booleans(),
    heuristic=st.booleans(),
    run=line,
    time=st.datetimes().map(lambda t: t.isoformat() + "+00:00"),
    noise=st.none() | st.floats(0, 1e3),
    protocol=st.integers(1, 9),
).map(placed)


@given(records)
def test_json_gives_back_an_equal_record(r: Record) -> None:
    text = json.dumps(r.to_dict(), allow_nan=False)
    back = Record.from_dict(json.loads(text))
    assert back == r
    assert back.key == r.key
    assert type(back.outcome) is Outcome


@given(records)
def test_any_reason_becomes_one_printable_line(r: Record) -> None:
    assert r.reason.isprintable()


def test_every_field_counts_for_the_key() -> None:
    base = record()
    changed: dict[str, Any] = {
        "samples": (1e-3,),
        "errors": None,
        "seconds": {},
        "outcome": Outcome.TIMEOUT,
        "threads": 2,
        "workspace": 1,
        "regime": "cold-weights",
        "stage": "race",
        "baseline": True,
        "heuristic": True,
        "time": "2026-01-02T00:00:00+00:00",
        "noise": 0.1,
        "processes": (0, 0, 1),
        "rounds": (0, 1, 0),
        "protocol": 2,
        "clocks": (1800, 1800, 1200),
        "temperatures": (50.0, 51.5, 60.0),
    }
    others = {name: "other" for name in base.to_dict() if name not in changed}
    keys = {replace(base, **{name: value}).key for name, value in (changed | others).items()}
    assert len(keys | {base.key}) == len(fields(Record)) + 1


def test_what_is_not_known_leaves_the_key_of_the_first_form() -> None:
    first = record().to_dict()
    assert not first.keys() & LATER.keys()
    assert Record.from_dict(first) == record()
    assert Record.from_dict({**LATER, **first}).key == record().key
    assert record().key == "c5ce5780ce0f593cfe5f8cd19de70eb7"


def test_samples_are_grouped_by_process() -> None:
    samples = (1.0, 2.0, 3.0, 4.0)
    assert record(samples=samples, processes=(0, 0, 1, 2)).by_process() == [(1, 2), (3,), (4,)]
    assert record(samples=samples, processes=(1, 0, 1, 0)).by_process() == [(1, 3), (2, 4)]
    assert record(samples=samples).by_process() == [samples]
    assert record(samples=()).by_process() == []


def test_runs_come_back_equal_and_refuse_other_data() -> None:
    run = Run(name="a", command="fastrun tune x", sampler="gp", seed=3, timing="final: so")
    assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    assert run.tuner == environment.tuner_hash()
    for field, value in [
        ("command", "two\nlines"),
        ("seed", 1.5),
        ("seed", 10**400),
        ("time", "yesterday"),
        ("sampler", None),
        ("surprise", ""),
    ]:
        with pytest.raises(RecordError, match=field) as refusal:
            Run.from_dict(run.to_dict() | {field: value})
        assert len(str(refusal.value)) < 200
    with pytest.raises(RecordError, match="command"):
        Run.from_dict({"name": "a"})


@pytest.mark.parametrize(
    ("word", "kept"),
    [
        ("resnet50", "resnet50"),
        ("/home/somebody/model.onnx", "model.onnx"),
        ("--db=/home/somebody/a.db", "--db=a.db"),
        ("postgresql://me:secret@host/db", "db"),
        ("--db=postgresql://me:secret@host/db?password=secret2", "'--db=db?password=secret2'"),
        ("../folder/", "folder/"),
    ],
)
def test_a_command_line_names_no_folders(word: str, kept: str) -> None:
    assert command_line(["fastrun", "tune", word]) == f"fastrun tune {kept}"


@given(st.lists(time, min_size=1, max_size=30), st.randoms())
def test_seconds_per_call_is_a_low_value_and_ignores_order(samples: list[float], rng: Any) -> None:
    value = record(samples=samples).seconds_per_call
    assert min(samples) <= value <= sorted(samples)[(len(samples) - 1) // 2]
    rng.shuffle(samples)
    assert record(samples=samples).seconds_per_call == value


@pytest.mark.parametrize(
    ("samples", "expected"),
    [((5.0,), 5.0), ((5.0, 1.0), 1.0), ((1.0, 2.0, 9.0), 1.5), ((4.0, 1.0, 2.0, 3.0, 99.0), 2.0)],
)
def test_seconds_per_call_is_the_median_of_the_faster_half(
    samples: tuple[float, ...], expected: float
) -> None:
    assert record(samples=samples).seconds_per_call == expected


def test_nothing_timed_is_infinitely_slow() -> None:
    assert record(samples=()).seconds_per_call == math.inf


def test_schedule_text_is_read_without_its_algorithm() -> None:
    r = record(schedule="unheard_of(layout=NCHW8c, mr=6, fused=yes, pad=no, shift=-2)")
    assert r.algorithm == "unheard_of"
    expected = {"layout": "NCHW8c", "mr": 6, "fused": True, "pad": False, "shift": -2}
    assert r.parameters == expected
    assert record(schedule="naive()").parameters == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("regime", "warm"),
        ("stage", "guess"),
        ("outcome", "fine"),
        ("threads", 0),
        ("threads", 10**30),
        ("threads", True),
        ("threads", "1"),
        ("workspace", -1),
        ("workspace", 2**63),
        ("samples", [0.0]),
        ("samples", [math.nan]),
        ("samples", ["1"]),
        ("samples", 1.0),
        ("processes", [0]),
        ("processes", [0, 0, -1]),
        ("processes", [0, 0, 1.0]),
        ("processes", [0, 0, True]),
        ("rounds", [0, 1, -2]),
        ("rounds", [0, 1, 2**31]),
        ("rounds", None),
        ("protocol", 0),
        ("protocol", "1"),
        ("seconds", {"compile": -1.0}),
        ("seconds", {"compile": [1.0]}),
        ("errors", 1.0),
        ("errors", {"max": 1.0}),
        ("errors", {"max": 1.0, "rms": 1.0, "bias": "0"}),
        ("time", "yesterday"),
        ("time", "2026-01-01T00:00:00"),
        ("time", "2026-01-01T00:00:00+02:00"),
        ("problem", "two\nlines"),
        ("machine", "\x1b[31m"),
        ("baseline", 1),
        ("run", None),
        ("surprise", 1),
    ],
)
def test_data_that_is_no_record_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(RecordError, match=field) as refusal:
        Record.from_dict(record().to_dict() | {field: value})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("field", sorted(record().to_dict()))
def test_a_missing_field_is_named(field: str) -> None:
    data = record().to_dict()
    del data[field]
    with pytest.raises(RecordError, match=field):
        Record.from_dict(data)


def test_environment_describes_this_machine_and_round_trips() -> None:
    host = Environment.host()
    assert Environment.from_dict(json.loads(json.dumps(host.to_dict()))) == host
    assert host.machine == Cpu.host().fingerprint
    assert host.memory > 0
    assert host.toolchain == environment.toolchain()
    assert host.versions["llvm"] in host.toolchain
    assert host.versions["optuna"]


def test_environment_refuses_other_data() -> None:
    data = Environment.host().to_dict()
    with pytest.raises(RecordError, match="load"):
        Environment.from_dict(data | {"load": "high"})
    del data["model"]
    with pytest.raises(RecordError, match="model"):
        Environment.from_dict(data)


def test_generator_hash_follows_every_source_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "kernels"
    source = environment._PACKAGES / "kernels"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = environment.generator_hash()
    monkeypatch.setattr(environment, "_PACKAGES", tmp_path)
    assert environment.generator_hash() == before
    (copy / "conv" / "another.py").write_text("")
    added = environment.generator_hash()
    (copy / "core" / "cpu.py").write_text("changed")
    assert len({before, added, environment.generator_hash()}) == 3


def test_remembering_imports_no_search_and_no_tables_of_pandas() -> None:
    check = (
        "import sys, fastrun.tuner.store.database\n"
        "fastrun.tuner.records.environment.Environment.host()\n"
        "sys.exit(bool({'optuna', 'pandas', 'matplotlib'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0

"""Records as files: written and read again."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import Errors, Outcome
from fastrun.tuner.store.database import Database
from tests.support.databases import refused
from tests.support.records import record


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with Database(tmp_path / "fastrun.db") as opened:
        yield opened


def test_json_lines_read_back(tmp_path: Path, database: Database) -> None:
    stored = [
        record(1, errors=None),
        record(2, errors=Errors(1.0, float("inf"), 0.0), run="made"),
        record(3, processes=(0, 1, 1), rounds=(0, 0, 1), protocol=2, run="made"),
        record(4, clocks=(1800, 1790, 1200), temperatures=(51.5, 60.0, 70.0), run="made"),
    ]
    for r in stored:
        database.add(r)
    made, other_run = Run(name="made", command="fastrun tune"), Run(name="other", command="")
    database.add_run(made)
    database.add_run(other_run)
    for name in ("records.jsonl", "records.jsonl.gz"):
        assert database.export(tmp_path / name, "jsonl") == 4
        with Database("sqlite://") as other:
            assert other.import_file(tmp_path / name) == 4
            assert other.import_file(tmp_path / name) == 0
            assert other.records() == stored
            assert other.runs() == [made]


@pytest.mark.parametrize("line", ["{", "[]", "{}", "null", '{"problem": 1}', "[" * 10**5, "\xff"])
def test_bad_json_lines_are_refused_whole(tmp_path: Path, database: Database, line: str) -> None:
    file = tmp_path / "records.jsonl"
    good = json.dumps(record().to_dict())
    file.write_bytes(f"{good}\n{line}\n".encode("latin-1"))
    assert "records.jsonl, line 2" in refused(lambda: database.import_file(file))
    assert database.records() == []


def test_what_has_no_end_is_refused_without_reading_it(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "/dev/zero, line 1: a line of more than" in refused(
        lambda: database.import_file("/dev/zero")
    )
    monkeypatch.setattr("fastrun.tuner.store.exchange._LARGEST", 1 << 20)
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(bytes(1 << 22)))
    assert "split it" in refused(lambda: database.import_file(tmp_path / "bomb.json.gz"))


def test_files_that_cannot_be_read_or_written(tmp_path: Path, database: Database) -> None:
    database.add(record())
    assert "cannot read" in refused(lambda: database.import_file(tmp_path / "none.jsonl"))
    database.export(tmp_path / "x.gz", "jsonl")
    whole = (tmp_path / "x.gz").read_bytes()
    for broken in (whole[:-9], whole[:20] + bytes(20) + whole[40:], b"plain"):
        (tmp_path / "x.gz").write_bytes(broken)
        assert "cannot read" in refused(lambda: database.import_file(tmp_path / "x.gz"))
    assert "unknown format" in refused(lambda: database.export(tmp_path / "x", "xml"))
    assert "cannot write" in refused(lambda: database.export(tmp_path / "none" / "x", "csv"))
    (tmp_path / "folder").mkdir()
    assert "cannot write" in refused(lambda: database.export(tmp_path / "folder", "csv"))
    assert {p.name for p in tmp_path.glob("[!f]*")} == {"x.gz"}


def test_the_database_itself_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    path, link = tmp_path / "x.jsonl", tmp_path / "link.jsonl"
    with Database(path) as database:
        database.add(record())
        link.hardlink_to(path)
        for name in (path, link):
            assert "the database itself" in refused(lambda name=name: database.import_file(name))
            message = refused(lambda name=name: database.export(name, "jsonl"))
            assert "the database itself" in message
        assert database.records() == [record()]


def test_t4_has_the_members_that_readers_use(tmp_path: Path, database: Database) -> None:
    database.add(record())
    for mr, word in enumerate(set(Outcome) - {Outcome.CORRECT}, start=7):
        database.add(record(mr, (), outcome=word, errors=None, reason="because"))
    host = Environment.host()
    database.add_environment(replace(host, machine="machine"), "run")
    assert database.export(tmp_path / "t4.json", "t4") == 6
    document = json.loads((tmp_path / "t4.json").read_text())
    assert document["schema_version"] == "1.0.0"
    hardware = document["metadata"]["hardware"]
    assert hardware["hardware_description"][0]["model"] == host.model
    assert hardware["operating_system"] == host.system
    assert f"numpy=={host.versions['numpy']}" in document["metadata"]["environment"]["requirements"]
    results = document["results"]
    assert {r["invalidity"] for r in results} == set(Outcome)
    for r in results:
        assert {"configuration", "times", "invalidity", "correctness"} <= r.keys()
        assert isinstance(r["correctness"], float)
        assert r["times"]["compilation_time"] == r["times"]["compilation"] == pytest.approx(30)
        assert r["times"]["validation"] == pytest.approx(30)
        assert r["times"]["benchmark"] == pytest.approx(40)
        assert {type(m["value"]) for m in r["measurements"]} <= {int, float, str, list}
    first = results[0]
    assert first["configuration"] == {"algorithm": "direct", "layout": "NHWC", "mr": 6}
    assert first["times"]["runtimes"] == pytest.approx([3, 1, 2])
    time = next(m for m in first["measurements"] if m["name"] == "time")
    assert time == {"name": "time", "value": pytest.approx(1.5), "unit": "milliseconds"}


def test_t4_reads_back(tmp_path: Path, database: Database) -> None:
    stored = [
        record(run="r", noise=0.01),
        record(7, (), outcome=Outcome.TIMEOUT, errors=None, reason="2 s"),
        record(8, (1 / 3e3, 2e-3), errors=Errors(math.inf, 1e-7, 0.0), workspace=4096),
        record(9, processes=(0, 1, 1), rounds=(0, 0, 1), protocol=2),
        record(10, clocks=(1800, 1790, 1200), temperatures=(51.5, 60.0, 70.0)),
    ]
    for r in stored:
        database.add(r)
    database.add_run(Run(name="r", command="fastrun tune", seed=1))
    database.export(tmp_path / "a.json.gz", "t4")
    with Database("sqlite://") as other:
        assert other.import_file(tmp_path / "a.json.gz") == 5
        assert other.runs() == database.runs()
        assert other.import_file(tmp_path / "a.json.gz") == 0
        other.export(tmp_path / "b.json", "t4")
        back = other.records()
    for before, after in zip(stored, back, strict=True):
        # Build and compile time are one in T4, and times have seven digits.
        assert after.samples == pytest.approx(before.samples, rel=1e-6)
        assert after.seconds["compile"] == pytest.approx(0.03)
        assert replace(after, samples=before.samples, seconds=before.seconds) == before
    first = json.loads(gzip.decompress((tmp_path / "a.json.gz").read_bytes()))
    assert json.loads((tmp_path / "b.json").read_text())["results"] == first["results"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a T4 file"),
        ("[]", "not a T4 file"),
        ('{"schema_version": "2.0.0", "results": []}', "1.0.0 is what can be read"),
        ('{"schema_version": "1.0.0", "results": [{}]}', "result 1: 'measurements' is missing"),
        ('{"schema_version": "1.0.0", "results": [7]}', "result 1"),
    ],
)
def test_bad_t4_is_refused(tmp_path: Path, database: Database, text: str, says: str) -> None:
    (tmp_path / "x.json").write_text(text)
    message = refused(lambda: database.import_file(tmp_path / "x.json"))
    assert "x.json" in message
    assert says in message


def test_csv_has_a_row_per_record(tmp_path: Path, database: Database) -> None:
    pandas = pytest.importorskip("pandas")
    database.add(record(run="made"))
    database.add_run(Run(name="made", command="fastrun tune", seed=3))
    database.add(record(7, (), outcome=Outcome.RUNTIME, errors=None, reason='said "no", twice'))
    assert database.export(tmp_path / "x.csv", "csv", outcome="runtime") == 1
    assert database.export(tmp_path / "x.csv.gz", "csv") == 2
    table = pandas.read_csv(tmp_path / "x.csv.gz")
    assert "not read from CSV" in refused(lambda: database.import_file(tmp_path / "x.csv.gz"))
    assert list(table["mr" if "mr" in table else "schedule"]) == [
        r.schedule for r in database.records()
    ]
    assert table["reason"][1] == 'said "no", twice'
    assert table["seconds_per_call"][0] == 1.5e-3
    assert json.loads(table["samples"][0]) == list(record().samples)
    assert table["errors.max"][0] == 1e-6
    assert (table["run.command"][0], table["run.seed"][0]) == ("fastrun tune", 3)
    assert table["seconds.compile"][1] == 0.02


def test_equal_records_give_equal_bytes(tmp_path: Path, database: Database) -> None:
    database.add(record())
    for form in ("t4", "csv", "jsonl"):
        database.export(tmp_path / "a.gz", form)
        database.export(tmp_path / "b.gz", form)
        assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()

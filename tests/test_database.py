"""The database: what is best, what is refused, and that nothing stored is lost or run."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.records import PROBLEM, record
from tuner import tables
from tuner.database import Database, DatabaseError
from tuner.environment import Environment
from tuner.record import Errors, Outcome, Record
from tuner.tables import schema_version

KEY = (PROBLEM, "machine", 1, "hot")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fastrun.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    with Database(path) as opened:
        yield opened


def best(database: Database, *records: Record, **limits: Any) -> Record | None:
    for r in records:
        database.add(r)
    return database.best(*KEY, **limits)


def refused(action: Callable[[], object]) -> str:
    """The message of the refusal, which is one line."""
    with pytest.raises(DatabaseError) as refusal:
        action()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def later(hours: int) -> str:
    return f"2026-01-01T{hours:02}:00:00.000000+00:00"


# What goes in comes out


def test_records_come_back_equal_after_reopening(path: Path) -> None:
    stored = [record(), record(7, errors=None, reason="é ☃"), record(8, samples=())]
    stored.append(record(9, errors=Errors(float("inf"), float("nan"), 0.0), workspace=2**62))
    with Database(path) as database:
        for r in stored:
            database.add(r)
    with Database(path) as database:
        assert database.records() == stored


def test_adding_the_same_fact_twice_stores_it_once(database: Database) -> None:
    database.add(record())
    database.add(record())
    assert database.records() == [record()]


def test_records_are_chosen_by_columns(database: Database) -> None:
    first, second = record(run="one"), record(7, run="two", threads=2, outcome=Outcome.TIMEOUT)
    for r in (first, second):
        database.add(r)
    assert database.records(run="one") == [first]
    assert database.records(threads=2, machine="machine") == [second]
    assert database.records(outcome="timeout") == [second]
    assert database.records(problem=PROBLEM, algorithm="direct") == [first, second]
    assert database.records(problem=PROBLEM, regime="cold-weights") == []


def test_environments_belong_to_runs(database: Database) -> None:
    host = Environment.host()
    database.add_environment(host, run="one")
    database.add_environment(host, run="two")
    assert database.environments() == [host, host]
    assert database.environments(run="two") == [host]


def test_info_counts(database: Database) -> None:
    assert database.info().records == 0
    assert database.info().first is None
    database.add(record(run="one"))
    database.add(record(7, outcome=Outcome.COMPILE, machine="other", time=later(5)))
    info = database.info()
    assert (info.records, info.problems, info.machines, info.runs) == (2, 1, 2, 1)
    assert info.outcomes == {"correct": 1, "compile": 1}
    assert (info.first, info.last) == (record().time, later(5))


def test_default_file_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRUN_CACHE", str(tmp_path / "new" / "folder"))
    with Database() as database:
        database.add(record())
    assert (tmp_path / "new" / "folder" / "fastrun.db").exists()


@pytest.mark.parametrize("name", ["a b.db", "what?.db", "100%41.db", "hash#tag.db", "ü.db"])
def test_file_names_mean_themselves(tmp_path: Path, name: str) -> None:
    with Database(tmp_path / name) as database:
        database.add(record())
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with Database(tmp_path / name, read_only=True) as database:
        assert database.records() == [record()]


def test_urls_are_taken(path: Path) -> None:
    with Database(f"sqlite:///{path}") as database:
        database.add(record())
    with Database(path) as database:
        assert database.records() == [record()]
    with Database("sqlite://") as memory:
        memory.add(record())
        assert memory.best(*KEY) == record()


# Which record is best


def test_the_fastest_correct_schedule_is_best(database: Database) -> None:
    fast, slow = record(6, [2e-3]), record(7, [3e-3])
    assert best(database, slow, fast) == fast
    failures = [word for word in Outcome if word != Outcome.CORRECT]
    for mr, word in enumerate(failures, start=10):
        database.add(record(mr, [1e-6], outcome=word))
    assert best(database, record(8, ())) == fast


def test_best_knows_only_its_own_key(database: Database) -> None:
    for field, value in [
        ("problem", "conv 1x1x1x1 1x1x1 s1 p0"),
        ("machine", "other"),
        ("threads", 2),
        ("regime", "cold-weights"),
    ]:
        database.add(record(**{field: value}))
    assert best(database) is None


def test_ranking_is_by_the_faster_half_not_the_mean(database: Database) -> None:
    disturbed = record(6, [1e-3, 1e-3, 1e-3, 50e-3])
    steady = record(7, [2e-3, 2e-3, 2e-3, 2e-3])
    assert best(database, steady, disturbed) == disturbed


def test_a_later_stage_replaces_an_earlier_one(database: Database) -> None:
    screened = record(6, [1e-3], stage="screen", time=later(3))
    final = record(6, [5e-3], stage="final", time=later(1))
    other = record(7, [4e-3], stage="final")
    assert best(database, screened, final) == final
    assert best(database, other) == other


def test_what_was_measured_harder_goes_before_what_was_only_screened(database: Database) -> None:
    lucky = record(6, [1e-3], stage="screen")
    assert best(database, lucky) == lucky
    raced, final = record(7, [2e-3], stage="race"), record(8, [3e-3], stage="final")
    assert best(database, raced, final) == final
    assert database.ranking(*KEY) == [final, raced, lucky]


def test_the_newest_of_a_stage_decides_even_if_slower(database: Database) -> None:
    newer, older = record(6, [3e-3], time=later(2)), record(6, [1e-3], time=later(1))
    assert best(database, newer, older) == newer
    assert best(database, record(7, [2e-3])) == record(7, [2e-3])


def test_code_that_was_wrong_once_is_never_best(database: Database) -> None:
    good = record(6, [1e-3], stage="final", time=later(2))
    assert best(database, good) == good
    for word in (Outcome.CORRECTNESS, Outcome.RUNTIME):
        wrong = record(6, (), outcome=word, regime="cold-weights", time=later(1))
        with Database("sqlite://") as fresh:
            assert best(fresh, good, wrong) is None
    database.add(record(6, (), outcome=Outcome.TIMEOUT))
    assert best(database) == good
    mended = replace(record(6, (), outcome=Outcome.RUNTIME), toolchain="llvm 1, kernels 0")
    assert best(database, mended) == good


def test_baselines_are_left_out_unless_asked_for(database: Database) -> None:
    naive = record(6, [1e-3], schedule="naive()", baseline=True)
    tuned = record(7, [2e-3])
    assert best(database, naive, tuned) == tuned
    assert best(database, include_baselines=True) == naive


def test_limits_filter(database: Database) -> None:
    inexact = record(6, [1e-3], errors=Errors(1e-3, 1e-4, 0.0), workspace=10)
    large = record(7, [2e-3], workspace=1000)
    unknown = record(8, [1e-4], errors=None, toolchain="llvm 0, kernels 0")
    plain = record(9, [3e-3], workspace=10)
    assert best(database, inexact, large, unknown, plain) == unknown
    assert best(database, max_error=1e-5) == large
    assert best(database, max_error=1e-5, max_workspace=999) == plain
    assert best(database, max_error=1e-4, max_workspace=10) == inexact
    assert best(database, max_error=1e-9) is None
    assert best(database, toolchain="llvm 1, kernels 1") == inexact


def test_best_all_agrees_with_best(database: Database) -> None:
    problems = [PROBLEM, "conv 1x8x8x8 8x1x1 s1 p0", "conv 1x9x9x9 9x3x3 s1 p0"]
    for i, problem in enumerate(problems[:2]):
        for mr in range(4):
            database.add(record(mr, [1e-3 * (1 + (mr + i) % 4)], problem=problem))
    database.add(record(outcome=Outcome.COMPILE, problem=problems[2]))
    chosen = database.best_all(*KEY[1:])
    assert chosen == {p: database.best(p, *KEY[1:]) for p in problems[:2]}


# Merging


def test_merge_is_idempotent_and_brings_everything(tmp_path: Path, database: Database) -> None:
    database.add(record(1))
    with Database(tmp_path / "other.db") as other:
        for mr in range(1200):
            other.add(record(mr))
        other.add_environment(Environment.host(), "run")
        assert database.merge(other) == 1199
        assert database.merge(other) == 0
        assert database.merge(tmp_path / "other.db") == 0
        assert len(database.records()) == 1200
        assert database.environments(run="run") == other.environments()
        assert other.merge(database) == 0


def test_merge_keeps_the_noise_of_those_that_have_one(tmp_path: Path, database: Database) -> None:
    stored = [record(1), record(2, noise=0.5), record(3)]
    with Database(tmp_path / "other.db") as other:
        for r in stored:
            other.add(r)
        assert database.merge(other) == 3
    assert database.records() == stored


def test_merge_is_all_or_nothing(tmp_path: Path, database: Database) -> None:
    with Database(tmp_path / "other.db") as other:
        for mr in range(3):
            other.add(record(mr))
    edit(tmp_path / "other.db", "UPDATE records SET outcome = 'splendid' WHERE id = 2")
    message = refused(lambda: database.merge(tmp_path / "other.db"))
    assert "other.db" in message
    assert "splendid" in message
    assert database.records() == []


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("column", ["samples", "seconds", "errors", "schedule", "threads", "time"])
@pytest.mark.parametrize(
    "value",
    [b"\x80", "__import__('os')", "[" * 100_000, "\ud800", "nan", None, 1e400, -1],
    ids=["pickle", "expression", "nested", "surrogate", "nan", "null", "infinite", "negative"],
)
def test_a_stranger_can_store_nothing_that_is_run(
    tmp_path: Path, database: Database, column: str, value: Any
) -> None:
    target = tmp_path / "touched"
    if value == b"\x80":
        value = pickle.dumps(Payload(target))
    elif value == "\ud800":
        value = b"\xed\xa0\x80"
    with Database(tmp_path / "other.db") as other:
        other.add(record())
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        definition = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'records'")
        loose = definition.fetchone()[0].replace("NOT NULL", "")
        connection.execute("ALTER TABLE records RENAME TO strict")
        connection.execute(loose)
        connection.execute("INSERT INTO records SELECT * FROM strict")
        connection.execute("DROP TABLE strict")
        connection.execute(f"UPDATE records SET {column} = ?", (value,))
        connection.commit()
    if column == "schedule" and isinstance(value, (str, float, int)):
        # Any one line of text may be a schedule; whoever parses it finds out.
        assert database.merge(tmp_path / "other.db") == 1
    else:
        assert "other.db" in refused(lambda: database.merge(tmp_path / "other.db"))
        assert database.records() == []
    assert not target.exists()


# Schema


def test_older_schema_is_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Database(path) as database:
        database.add(record())
    steps = (("ALTER TABLE meta ADD COLUMN a TEXT", "UPDATE meta SET a = 'x'"), ("SELECT 1",))
    monkeypatch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, *steps))
    before = schema_version() - 2
    assert f"schema {before}" in refused(lambda: Database(path, read_only=True))
    with Database(path) as database:
        assert database.info().schema == before + 2
        assert database.records() == [record()]
    assert edit(path, "SELECT value, a FROM meta") == [(str(before + 2), "x")]
    with Database(path, read_only=True) as database:
        assert database.records() == [record()]


FIRST_SCHEMA = """
CREATE TABLE meta (name VARCHAR(32) NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE environments (id INTEGER NOT NULL PRIMARY KEY, "key" VARCHAR(32) NOT NULL UNIQUE,
    machine TEXT NOT NULL, run TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE records (id INTEGER NOT NULL PRIMARY KEY, "key" VARCHAR(32) NOT NULL UNIQUE,
    problem TEXT NOT NULL, algorithm TEXT NOT NULL, schedule TEXT NOT NULL,
    machine TEXT NOT NULL, regime TEXT NOT NULL, toolchain TEXT NOT NULL, ir_hash TEXT NOT NULL,
    outcome TEXT NOT NULL, reason TEXT NOT NULL, stage TEXT NOT NULL, run TEXT NOT NULL,
    time TEXT NOT NULL, threads INTEGER NOT NULL, baseline BOOLEAN NOT NULL,
    heuristic BOOLEAN NOT NULL, workspace BIGINT NOT NULL, seconds_per_call DOUBLE,
    error_rms DOUBLE, errors TEXT NOT NULL, samples TEXT NOT NULL, seconds TEXT NOT NULL);
INSERT INTO meta VALUES ('schema', '1');
"""


def test_a_file_of_the_first_schema_is_migrated(path: Path) -> None:
    row = {name: x for name, x in tables.record_row(record()).items() if name != "noise"}
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(FIRST_SCHEMA)
        names, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO records ({names}) VALUES ({marks})", [*row.values()])
    with Database(path) as database:
        assert database.info().schema == schema_version()
        assert database.records() == [record()]
        database.add(record())
        database.add(record(7, noise=0.25))
        assert database.records() == [record(), record(7, noise=0.25)]
    fresh = path.with_name("fresh.db")
    Database(fresh).close()
    columns = "SELECT m.name, c.name FROM sqlite_schema m, pragma_table_info(m.name) c"
    assert {*edit(path, columns)} == {*edit(fresh, columns)}


def test_new_database_needs_no_migration(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MIGRATIONS", (("this is not SQL",),) * 4)
    with Database(path) as database:
        assert database.info().schema == 5


def test_failed_migration_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Database(path) as database:
        database.add(record())
    with monkeypatch.context() as patch:
        broken = ("DROP TABLE records", "this is not SQL")
        patch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, broken))
        refused(lambda: Database(path))
    with Database(path) as database:
        assert database.records() == [record()]


def test_newer_schema_is_refused_untouched(path: Path) -> None:
    with Database(path) as database:
        database.add(record())
    edit(path, f"UPDATE meta SET value = '{schema_version() + 1}'")
    before = path.read_bytes()
    for read_only in (False, True):
        message = refused(lambda read_only=read_only: Database(path, read_only))
        assert "update fastrun-toolkit" in message
    assert path.read_bytes() == before


# Bad files


def edit(path: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


@pytest.mark.parametrize("content", [b"# notes\n" * 1000, b"x", b"\x7fELF" + bytes(5000)])
def test_a_file_that_is_no_database_is_refused_untouched(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "not a database" in refused(lambda: Database(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE holiday (photo BLOB)",
        "CREATE TABLE meta (something TEXT)",
        "CREATE VIEW records AS SELECT 1",
    ],
)
def test_somebody_elses_sqlite_file_is_refused_untouched(path: Path, statement: str) -> None:
    edit(path, "CREATE TABLE another (x INTEGER)")
    edit(path, statement)
    before = path.read_bytes()
    assert "holds other tables" in refused(lambda: Database(path))
    assert path.read_bytes() == before


def test_unreadable_schema_is_refused(path: Path) -> None:
    Database(path).close()
    for value in ("eval(1)", "0", "-1", "9" * 5000):
        edit(path, f"UPDATE meta SET value = '{value}'")
        assert "names no schema" in refused(lambda: Database(path))
    edit(path, "DELETE FROM meta")
    assert "names no schema" in refused(lambda: Database(path))


def test_truncated_and_scrambled_files_are_named_damaged(path: Path, tmp_path: Path) -> None:
    with Database(path) as database:
        for mr in range(300):
            database.add(record(mr))
    whole = path.read_bytes()
    truncated, scrambled = tmp_path / "truncated.db", tmp_path / "scrambled.db"
    truncated.write_bytes(whole[: len(whole) // 2])
    scrambled.write_bytes(whole[:8192] + bytes(reversed(whole[8192:])))
    for broken in (truncated, scrambled):
        before = broken.read_bytes()
        assert "is damaged" in refused(lambda broken=broken: Database(broken).records())
        assert broken.read_bytes() == before


def test_a_table_that_refuses_records_is_reported(path: Path, database: Database) -> None:
    edit(path, "CREATE UNIQUE INDEX one_per_problem ON records (problem)")
    database.add(record())
    assert "refuses the record" in refused(lambda: database.add(record(7)))
    assert database.records() == [record()]


def test_a_locked_file_can_be_read_but_not_written(path: Path) -> None:
    with Database(path) as database:
        database.add(record())
    with closing(sqlite3.connect(path)) as holder, Database(path, timeout=0.05) as database:
        holder.execute("BEGIN IMMEDIATE")
        assert "is locked" in refused(lambda: database.add(record(7)))
        assert database.records() == [record()]
        holder.rollback()
        database.add(record(7))
        assert len(database.records()) == 2


def test_read_only_reads_and_refuses_to_write(path: Path, database: Database) -> None:
    database.add(record())
    with Database(path, read_only=True) as reader:
        assert reader.read_only
        assert reader.best(*KEY) == record()
        for action in (
            lambda: reader.add(record(7)),
            lambda: reader.add_environment(Environment.host()),
            lambda: reader.merge(database),
        ):
            assert "is read-only" in refused(action)
        database.add(record(8))
        assert len(reader.records()) == 2


def test_read_only_makes_no_file(path: Path) -> None:
    assert "no database at" in refused(lambda: Database(path, read_only=True))
    assert not path.exists()
    path.touch()
    assert "is empty" in refused(lambda: Database(path, read_only=True))


def test_places_that_cannot_hold_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot make the folder" in refused(lambda: Database(tmp_path / "file" / "x.db"))
    assert "cannot be opened" in refused(lambda: Database(tmp_path))


def test_bad_addresses_are_explained_without_the_password() -> None:
    assert "not a database address" in refused(lambda: Database("://"))
    assert "oracle9000" in refused(lambda: Database("oracle9000://here/there"))
    message = refused(lambda: Database("mysql+pymysql://me:secret@nowhere/x"))
    assert "install" in message
    assert "secret" not in message


# Files that others read


def test_json_lines_read_back(tmp_path: Path, database: Database) -> None:
    stored = [
        record(mr, errors=None if mr % 2 else Errors(1.0, float("inf"), 0.0)) for mr in (1, 2)
    ]
    for r in stored:
        database.add(r)
    for name in ("records.jsonl", "records.jsonl.gz"):
        assert database.export(tmp_path / name, "jsonl") == 2
        with Database("sqlite://") as other:
            assert other.import_file(tmp_path / name) == 2
            assert other.import_file(tmp_path / name) == 0
            assert other.records() == stored


@pytest.mark.parametrize("line", ["{", "[]", "{}", "null", '{"problem": 1}', "[" * 10**5, "\xff"])
def test_bad_json_lines_are_refused_whole(tmp_path: Path, database: Database, line: str) -> None:
    file = tmp_path / "records.jsonl"
    good = json.dumps(record().to_dict())
    file.write_bytes(f"{good}\n{line}\n".encode("latin-1"))
    assert "records.jsonl, line 2" in refused(lambda: database.import_file(file))
    assert database.records() == []


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
    ]
    for r in stored:
        database.add(r)
    database.export(tmp_path / "a.json.gz", "t4")
    with Database("sqlite://") as other:
        assert other.import_file(tmp_path / "a.json.gz") == 3
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
    database.add(record())
    database.add(record(7, (), outcome=Outcome.RUNTIME, errors=None, reason='said "no", twice'))
    assert database.export(tmp_path / "x.csv", "csv", outcome="runtime") == 1
    assert database.export(tmp_path / "x.csv.gz", "csv") == 2
    table = pandas.read_csv(tmp_path / "x.csv.gz")
    assert list(table["mr" if "mr" in table else "schedule"]) == [
        r.schedule for r in database.records()
    ]
    assert table["reason"][1] == 'said "no", twice'
    assert table["seconds_per_call"][0] == 1.5e-3
    assert json.loads(table["samples"][0]) == list(record().samples)
    assert table["errors.max"][0] == 1e-6
    assert table["seconds.compile"][1] == 0.02


def test_equal_records_give_equal_bytes(tmp_path: Path, database: Database) -> None:
    database.add(record())
    for form in ("t4", "csv", "jsonl"):
        database.export(tmp_path / "a.gz", form)
        database.export(tmp_path / "b.gz", form)
        assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()

"""The database's file: its schema, and foreign files, which stay unchanged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.record import LATER, Conditions, Limits
from fastrun.tuner.store import schema as tables
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.schema import schema_version
from tests.support.databases import edit, refused
from tests.support.records import record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fastrun.db"


# Schema


def test_older_schema_is_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Database(path) as database:
        database.add(record())
    steps = (("ALTER TABLE meta ADD COLUMN a TEXT", "UPDATE meta SET a = 'x'"), ("SELECT 1",))
    monkeypatch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, *steps))
    before = schema_version() - 2
    content = path.read_bytes()
    with Database(path, read_only=True) as database:
        assert database.info().schema == before + 2
        assert database.records() == [record()]
        assert "read-only" in refused(lambda: database.add(record(7)))
    assert path.read_bytes() == content
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
    row = {name: x for name, x in tables.record_row(record()).items() if name not in LATER}
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(FIRST_SCHEMA)
        names, marks = ", ".join(f'"{name}"' for name in row), ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO records ({names}) VALUES ({marks})", [*row.values()])
    with Database(path) as database:
        assert database.info().schema == schema_version()
        assert database.records() == [record()]
        database.add(record())
        climate = {"clocks": (1800, 1800, 1200), "temperatures": (50.0, 61.5, 70.0)}
        later = record(7, noise=0.25, processes=(0, 1, 1), rounds=(0, 0, 1), protocol=2, **climate)
        database.add(later)
        assert database.records() == [record(), later]
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


@pytest.mark.parametrize(
    "content", [b"# notes\n" * 1000, b"x", b"\0", bytes(511), b"\x7fELF" + bytes(5000), bytes(5000)]
)
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


@pytest.mark.parametrize(
    "does",
    [
        "BEFORE INSERT ON records BEGIN SELECT RAISE(IGNORE); END",
        "AFTER INSERT ON records BEGIN DELETE FROM records; END",
        "AFTER INSERT ON runs BEGIN UPDATE records SET run = ''; END",
    ],
)
def test_a_file_with_triggers_is_refused_untouched(path: Path, does: str) -> None:
    with Database(path) as database:
        database.add(record())
        edit(path, f"CREATE TRIGGER here {does}")
        if "records" in does.partition("BEGIN")[0]:
            # A database that was opened before notices it when it writes.
            assert "throws away" in refused(lambda: database.add(record(7)))
        assert database.records() == [record()]
    before = path.read_bytes()
    assert "holds triggers" in refused(lambda: Database(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("table", ["records", "environments", "networks", "runs"])
def test_a_view_in_place_of_a_table_is_refused(path: Path, table: str) -> None:
    Database(path).close()
    edit(path, f"ALTER TABLE {table} RENAME TO other")
    edit(path, f"CREATE VIEW {table} AS SELECT * FROM other")
    assert "tables" in refused(lambda: Database(path))


def test_text_that_is_no_utf8_is_named_damaged(path: Path) -> None:
    with Database(path) as database:
        database.add(record(reason="marker"))
    whole = path.read_bytes()
    for old, new in [
        (b"tablemetameta", b"table\xff\xffta\xff\xffta"),
        (b"samples TEXT", b"sample\xff TEXT"),
        (b"marker", b"marke\xff"),
    ]:
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        refused(lambda: Database(path).records())


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("seconds_per_call", "1e-9"),
        ("seconds_per_call", "1e9"),
        ("seconds_per_call", "NULL"),
        ("seconds_per_call", "'fast'"),
        ("error_rms", "0"),
        ("error_rms", "1e9"),
        ("error_rms", "NULL"),
        ("samples", "'[1e-9]'"),
        ("errors", "'null'"),
        ("schedule", "'direct(mr=9)'"),
        ("key", "'0'"),
    ],
)
def test_what_is_stored_to_rank_by_is_not_believed(path: Path, column: str, value: str) -> None:
    problem, conditions, limits = record().problem, Conditions("machine"), Limits(error=1.0)
    with Database(path) as database:
        for mr, seconds in ((6, 1e-3), (7, 2e-3), (8, 3e-3)):
            database.add(record(mr, [seconds]))
        edit(path, f"UPDATE records SET {column} = {value} WHERE id = 1")
        for action in (
            lambda: database.records(),
            lambda: database.ranking(problem, conditions, limits),
            lambda: database.best(problem, conditions, limits),
            lambda: database.best_all(conditions, limits),
            lambda: database.export(path.with_suffix(".jsonl"), "jsonl"),
        ):
            assert "by hand or is damaged" in refused(action)


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


def test_a_table_that_refuses_records_is_reported(path: Path) -> None:
    with Database(path) as database:
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


def test_read_only_reads_and_refuses_to_write(path: Path) -> None:
    with Database(path) as database, Database(path, read_only=True) as reader:
        database.add(record())
        assert reader.read_only
        assert reader.records() == [record()]
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
    assert "no folder" in refused(lambda: Database(tmp_path / "file" / "x.db"))
    assert "no folder" in refused(lambda: Database(tmp_path / "typo" / "x.db"))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    for name in ("zero\0.db", "~nobody-of-this-name/x.db"):
        assert "no file can be called" in refused(lambda name=name: Database(name))
    assert "cannot be opened" in refused(lambda: Database(tmp_path / ("x" * 300)))
    assert "cannot be opened" in refused(lambda: Database(tmp_path))


def test_the_folder_of_the_cache_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRUN_CACHE", str(tmp_path / "new" / "cache"))
    Database(tmp_path / "new" / "cache" / "mine.db").close()
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTRUN_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot make the folder" in refused(Database)


def test_bad_addresses_are_explained_without_the_password() -> None:
    assert "not a database address" in refused(lambda: Database("://"))
    for port in ("port", "99999999999999999999", "-1", "1.5", ""):
        message = refused(
            lambda port=port: Database(f"postgresql+psycopg://me:secret@localhost:{port}/x")
        )
        assert "secret" not in message
    assert "oracle9000" in refused(lambda: Database("oracle9000://here/there"))
    message = refused(lambda: Database("mysql+pymysql://me:secret@nowhere/x"))
    assert "install" in message
    assert "secret" not in message

"""Damaged databases and files to import: a refusal of one line, or nothing but what was stored.

FASTRUN_TEST_SCALE multiplies the number of mutants: 50 makes 2,000 of each.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import fastrun
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import main
from fastrun.tuner.records.environment import Environment, toolchain
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import Conditions, Limits, Outcome, Record, Stage
from fastrun.tuner.store.database import Database, DatabaseError
from fastrun.tuner.store.standing import standings
from tests.support.graph_models import model, node, normal
from tests.support.records import record
from tests.tuner.records.test_network_record import network_record

MUTANTS = round(40 * float(os.environ.get("FASTRUN_TEST_SCALE", "1")))

P = ConvProblem.parse("conv 1x4x8x8 4x3x3 s1 p1")
HERE = Conditions.here()
SMALL = model([node("Conv", "x w", "y", pads=[1] * 4)], {"w": normal(4, 4, 3, 3)})


def facts() -> list[Record]:
    known = {"problem": str(P), "machine": HERE.machine, "toolchain": toolchain(), "run": "made"}
    few = [
        record(mr, [mr * 1e-4 + i * 1e-6 for i in range(15)], stage=stage, **known)
        for mr in range(1, 9)
        for stage in Stage
    ]
    few += [record(mr, (), outcome=o, errors=None, **known) for mr, o in enumerate(Outcome, 20)]
    few += [record(30, processes=(0, 1, 1), rounds=(0, 0, 1), noise=0.1, heuristic=True, **known)]
    return [*few, *(record(mr, reason="nothing " * 20) for mr in range(40, 60))]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "sound.db"
    with Database(path) as database:
        for fact in facts():
            database.add(fact)
        database.add_environment(Environment.host(), "made")
        database.add_run(Run(name="made", command="fastrun tune", seed=1, sampler="gp"))
        database.add_network(network_record())
    return path


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    """Stop a test that takes minutes."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(600 + 5 * MUTANTS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Mutations of databases


def flips(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        # The first page, which holds the schema, as often as all others.
        data[rng.randrange(rng.choice((100, 4096, len(data))))] = rng.randrange(256)
    path.write_bytes(data)


def pages(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    size = rng.choice((512, 4096))
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    parts[i], parts[j] = rng.choice(
        [(parts[j], parts[i]), (parts[j], parts[j]), (bytes(size),) * 2]
    )
    path.write_bytes(b"".join(parts))


def truncation(path: Path, rng: random.Random) -> None:
    size = path.stat().st_size
    os.truncate(path, rng.choice((rng.randrange(size), rng.randrange(1100), 2 * size)))


VALUES: Sequence[Any] = (
    *(None, "", "x", "0", "1", b"", b"\x80\xff", b"abc", 0, 1, -1, 2**31, 2**62, -(2**63)),
    *(1e400, -1e400, 1e-9, 0.5, "nan", "NaN", "[NaN]", "[Infinity]", "[-1]", "[]", "{}", "null"),
    *("[" * 3000, '{"a":' * 3000, f"[1{'0' * 400}]", "1" * 400, "[1e400]", '["1"]', "[[1]]"),
    *(
        "correct",
        "final",
        "hot",
        "2026-01-01T00:00:00+00:00",
        "9999-99-99",
        "two\nlines",
        "\x1b[2J",
    ),
    *("é\u2028☃", "conv 1x1x1x1 1x1x1 s1 p0", "direct(", "x" * 100_000, "[true]", '{"x": null}'),
)
TABLES = ("records", "environments", "networks", "runs", "meta")


def cell(path: Path, rng: random.Random) -> None:
    """One value of one row, of a table that takes anything."""
    with closing(sqlite3.connect(path)) as connection, connection:
        table = rng.choice(("records", "records", *TABLES))
        (text,) = connection.execute(
            "SELECT sql FROM sqlite_schema WHERE name=?", (table,)
        ).fetchone()
        connection.execute("PRAGMA writable_schema = ON")
        loose = text.replace("NOT NULL", "")
        connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (loose, table))
    with closing(sqlite3.connect(path)) as connection, connection:
        names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        rows = [row[0] for row in connection.execute(f"SELECT rowid FROM {table}")]
        name, value = rng.choice(names), rng.choice(VALUES)
        if isinstance(value, bytes) and rng.random() < 0.5:
            value = sqlite3.Binary(value)
        as_text = isinstance(value, bytes) and rng.random() < 0.5
        new = "CAST(? AS TEXT)" if as_text else "?"
        with contextlib.suppress(sqlite3.Error):
            where = rng.choice(("WHERE rowid = ?", "WHERE rowid >= ?"))
            row = rng.choice(rows)
            connection.execute(f'UPDATE {table} SET "{name}" = {new} {where}', (value, row))


STATEMENTS = (
    "DROP TABLE {t}",
    "ALTER TABLE {t} RENAME TO other",
    "ALTER TABLE {t} RENAME COLUMN {c} TO other",
    "ALTER TABLE {t} DROP COLUMN {c}",
    "ALTER TABLE {t} ADD COLUMN other TEXT",
    "CREATE TRIGGER odd AFTER INSERT ON {t} BEGIN DELETE FROM records; END",
    "CREATE TRIGGER odd BEFORE INSERT ON {t} BEGIN SELECT RAISE(IGNORE); END",
    "CREATE VIEW odd AS SELECT * FROM {t}",
    "CREATE UNIQUE INDEX odd ON records (threads, mr)",
    "CREATE TABLE odd AS SELECT * FROM {t}",
    "DELETE FROM {t}",
    "UPDATE meta SET value = '{v}'",
    "UPDATE sqlite_schema SET sql = '{v}' WHERE name = '{t}'",
    "UPDATE sqlite_schema SET sql = replace(sql, '{c}', 'x') WHERE name = '{t}'",
    "UPDATE sqlite_schema SET sql = replace(sql, 'TEXT', 'BLOB') WHERE name = '{t}'",
    "UPDATE sqlite_schema SET sql = replace(sql, 'TEXT', 'INTEGER') WHERE name = '{t}'",
    "UPDATE sqlite_schema SET name = CAST(x'ff6d' AS TEXT) WHERE name = '{t}'",
    "UPDATE sqlite_schema SET rootpage = {n} WHERE name = '{t}'",
    "UPDATE sqlite_schema SET type = 'view' WHERE name = '{t}'",
    "PRAGMA user_version = {n}",
)


def schema(path: Path, rng: random.Random) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        table = rng.choice(TABLES)
        column = rng.choice([r[1] for r in connection.execute(f"PRAGMA table_info({table})")])
        words = {"t": table, "c": column, "n": rng.randrange(30)}
        value = rng.choice(("0", "1", "2", "3", "4", "5", "x", "", "1e3"))
        with contextlib.suppress(sqlite3.Error):
            connection.execute(rng.choice(STATEMENTS).format(v=value, **words))


MUTATIONS = (flips, flips, pages, truncation, cell, cell, cell, schema)


def asked(action: Callable[[], Any], wrong: str) -> Any:
    """The result; None if it is refused in one line."""
    try:
        return action()
    except DatabaseError as error:
        said = str(error)
    assert "\n" not in said, wrong
    assert len(said) < 1000, wrong
    return None


def look(path: Path, stored: Sequence[Record], read_only: bool, wrong: str) -> None:
    """Read everything: all answers were stored, and are in order."""
    opened = asked(lambda: Database(path, read_only), wrong)
    if opened is None:
        return
    with opened as database:
        records = asked(database.records, wrong) or []
        ranking = asked(lambda: database.ranking(P, HERE), wrong) or []
        best = asked(lambda: database.best(P, HERE, Limits(error=1.0)), wrong)
        every = asked(lambda: database.best_all(HERE), wrong) or {}
        (found,) = asked(lambda: standings(database, [(P, 1)], HERE), wrong) or (None,)
        assert all(r in stored for r in (*records, *ranking, *every.values())), wrong
        order = sorted(ranking, key=lambda r: (-[*Stage].index(r.stage), r.seconds_per_call))
        assert ranking == order, wrong
        assert best in (None, *ranking[:1]), wrong
        assert not found or found.best in (None, *stored), wrong
        for ask in (database.environments, database.runs, database.networks, database.info):
            asked(ask, wrong)
        asked(lambda: database.frame(parameters=True), wrong)
        for form in ("jsonl", "t4", "csv"):
            asked(lambda form=form: database.export(path.with_name("out"), form), wrong)
        with Database("sqlite://") as other:
            asked(lambda: other.merge(database), wrong)
            assert all(r in stored for r in other.records()), wrong
        new = record(70, run="new")
        if not read_only and asked(lambda: (database.add(new),), wrong):
            again = asked(database.records, wrong)
            assert again is None or new in again, wrong


def command(words: Sequence[str], wrong: str) -> None:
    """Run a command: it succeeds, or prints one line of error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    assert code in (0, 2), wrong
    assert code == 0 or len(err.getvalue().splitlines()) == 1, wrong + err.getvalue()


def test_of_a_damaged_database_nothing_false_is_said(sound: Path, tmp_path: Path) -> None:
    stored = [*facts(), record(70, run="new")]
    path = tmp_path / "mutant.db"
    first = int(os.environ.get("FASTRUN_TEST_FIRST", "0"))
    for number in range(first, first + MUTANTS):
        rng = random.Random(number)
        for file in tmp_path.iterdir():
            file.unlink()
        shutil.copy(sound, path)
        mutate = rng.choice(MUTATIONS)
        mutate(path, rng)
        wrong = f"mutant {number}, {mutate.__name__}: "
        look(path, stored, rng.random() < 0.5, wrong)
        if number % 8 == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fastrun.load(SMALL, database=path)
            command(["db", "info", "--db", str(path)], wrong)
            command(["best", str(P), "--db", str(path)], wrong)
            command(["db", "export", str(tmp_path / "x.csv"), "--db", str(path)], wrong)
            target = str(tmp_path / "new.db")
            command(["db", "merge", str(path), "--db", target], wrong)


# Mutations of files


def scalars(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of the parts of a JSON value."""
    yield path
    keys: Any = value if isinstance(value, dict) else ()
    for key in range(len(value)) if isinstance(value, list) else keys:
        yield from scalars(value[key], (*path, key))


ODD: Sequence[Any] = (
    *(None, True, 0, 1, -1, 10**400, -(10**400), 1e308, float("nan"), float("inf"), -0.0, 0.5),
    *("", "x", "\ud800", "two\nlines", "\x1b[2J", "x" * 10_000, [], {}, [[]], [1], ["1"], {"a": 1}),
    *([float("nan")], [-1.0], [10**400], {"\ud800": 1.0}, {"a\nb": 1.0}, {"": 10**400}, [None]),
)


def changed(document: Any, rng: random.Random) -> Any:
    """The document with one part replaced, left out or added."""
    *where, last = rng.choice([p for p in scalars(document) if p])
    part = document
    for key in where:
        part = part[key]
    does = rng.randrange(4)
    if does == 0:
        del part[last]
    elif does == 1 and isinstance(part, dict):
        part["odd"] = rng.choice(ODD)
    else:
        part[last] = rng.choice(ODD)
    return document


def mutant_file(text: str, rng: random.Random, t4: bool) -> bytes:
    kind = rng.randrange(8)
    if kind < 4:
        if t4:
            return json.dumps(changed(json.loads(text), rng)).encode()
        lines = text.splitlines()
        i = rng.randrange(len(lines))
        lines[i] = json.dumps(changed(json.loads(lines[i]), rng))
        return "\n".join(lines).encode()
    data = bytearray(text.encode())
    if kind == 4:
        del data[rng.randrange(len(data)) :]
    elif kind == 5:
        for _ in range(rng.choice((1, 3, 50))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 6:
        at = rng.randrange(len(data))
        odd = (b"[" * 20_000, b'{"a":' * 20_000, b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"9" * 5000)
        data[at:at] = rng.choice(odd)
    else:
        picture = b"\x89PNG\r\n\x1a\n" + rng.randbytes(3000)
        return rng.choice((picture, b"", b"\n\n\n", bytes(4000), rng.randbytes(100)))
    return bytes(data)


def test_of_a_damaged_file_nothing_half_is_imported(sound: Path, tmp_path: Path) -> None:
    texts = {}
    with Database(sound, read_only=True) as database:
        for form, name in (("jsonl", "x.jsonl"), ("t4", "x.json")):
            database.export(tmp_path / name, form)
            texts[form] = (tmp_path / name).read_text()
    first = int(os.environ.get("FASTRUN_TEST_FIRST", "0"))
    for number in range(first, first + MUTANTS):
        rng = random.Random(number)
        form = rng.choice(("jsonl", "t4"))
        wrong = f"mutant {number}, {form}: "
        data = mutant_file(texts[form], rng, form == "t4")
        packed = rng.random() < 0.2
        name = {"jsonl": "mutant.jsonl", "t4": "mutant.json"}[form] + ".gz" * packed
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if packed and rng.random() < 0.7 else data)
        with Database("sqlite://") as database:
            count = asked(lambda database=database, path=path: database.import_file(path), wrong)
            records = database.records()
            assert len(records) == (count or 0), wrong
            database.frame(parameters=True)
            database.info()
            database.ranking(P, HERE)
            with Database("sqlite://") as other:
                assert other.merge(database) == len(records), wrong
            for form in ("jsonl", "t4", "csv"):
                assert database.export(tmp_path / "out", form) == len(records), wrong
        if number % 8 == 0:
            command(["db", "import", str(path), "--db", str(tmp_path / "new.db")], wrong)
            (tmp_path / "new.db").unlink()

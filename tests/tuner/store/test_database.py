"""The database: rankings, refusals, and records that are neither lost nor executed."""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import (
    NO_LIMITS,
    PROTOCOL,
    Conditions,
    Errors,
    Limits,
    Outcome,
    Record,
)
from fastrun.tuner.store.database import Database
from tests.support.databases import edit, refused
from tests.support.records import PROBLEM, record

KEY = (PROBLEM, Conditions("machine"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fastrun.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    with Database(path) as opened:
        yield opened


def best(database: Database, *records: Record, limits: Limits = NO_LIMITS) -> Record | None:
    for r in records:
        database.add(r)
    return database.best(*KEY, limits)


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


def test_runs_say_what_was_asked_for(database: Database) -> None:
    first = Run(name="one", command="fastrun tune x", seed=0, sampler="gp")
    second = Run(name="two", command="fastrun tune y")
    for run in (first, second, first):
        database.add_run(run)
    assert database.runs() == [first, second]
    assert database.runs("two") == [second]


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


def test_what_was_timed_in_another_way_is_not_compared(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = [record(6, [1e-3], stage="final"), record(7, [2e-3])]
    monkeypatch.setattr("fastrun.tuner.store.schema.PROTOCOL", PROTOCOL + 1)
    newer = record(7, [3e-3], protocol=PROTOCOL + 1)
    assert best(database, *older) is None
    assert best(database, newer) == newer
    assert database.ranking(*KEY) == [newer]
    assert database.best_all(KEY[1]) == {PROBLEM: newer}
    assert database.records(protocol=PROTOCOL) == older


def test_baselines_are_left_out_unless_asked_for(database: Database) -> None:
    naive = record(6, [1e-3], schedule="naive()", baseline=True)
    tuned = record(7, [2e-3])
    assert best(database, naive, tuned) == tuned
    assert database.ranking(*KEY, include_baselines=True) == [naive, tuned]


def test_limits_filter(database: Database) -> None:
    inexact = record(6, [1e-3], errors=Errors(1e-3, 1e-4, 0.0), workspace=10)
    large = record(7, [2e-3], workspace=1000)
    unknown = record(8, [1e-4], errors=None, toolchain="llvm 0, kernels 0")
    plain = record(9, [3e-3], workspace=10)
    assert best(database, inexact, large, unknown, plain) == unknown
    assert best(database, limits=Limits(1e-5)) == large
    assert best(database, limits=Limits(1e-5, 999)) == plain
    assert best(database, limits=Limits(1e-4, 10)) == inexact
    assert best(database, limits=Limits(1e-9)) is None


def test_best_all_agrees_with_best(database: Database) -> None:
    problems = [PROBLEM, "conv 1x8x8x8 8x1x1 s1 p0", "conv 1x9x9x9 9x3x3 s1 p0"]
    for i, problem in enumerate(problems[:2]):
        for mr in range(4):
            database.add(record(mr, [1e-3 * (1 + (mr + i) % 4)], problem=problem))
    database.add(record(outcome=Outcome.COMPILE, problem=problems[2]))
    chosen = database.best_all(KEY[1])
    assert chosen == {p: database.best(p, KEY[1]) for p in problems[:2]}


# Merging


def test_merge_is_idempotent_and_brings_everything(tmp_path: Path, database: Database) -> None:
    database.add(record(1))
    with Database(tmp_path / "other.db") as other:
        for mr in range(1200):
            other.add(record(mr))
        other.add_environment(Environment.host(), "run")
        other.add_run(Run(name="run", command="fastrun tune"))
        assert database.merge(other) == 1199
        assert database.merge(other) == 0
        assert database.merge(tmp_path / "other.db") == 0
        assert len(database.records()) == 1200
        assert database.environments(run="run") == other.environments()
        assert database.runs() == other.runs() != []
        assert other.merge(database) == 0


def test_merge_keeps_what_only_some_records_know(tmp_path: Path, database: Database) -> None:
    placed = record(4, processes=(0, 0, 1), rounds=(0, 1, -1), protocol=2)
    stored = [record(1), record(2, noise=0.5), record(3), placed]
    with Database(tmp_path / "other.db") as other:
        for r in stored:
            other.add(r)
        assert database.merge(other) == 4
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
    assert "other.db" in refused(lambda: database.merge(tmp_path / "other.db"))
    assert database.records() == []
    assert not target.exists()

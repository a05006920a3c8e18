"""The database's file shared by processes: locks must not be lost."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastrun
from fastrun.tuner.store.database import Database
from tests.support.databases import edit
from tests.support.graph_models import model, node, normal
from tests.support.records import record

HANG_SECONDS = 600.0
"""Seconds after which something hangs, also on a busy machine."""

TURNS = round(10 * float(os.environ.get("FASTRUN_TEST_SCALE", "1")))

fork = multiprocessing.get_context("fork")

ADD = """
import sys
from tests.support.records import record
from fastrun.tuner.store.database import Database
with Database(sys.argv[1]) as database:
    for number in sys.argv[2:]:
        database.add(record(int(number)))
"""


def add_elsewhere(path: Path, *numbers: int) -> None:
    """Store records in an independent process."""
    words = [sys.executable, "-c", ADD, str(path), *map(str, numbers)]
    subprocess.run(words, check=True, cwd=Path(__file__).parents[3])


def small() -> Any:
    """A network of one convolution."""
    return model([node("Conv", "x w", "y", pads=[1] * 4)], {"w": normal(4, 4, 3, 3)})


def in_child(action: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    child = fork.Process(target=action)
    child.start()
    return child


def whole(path: Path, *numbers: int) -> bool:
    """Whether the file is sound and holds these records and no others."""
    assert edit(path, "PRAGMA integrity_check") == [("ok",)]
    with Database(path) as database:
        return database.records() == [record(number) for number in numbers]


@pytest.mark.parametrize("second", ["database", "reader", "refused", "load", "import"])
def test_a_second_use_of_the_file_leaves_the_locks_of_the_first(
    tmp_path: Path, second: str
) -> None:
    path = tmp_path / "fastrun.jsonl"
    database = Database(path)
    database.add(record(0))
    if second == "database":
        Database(path).close()
    elif second == "reader":
        Database(path, read_only=True).close()
    elif second == "load":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that are not measured
            fastrun.load(small(), database=path)
    elif second == "import":
        with pytest.raises(RuntimeError, match="the database itself"):
            database.import_file(path)
    else:
        edit(path, "UPDATE meta SET value = '9' || value")
        with pytest.raises(RuntimeError, match="update"):
            Database(path)
        edit(path, "UPDATE meta SET value = substr(value, 2)")
    # A process that takes itself for the last one removes the log, and later records are lost.
    add_elsewhere(path, 1)
    database.add(record(2))
    database.close()
    assert whole(path, 0, 1, 2)


def test_a_child_with_a_database_of_its_own_has_locks_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "fastrun.db"
    opened, closed = fork.Event(), fork.Event()
    database = Database(path)
    database.add(record(0))

    def write() -> None:
        with Database(path) as own:
            own.add(record(1))
            opened.set()
            assert closed.wait(HANG_SECONDS)
            own.add(record(2))

    child = in_child(write)
    assert opened.wait(HANG_SECONDS)
    database.close()
    closed.set()
    child.join(HANG_SECONDS)
    assert child.exitcode == 0
    assert whole(path, 0, 1, 2)


def test_parent_and_child_share_a_database_in_turns(tmp_path: Path) -> None:
    path = tmp_path / "fastrun.db"
    turns = [fork.Semaphore(0), fork.Semaphore(0)]
    database = Database(path)
    database.add(record(0))

    def write(which: int) -> None:
        for number in range(1 + which, 20, 2):
            assert turns[which].acquire(timeout=HANG_SECONDS)
            database.add(record(number))
            if number % 4 == 3:
                database.close()
            turns[1 - which].release()

    child = in_child(lambda: write(1))
    turns[0].release()
    write(0)
    child.join(HANG_SECONDS)
    assert child.exitcode == 0
    assert whole(path, *range(20))


def test_a_fork_waits_for_the_transactions_of_other_threads(tmp_path: Path) -> None:
    path = tmp_path / "fastrun.db"
    database = Database(path)
    begun, forking, done = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with database._store.writing():
            begun.set()
            forking.wait(HANG_SECONDS)
            # Long enough for a fork that does not wait. The result does not depend on it.
            threading.Event().wait(0.3)
            done.set()
        database.add(record(0))

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(HANG_SECONDS)

    def write() -> None:
        database.add(record(1))
        assert len(database.records()) in (1, 2)

    forking.set()
    child = in_child(write)
    assert done.is_set()
    thread.join(HANG_SECONDS)
    child.join(HANG_SECONDS)
    assert child.exitcode == 0
    assert sorted(database.records(), key=lambda r: r.schedule) == [record(0), record(1)]


def test_forks_beside_busy_threads_hang_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "fastrun.db"
    database = Database(path)
    stop = threading.Event()
    added = [0, 0]

    def write(thread: int) -> None:
        while not stop.is_set() and added[thread] < 2000:
            database.add(record(added[thread], run=f"thread {thread}"))
            added[thread] += 1

    threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    children = 8
    for number in range(children):
        child = in_child(lambda number=number: database.add(record(number)))
        child.join(HANG_SECONDS)
        assert child.exitcode == 0
    stop.set()
    for thread in threads:
        thread.join(HANG_SECONDS)
    assert edit(path, "PRAGMA integrity_check") == [("ok",)]
    assert len(database.records()) == children + sum(added)


def test_what_is_in_memory_a_child_has_a_copy_of() -> None:
    database = Database("sqlite://")
    database.add(record(0))

    def write() -> None:
        database.add(record(1))
        assert database.records() == [record(0), record(1)]

    child = in_child(write)
    child.join(HANG_SECONDS)
    assert child.exitcode == 0
    assert database.records() == [record(0)]


@pytest.mark.slow
def test_one_tunes_and_one_loads_in_turns(tmp_path: Path) -> None:
    """A child adds as a tuning does, then its parent loads a network and adds, and so on.

    FASTRUN_TEST_SCALE=20 makes it 200 turns.
    """
    path, model = tmp_path / "fastrun.db", small()
    database = Database(path)
    kept = []

    def tune(numbers: list[int]) -> None:
        with Database(path) as own:
            for number in numbers:
                own.add(record(number))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that are not measured
        for turn in range(TURNS):
            numbers = [10 * turn + i for i in range(5)]
            if turn % 5:
                child = in_child(lambda numbers=numbers: tune(numbers))
                child.join(HANG_SECONDS)
                assert child.exitcode == 0
            else:
                add_elsewhere(path, *numbers)
            fastrun.load(model, database=path if turn % 2 else database)
            database.add(record(10 * turn + 5))
            kept += [*numbers, 10 * turn + 5]
            assert edit(path, "PRAGMA integrity_check") == [("ok",)]
    database.close()
    assert whole(path, *kept)

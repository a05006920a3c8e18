"""The database among processes: writers at once, death at any moment, no disk space, no rights.

FASTRUN_KILLS sets how many times a pair of writers is killed (default 10).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from fastrun.tuner.records.record import Conditions, Record
from fastrun.tuner.store.database import Database, DatabaseError
from tests.support.records import PROBLEM, record

pytestmark = pytest.mark.slow

HANG_SECONDS = 600.0
"""Seconds after which something hangs, also on a busy machine."""

KILLS = int(os.environ.get("FASTRUN_KILLS", "10"))
NOBODY = 65534

fork = multiprocessing.get_context("fork")


def in_child(action: Callable[[], None]) -> None:
    """Run `action` in a new process, which must succeed."""
    child = fork.Process(target=action)
    child.start()
    child.join(HANG_SECONDS)
    assert child.exitcode == 0


def numbered(run: str, number: int) -> Record:
    """A record of several pages, so that a commit takes several writes."""
    return record(number, [1e-3 + 1e-6 * i for i in range(800)], run=run)


def test_eight_writers_at_once_on_a_file_that_is_not_there(tmp_path: Path) -> None:
    start = fork.Barrier(8)

    def write(name: str) -> None:
        start.wait()
        with Database(tmp_path / "fastrun.db", timeout=HANG_SECONDS) as database:
            for number in range(25):
                database.add(numbered(name, number))

    writers = [fork.Process(target=write, args=(str(i),)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(HANG_SECONDS)
    assert [writer.exitcode for writer in writers] == [0] * 8
    with Database(tmp_path / "fastrun.db") as database:
        for i in range(8):
            assert database.records(run=str(i)) == [numbered(str(i), n) for n in range(25)]


def test_two_merges_at_once_bring_everything_once(tmp_path: Path) -> None:
    with Database(tmp_path / "from.db") as source:
        for number in range(50):
            source.add(numbered("", number))

    def merge() -> None:
        with Database(tmp_path / "to.db", timeout=HANG_SECONDS) as database:
            database.merge(tmp_path / "from.db")

    mergers = [fork.Process(target=merge) for _ in range(4)]
    for merger in mergers:
        merger.start()
    for merger in mergers:
        merger.join(HANG_SECONDS)
        assert merger.exitcode == 0
    with Database(tmp_path / "to.db") as database:
        assert Counter(r.key for r in database.records()) == Counter(
            numbered("", number).key for number in range(50)
        )


def test_a_forked_child_keeps_its_parents_database_after_the_parent_let_go(tmp_path: Path) -> None:
    closed = fork.Event()
    database = Database(tmp_path / "fastrun.db")
    database.add(numbered("", 0))

    def write() -> None:
        closed.wait(HANG_SECONDS)
        database.add(numbered("", 1))

    child = fork.Process(target=write)
    child.start()
    database.close()
    closed.set()
    child.join(HANG_SECONDS)
    assert child.exitcode == 0
    with database:
        database.add(numbered("", 2))
        assert database.records() == [numbered("", n) for n in range(3)]


def test_killed_writers_lose_nothing_they_were_told_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "fastrun.db"
    rng = random.Random(0)
    stored = 0

    def write(run: str, told: int) -> None:
        database = Database(path, timeout=HANG_SECONDS)
        for number in count():
            database.add(numbered(run, number))
            os.write(told, b".")

    for kill in range(KILLS):
        pipes = [os.pipe() for _ in range(2)]
        runs = [f"{kill} {i}" for i in range(2)]
        writers = [
            fork.Process(target=write, args=(run, told))
            for run, (_, told) in zip(runs, pipes, strict=True)
        ]
        for writer in writers:
            writer.start()
        # Wait for so many records, for at least one in the first round.
        least = [rng.randrange(4) or not kill for _ in pipes]
        heard = [
            sum(len(os.read(answers, 1)) for _ in range(n))
            for n, (answers, _) in zip(least, pipes, strict=True)
        ]
        time.sleep(rng.uniform(0, 0.02))
        for writer in writers:
            assert writer.pid
            os.kill(writer.pid, signal.SIGKILL)
        for run, writer, (answers, told), n in zip(runs, writers, pipes, heard, strict=True):
            writer.join(HANG_SECONDS)
            assert writer.exitcode == -signal.SIGKILL
            os.close(told)
            with open(answers, "rb") as file:
                promised = n + len(file.read())
            # In every other round a reader is the first to open the file after the death.
            if not path.exists():
                assert promised == 0
                continue
            if kill % 2:
                Database(path).close()
            found = _records(path, run)
            assert promised <= len(found) <= promised + 1
            assert found == [numbered(run, n) for n in range(len(found))]
            stored += len(found)
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Database(path) as database:
        assert len(database.records()) == stored
    assert stored > 0


def _records(path: Path, run: str) -> list[Record]:
    """The records that a reader finds; none as long as the tables are not made yet."""
    try:
        with Database(path, read_only=True) as database:
            return database.records(run=run)
    except DatabaseError as error:
        if "is empty" in str(error):
            return []
        raise


def add_forever(database: Database) -> None:
    for number in count():
        database.add(numbered("", number))


def test_a_full_disk_is_reported_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "fastrun.db"

    def fill() -> None:
        database = Database(path)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(DatabaseError, match="free some") as refusal:
            add_forever(database)
        assert "\n" not in str(refusal.value)
        stored = len(database.records())
        assert stored > 0
        assert database.records() == [numbered("", n) for n in range(stored)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        database.add(numbered("", stored))
        os._exit(0)  # without closing, as if killed

    in_child(fill)
    with Database(path) as database:
        found = database.records()
        assert found == [numbered("", n) for n in range(len(found))]
        assert len(found) > 1


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users may enter, unlike pytest's folders."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("file_mode", "folder_mode"), [(0o444, 0o755), (0o444, 0o555), (0o666, 0o555)]
)
def test_without_the_right_to_write_it_is_read(
    public: Path, file_mode: int, folder_mode: int
) -> None:
    path = public / "fastrun.db"
    with Database(path) as database:
        database.add(record())
    path.chmod(file_mode)
    public.chmod(folder_mode)

    def use() -> None:
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        with Database(path) as database:
            assert database.read_only
            assert database.best(PROBLEM, Conditions("machine")) == record()
            with pytest.raises(DatabaseError, match="is read-only"):
                database.add(record(7))
        if folder_mode == 0o555:
            with pytest.raises(DatabaseError, match="cannot be opened"):
                Database(public / "new.db")

    in_child(use)
    assert [file.name for file in public.iterdir()] == ["fastrun.db"]


def test_a_file_that_may_not_be_read_is_named(public: Path) -> None:
    path = public / "fastrun.db"
    Database(path).close()
    path.chmod(0)

    def use() -> None:
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        with pytest.raises(DatabaseError, match="cannot be opened"):
            Database(path)

    in_child(use)

"""The database on a real PostgreSQL server, which this test starts if it is installed."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.record import LATER, Errors, Limits, Outcome
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.schema import FIRST_TABLES, TABLES, schema_version
from tests.support.records import record
from tests.tuner.store.test_database import KEY, refused

pytestmark = pytest.mark.slow

pytest.importorskip("psycopg", reason="needs psycopg")

fork = multiprocessing.get_context("fork")


def _tool(name: str) -> str:
    """A server program; Debian keeps them off the path."""
    folders = [str(p / "bin") for p in sorted(Path("/usr/lib/postgresql").glob("*"))]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))
    return found or pytest.skip(f"needs a PostgreSQL server: {name} is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """The folder of a running server's socket."""
    initdb, pg_ctl = _tool("initdb"), _tool("pg_ctl")
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    if os.geteuid() == 0 and user not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("needs a user postgres: the server does not run as root")
    folder = Path(tempfile.mkdtemp())
    shutil.chown(folder, user)
    try:
        _run(folder, initdb, "-A", "trust", "-U", "tester")
        _run(folder, pg_ctl, *_options(folder), "start")
        try:
            yield folder
        finally:
            _run(folder, pg_ctl, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def _options(folder: Path) -> tuple[str, ...]:
    return ("-o", f"-F -c listen_addresses= -k {folder}", "-w")


def _run(folder: Path, tool: str, *words: str) -> None:
    with (folder / "output").open("ab") as log:
        command = (tool, "-D", folder / "data", *words)
        user = folder.owner()
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=log, stderr=log)


@pytest.fixture
def url(server: Path) -> Iterator[str]:
    """An empty database for each test."""
    import psycopg

    with psycopg.connect(f"host={server} user=tester dbname=postgres", autocommit=True) as admin:
        admin.execute("CREATE DATABASE fastrun")
        yield f"postgresql+psycopg://tester@/fastrun?host={server}"
        admin.execute("DROP DATABASE fastrun WITH (FORCE)")


def test_it_remembers_ranks_and_merges_as_sqlite_does(url: str) -> None:
    stored = [
        record(1),
        record(2, [5e-3], stage="final", heuristic=True),
        record(3, (), outcome=Outcome.CORRECTNESS, errors=None, reason="é ☃"),
        record(4, [1e-5], errors=Errors(float("inf"), 0.0, 0.0), workspace=2**62),
        record(5, [1e-6], baseline=True, schedule="naive()"),
    ]
    with Database(url) as database, Database("sqlite://") as twin:
        for r in [*stored, stored[0]]:
            database.add(r)
        database.add_environment(Environment.host(), "run")
        assert database.records() == stored
        assert twin.merge(database) == len(stored)
        assert (database.merge(twin), twin.merge(database)) == (0, 0)
        assert database.ranking(*KEY) == twin.ranking(*KEY) == [stored[1], stored[3], stored[0]]
        assert database.best(*KEY, Limits(error=1.0)) == stored[1]
        assert database.best_all(KEY[1]) == twin.best_all(KEY[1])
        assert database.environments() == twin.environments()
        assert database.info().outcomes == twin.info().outcomes


def test_eight_writers_create_and_merge_at_once(url: str) -> None:
    start = fork.Barrier(8)

    def write(name: str) -> None:
        start.wait()
        with Database(url) as database, Database("sqlite://") as common:
            for number in range(5):
                database.add(record(number, run=name))
                common.add(record(number))
            database.merge(common)

    writers = [fork.Process(target=write, args=(str(i),)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(600)
    assert [writer.exitcode for writer in writers] == [0] * 8
    with Database(url) as database:
        assert len(database.records()) == 8 * 5 + 5


def test_the_first_schema_is_migrated(url: str) -> None:
    import psycopg

    with Database(url) as database:
        database.add(record())
    later = sorted(set(TABLES.tables) - FIRST_TABLES)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in (
            *(f"ALTER TABLE records DROP COLUMN {name}" for name in LATER),
            *(f"DROP TABLE {name}" for name in later),
            "UPDATE meta SET value = '1'",
        ):
            connection.execute(statement)
    assert "schema 1" in refused(lambda: Database(url, read_only=True))
    with Database(url) as database:
        later = record(7, noise=0.5, processes=(0, 1, 1), rounds=(0, 0, 1), protocol=2)
        database.add(later)
        assert database.records() == [record(), later]
        assert database.info().schema == schema_version()


def test_refusals_are_one_line_without_the_password(url: str) -> None:
    with Database(url) as database:
        database.add(record())
    with Database(url, read_only=True) as reader:
        assert reader.records() == [record()]
        assert "is read-only" in refused(lambda: reader.add(record(7)))
    secret = url.replace("tester@", "tester:secret@")
    assert "secret" not in refused(lambda: Database(secret.replace("/fastrun?", "/missing?")))


def test_a_server_may_be_restarted_between_two_operations(server: Path) -> None:
    import psycopg

    with psycopg.connect(f"host={server} user=tester dbname=postgres", autocommit=True) as admin:
        admin.execute("CREATE DATABASE restarted")
    with Database(f"postgresql+psycopg://tester@/restarted?host={server}") as database:
        database.add(record(1))
        _run(server, _tool("pg_ctl"), *_options(server), "-m", "fast", "restart")
        database.add(record(2))
        assert database.records() == [record(1), record(2)]

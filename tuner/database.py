"""The memory: append-only records and environments, in an SQLite file or another SQL database.

Only this file and `tables` speak SQL. Values are plain columns and JSON: whatever a database
holds, and whoever wrote it, nothing read from it is executed.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack
from urllib.parse import quote

import sqlalchemy as sql
from sqlalchemy import exc

from kernels.codegen.jit import cache_root
from kernels.core.card import card
from kernels.core.problem import ConvProblem
from tuner import exchange
from tuner.environment import Environment
from tuner.network_record import NetworkRecord
from tuner.record import Record, RecordError
from tuner.tables import (
    ENVIRONMENTS,
    FIRST_TABLES,
    META,
    NETWORKS,
    RECORDS,
    TABLES,
    Limits,
    Match,
    NetworkMatch,
    Row,
    environment_row,
    equal,
    insert_new,
    migration,
    network_row,
    ranked,
    record_row,
    row_network,
    row_record,
    schema_version,
)
from tuner.units import plural

if TYPE_CHECKING:
    import pandas as pd

_CREATION_LOCK = 0x46617374
"""An arbitrary number on which clients of one PostgreSQL server agree."""

_ATTEMPTS = 8

_ADVICE = {
    "SQLITE_BUSY": "is locked by another process: wait for it to end or use another file",
    "SQLITE_READONLY": "is read-only: open it with the right to write or use another",
    "SQLITE_FULL": "has no room: free some disk space and go on; what was stored is safe",
    "SQLITE_IOERR": "cannot be written or read: the disk is full or failing; free some space, "
    "go on; what was stored is safe",
    "SQLITE_CORRUPT": "is damaged: move it away (`sqlite3 FILE .recover` saves what is readable)",
    "SQLITE_NOTADB": "is not a database: name another file",
    "SQLITE_CANTOPEN": "cannot be opened: check that it is a file you may read, in a folder "
    "that exists",
}


class DatabaseError(RuntimeError):
    """The database cannot do this. The message is one line and says what to do."""


@dataclass(frozen=True)
class Info:
    """What a database holds: counts, and the times of its oldest and newest record."""

    name: str
    schema: int
    read_only: bool
    records: int
    environments: int
    problems: int
    machines: int
    runs: int
    outcomes: dict[str, int]
    first: str | None
    last: str | None


class Database:
    """Records that outlive the process. Nothing is changed or deleted, only added.

    `url` is a path or an SQLAlchemy URL; the default is `fastrun.db` in the cache folder. A file
    that does not exist is made; one that may not be written is opened for reading. `timeout` is
    how many seconds to wait for another process's lock. Several processes may write at once, each
    through its own Database or one inherited by fork. A context manager; `close` is optional.

    Every method raises:
        DatabaseError: locked, read-only, damaged, of a newer schema, not ours, out of disk space.
    """

    def __init__(
        self,
        url: str | Path | None = None,
        read_only: bool = False,
        *,
        timeout: float = 30.0,
    ) -> None:
        self._pid = os.getpid()
        self._inherited: list[sql.Pool] = []
        address = _address(str(url or cache_root() / "fastrun.db"))
        path = _file(address)
        self.name = str(path) if path else address.render_as_string(hide_password=True)
        self.read_only = read_only or bool(path and not _writable(path))
        options: dict[str, Any] = {}
        if address.get_backend_name() == "sqlite":
            options["connect_args"] = {"timeout": timeout}
        if path:
            address = self._file_address(path)
        try:
            self._engine = sql.create_engine(address, **options)
        except ModuleNotFoundError as error:
            raise DatabaseError(
                f"database {self.name} needs the Python package {error.name}: install it"
            ) from error
        except exc.ArgumentError as error:
            raise DatabaseError(f"database {self.name}: {error}") from error
        if address.get_backend_name() == "sqlite":
            sql.event.listen(self._engine, "connect", self._on_connect)
            sql.event.listen(self._engine, "begin", self._on_begin)
        self._writer = self._engine.execution_options(writes=True)
        self._prepare()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file or server."""
        self._engine.dispose()

    def add(self, record: Record) -> None:
        """Store a record in a transaction of its own; one that is there already is left alone.

        Once this returns, no death of the process loses the record.
        """
        self._append([record_row(record)])

    def add_environment(self, environment: Environment, run: str = "") -> None:
        """Store where and when the records of `run` are taken."""
        self._append([], [environment_row(environment, run)])

    def add_network(self, record: NetworkRecord) -> None:
        """Store how a network's final ended."""
        self._append([], networks=[network_row(record)])

    def networks(self, **match: Unpack[NetworkMatch]) -> list[NetworkRecord]:
        """The records of networks' finals that match, the oldest first."""
        query = sql.select(NETWORKS).order_by(NETWORKS.c.time, NETWORKS.c.key)
        query = query.where(*(NETWORKS.c[name] == value for name, value in match.items()))
        with self._reading() as connection, self._checked():
            return [row_network(row) for row in connection.execute(query).mappings()]

    def records(self, **match: Unpack[Match]) -> list[Record]:
        """The records that match, in the order stored."""
        query = sql.select(RECORDS).where(*equal(match)).order_by(RECORDS.c.id)
        return self._fetched(query)

    def frame(self, parameters: bool = False, **match: Unpack[Match]) -> pd.DataFrame:
        """The records that match as a table: `tuner.frames.frame` says which columns it has."""
        from tuner.frames import frame

        return frame(self.records(**match), parameters)

    def environments(self, run: str | None = None) -> list[Environment]:
        """Where the records of a run, or of all runs, were taken; in the order stored."""
        return [environment for environment, of in self._environments() if run in (None, of)]

    def ranking(
        self,
        problem: str | ConvProblem,
        machine: str,
        threads: int,
        regime: str,
        **limits: Unpack[Limits],
    ) -> list[Record]:
        """The schedules that may be used, best first, each with the record that decides on it.

        Per schedule the record of the highest stage decides, the newest if there are several:
        measuring again replaces, also when the new value is worse or a failure. Records of a
        higher stage come first whatever their time, because a screened value was selected for
        being low; within a stage, the faster first. Code that crashed or computed wrongly once
        under the same toolchain is out for good.
        """
        query = ranked(limits, machine=machine, threads=threads, regime=regime, problem=problem)
        return self._fetched(query)

    def best(
        self,
        problem: str | ConvProblem,
        machine: str,
        threads: int,
        regime: str,
        **limits: Unpack[Limits],
    ) -> Record | None:
        """The first of `ranking`, or None."""
        query = ranked(limits, machine=machine, threads=threads, regime=regime, problem=problem)
        return next(iter(self._fetched(query.limit(1))), None)

    def best_all(
        self, machine: str, threads: int, regime: str, **limits: Unpack[Limits]
    ) -> dict[str, Record]:
        """The best record of every problem that has one, by problem text, in one query."""
        query = ranked(limits, machine=machine, threads=threads, regime=regime)
        with self._reading() as connection, self._checked():
            rows = connection.execute(query).mappings()
            groups = groupby(rows, key=lambda row: str(row["problem"]))
            return {problem: row_record(next(group)) for problem, group in groups}

    def merge(self, other: Database | str | Path) -> int:
        """Add what `other` holds and this one does not; return the number of new records.

        All or nothing, and doing it twice changes nothing. Everything is checked like a file from
        a stranger, so a record that is none makes the merge fail.
        """
        if not isinstance(other, Database):
            with Database(other, read_only=True) as opened:
                return self.merge(opened)
        environments = [environment_row(e, run) for e, run in other._environments()]
        networks = [network_row(record) for record in other.networks()]
        rows = [record_row(record) for record in other.records()]
        return self._append(rows, environments, networks)

    def export(self, path: str | Path, form: str, **match: Unpack[Match]) -> int:
        """Write the records that match as `t4`, `csv` or `jsonl`; return how many.

        A path that ends in `.gz` is compressed. Readers of T4 expect one search space per file:
        name a problem, machine, thread count and regime for them.
        """
        records = self.records(**match)
        machines = {record.machine for record in records}
        environments = [e for e in self.environments() if e.machine in machines]
        try:
            exchange.write(Path(path), form, records, environments)
        except OSError as error:
            raise DatabaseError(f"cannot write {path}: {error.strerror}") from error
        except ValueError as error:
            raise DatabaseError(str(error)) from error
        return len(records)

    def import_file(self, path: str | Path) -> int:
        """Add the records of a JSON lines or T4 file, all or none; return how many are new."""
        try:
            rows = [record_row(record) for record in exchange.read(Path(path))]
        except RecordError as error:
            raise DatabaseError(str(error)) from error
        except (OSError, EOFError, zlib.error) as error:
            raise DatabaseError(f"cannot read {path}: {error}") from error
        return self._append(rows)

    def info(self) -> Info:
        """What is stored."""
        column = RECORDS.c
        totals = sql.select(
            sql.func.count(),
            sql.func.count(sql.distinct(column.problem)),
            sql.func.count(sql.distinct(column.machine)),
            sql.func.count(sql.distinct(sql.func.nullif(column.run, ""))),
            sql.func.min(column.time),
            sql.func.max(column.time),
        ).select_from(RECORDS)
        outcomes = sql.select(column.outcome, sql.func.count()).group_by(column.outcome)
        manifests = sql.select(sql.func.count()).select_from(ENVIRONMENTS)
        with self._reading() as connection:
            records, problems, machines, runs, first, last = connection.execute(totals).one()
            return Info(
                name=self.name,
                schema=schema_version(),
                read_only=self.read_only,
                records=records,
                environments=connection.execute(manifests).scalar_one(),
                problems=problems,
                machines=machines,
                runs=runs,
                outcomes={row[0]: row[1] for row in connection.execute(outcomes)},
                first=first,
                last=last,
            )

    def _repr_html_(self) -> str:
        info = self.info()
        facts = {
            "records": f"{info.records}, of {plural(info.problems, 'problem')} on "
            f"{plural(info.machines, 'machine')}, from {plural(info.runs, 'run')}",
            "outcomes": ", ".join(f"{count} {name}" for name, count in info.outcomes.items()),
            "measured": f"{info.first[:16]} to {info.last[:16]} UTC"
            if info.first and info.last
            else "",
        }
        return card(info.name, facts)

    def _on_connect(self, connection: sqlite3.Connection, _: object) -> None:
        # SQLAlchemy's begin event opens transactions, not the driver.
        connection.isolation_level = None
        connection.execute("PRAGMA trusted_schema = OFF")
        # With a write-ahead log a commit reaches the kernel, which a killed process does not take
        # along; only a loss of power may cost the last commits, and never the file.
        connection.execute("PRAGMA synchronous = NORMAL")

    @staticmethod
    def _on_begin(connection: sql.Connection) -> None:
        # A transaction that reads first and writes later could not wait for another's lock.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def _file_address(self, path: Path) -> sql.URL:
        if not _may_be_sqlite(path):
            raise DatabaseError(f"database {self.name} {_ADVICE['SQLITE_NOTADB']}")
        query = {"uri": "true", "mode": "ro" if self.read_only else "rwc"}
        if self.read_only:
            if not path.exists():
                raise DatabaseError(f"no database at {path}: check the name, or tune first")
            # Without a log there is no writer, and in this folder none of ours can appear.
            if not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
                query["immutable"] = "1"
        else:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseError(
                    f"cannot make the folder {path.parent}: {error.strerror}; name another file "
                    "(--db), or another folder for all files (FASTRUN_CACHE)"
                ) from error
        return sql.URL.create("sqlite", database=f"file:{quote(str(path))}", query=query)

    def _prepare(self) -> None:
        """Check that this is ours; make the tables where there are none, migrate older ones."""
        with self._reading() as connection:
            version = self._stored_version(connection)
        if self.read_only and version != schema_version():
            state = "is empty" if version is None else f"has schema {version}, which is older"
            raise DatabaseError(
                f"database {self.name} {state}: what writes to it, such as `fastrun tune --db`, "
                "brings it up to date"
            )
        if not self.read_only and self._engine.name == "sqlite":
            # Only now: a file that is not ours is left as it is.
            with self._explained(), closing(self._engine.raw_connection()) as raw:
                raw.cursor().execute("PRAGMA journal_mode = WAL")
        if version != schema_version():
            self._bring_up_to_date()

    def _bring_up_to_date(self) -> None:
        with self._writing() as connection:
            if self._engine.name == "postgresql":
                # SQLite's writers exclude each other anyway.
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_CREATION_LOCK})")
            # Another process may have done it since we looked.
            version = self._stored_version(connection)
            if version is None:
                TABLES.create_all(connection)
                connection.execute(sql.insert(META), {"name": "schema", "value": ""})
            else:
                for statement in migration(version):
                    connection.execute(sql.text(statement))
            value = {"value": str(schema_version())}
            connection.execute(sql.update(META).where(META.c.name == "schema"), value)

    def _stored_version(self, connection: sql.Connection) -> int | None:
        """The schema found, or None in an empty database."""
        tables = set(sql.inspect(connection).get_table_names())
        if not tables:
            return None
        if not tables >= FIRST_TABLES:
            raise DatabaseError(f"database {self.name} holds other tables: use one of its own")
        stored = sql.select(META.c.value).where(META.c.name == "schema")
        version = str(connection.execute(stored).scalar_one_or_none())
        if not re.fullmatch("[1-9][0-9]{0,5}", version):
            raise DatabaseError(f"database {self.name} names no schema: use another one")
        if int(version) > schema_version():
            raise DatabaseError(
                f"database {self.name} has schema {version}, this version knows up to "
                f"{schema_version()}: update fastrun-toolkit or use another database"
            )
        return int(version)

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        with self._explained(), self._own(self._engine).connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sql.Connection]:
        if self.read_only:
            raise DatabaseError(f"database {self.name} {_ADVICE['SQLITE_READONLY']}")
        with self._explained(), self._own(self._writer).begin() as connection:
            yield connection

    def _own(self, engine: sql.Engine) -> sql.Engine:
        """The engine, without the connections of a parent process: those are not ours to use."""
        if os.getpid() != self._pid:
            # Kept, so that nothing ever closes them here: that would touch the parent's locks.
            self._inherited.append(self._engine.pool)
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        return engine

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except exc.IntegrityError:
            raise
        except exc.DBAPIError as error:
            name = getattr(error.orig, "sqlite_errorname", "")
            advice = (text for prefix, text in _ADVICE.items() if name.startswith(prefix))
            first = f"cannot be used: {str(error.orig).splitlines()[0]}"
            raise DatabaseError(f"database {self.name} {next(advice, first)}") from error

    def _append(
        self,
        records: Sequence[Row],
        environments: Sequence[Row] = (),
        networks: Sequence[Row] = (),
    ) -> int:
        """Store the rows whose key is new in one transaction; return the number of records."""
        for _ in range(_ATTEMPTS):
            try:
                with self._writing() as connection:
                    insert_new(connection, ENVIRONMENTS, environments)
                    insert_new(connection, NETWORKS, networks)
                    return insert_new(connection, RECORDS, records)
            except exc.IntegrityError as error:
                # Where writers do not exclude each other, another has just added one of these
                # rows. It is there now, so the next turn leaves it out.
                refusal = error
        raise DatabaseError(f"database {self.name} refuses the record: {refusal.orig}")

    def _environments(self) -> list[tuple[Environment, str]]:
        query = sql.select(ENVIRONMENTS.c.body, ENVIRONMENTS.c.run).order_by(ENVIRONMENTS.c.id)
        with self._reading() as connection, self._checked():
            rows = connection.execute(query)
            return [(Environment.from_dict(json.loads(body)), str(run)) for body, run in rows]

    def _fetched(self, query: sql.Select[Any]) -> list[Record]:
        with self._reading() as connection, self._checked():
            return [row_record(row) for row in connection.execute(query).mappings()]

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, RecursionError) as error:
            raise DatabaseError(
                f"database {self.name} holds something that is no record ({error}): "
                "it was changed by hand or is damaged"
            ) from error


def _address(text: str) -> sql.URL:
    try:
        return sql.make_url(text) if "://" in text else sql.URL.create("sqlite", database=text)
    except exc.ArgumentError as error:
        raise DatabaseError(f"not a database address: {text!r}; use a path or a URL") from error


def _file(address: sql.URL) -> Path | None:
    """The file of an SQLite address, unless it is in memory."""
    if address.get_backend_name() != "sqlite" or address.database in (None, "", ":memory:"):
        return None
    return Path(str(address.database)).expanduser().absolute()


def _may_be_sqlite(path: Path) -> bool:
    """False for a file that starts otherwise: SQLite would take a short one for an empty one."""
    magic = b"SQLite format 3\0"
    if not path.is_file() or not os.access(path, os.R_OK):
        return True
    with path.open("rb") as file:
        return file.read(len(magic)) in (b"", magic)


def _writable(path: Path) -> bool:
    """Whether a file and, for its log, its folder may be written; True where there is none."""
    return not path.exists() or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))

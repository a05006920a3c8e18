"""The database: append-only records and environments, in an SQLite file or another SQL database.

`connection` opens it, `schema` has its tables. Values are plain columns and JSON. Nothing that is
read from a database is executed, whatever it holds.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import sqlalchemy as sql
from sqlalchemy import exc

from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.notebook import card
from fastrun.kernels.native.cache import cache_root
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.network_record import NetworkRecord
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import (
    NO_LIMITS,
    Conditions,
    Limits,
    Outcome,
    Record,
    RecordError,
    is_utc,
)
from fastrun.tuner.records.units import plural
from fastrun.tuner.store import exchange
from fastrun.tuner.store.connection import DatabaseError, Store
from fastrun.tuner.store.schema import (
    ENVIRONMENTS,
    NETWORKS,
    RECORDS,
    RUNS,
    Match,
    NetworkMatch,
    Row,
    check_time,
    environment_row,
    equal,
    insert_new,
    network_row,
    ranked,
    record_row,
    row_environment,
    row_network,
    row_record,
    row_run,
    run_row,
    schema_version,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Database", "DatabaseError", "Info"]

_ATTEMPTS = 8


@dataclass(frozen=True)
class Info:
    """The contents of a database in numbers, and the times of its oldest and newest record."""

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
    """Stored records. They are only added, never changed or deleted.

    `url` is a path or an SQLAlchemy URL; the default is `fastrun.db` in the cache folder. A missing
    file is created. A file that may not be written is opened for reading. `timeout` is the time in
    seconds to wait for a lock of another process. Several processes may write at once, each through
    its own Database or one inherited by fork. A context manager; `close` is optional.

    Every method raises:
        DatabaseError: the database is locked, read-only, damaged, of a newer schema or another
            program, or the disk is full.
    """

    def __init__(
        self,
        url: str | Path | None = None,
        read_only: bool = False,
        *,
        timeout: float = 30.0,
    ) -> None:
        self._store = Store(url, read_only, timeout)
        self.name, self.read_only = self._store.name, self._store.read_only

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the file or server."""
        self._store.close()

    def add(self, record: Record) -> None:
        """Store a record in its own transaction, unless it is there already.

        When this returns, the record survives the death of the process.
        """
        self._append([record_row(record)])

    def add_environment(self, environment: Environment, run: str = "") -> None:
        """Store the environment in which the records of `run` are taken."""
        self._append([], [environment_row(environment, run)])

    def add_run(self, run: Run) -> None:
        """Store how the records of a run are made."""
        self._append([], runs=[run_row(run)])

    def add_network(self, record: NetworkRecord) -> None:
        """Store the outcome of a network's final."""
        self._append([], networks=[network_row(record)])

    def runs(self, name: str | None = None) -> list[Run]:
        """All runs, or those of this name, the oldest first."""
        query = sql.select(RUNS)
        query = query if name is None else query.where(RUNS.c.name == name)
        with self._store.reading() as connection, self._checked():
            found = map(row_run, connection.execute(query).mappings())
            return sorted(found, key=lambda run: (run.time, run.name))

    def networks(self, **match: Unpack[NetworkMatch]) -> list[NetworkRecord]:
        """The records of networks' finals that match, the oldest first."""
        query = sql.select(NETWORKS).order_by(NETWORKS.c.time, NETWORKS.c.key)
        query = query.where(*(NETWORKS.c[name] == value for name, value in match.items()))
        with self._store.reading() as connection, self._checked():
            return [row_network(row) for row in connection.execute(query).mappings()]

    def records(self, **match: Unpack[Match]) -> list[Record]:
        """The records that match, in the order stored."""
        query = sql.select(RECORDS).where(*equal(match)).order_by(RECORDS.c.id)
        return self._fetched(query)

    def frame(self, parameters: bool = False, **match: Unpack[Match]) -> pd.DataFrame:
        """The records that match as a table, with the columns of `tuner.store.frame.frame`."""
        from fastrun.tuner.store.frame import frame

        return frame(self.records(**match), parameters)

    def environments(self, run: str | None = None) -> list[Environment]:
        """The environments of all runs, or of one, in the order stored."""
        return [environment for environment, of in self._environments() if run in (None, of)]

    def ranking(
        self,
        problem: str | Problem,
        conditions: Conditions,
        limits: Limits = NO_LIMITS,
        *,
        include_baselines: bool = False,
    ) -> list[Record]:
        """The decisive records of the schedules that may be used, the best first.

        The record of the highest stage decides on a schedule, and the newest of several. So a new
        measurement replaces the old one, also if it is worse or a failure. Records of a higher
        stage come first, whatever their times, because screened times were selected for being low.
        Within a stage the faster comes first. Left out are records of another `PROTOCOL` than
        today's, whose times cannot be compared; code that once crashed or computed wrongly under
        the same toolchain; and baselines, unless `include_baselines` is true.
        """
        query = ranked(conditions, problem, include_baselines)
        return [record for record in self._fetched(query) if limits.allow(record)]

    def best(
        self, problem: str | Problem, conditions: Conditions, limits: Limits = NO_LIMITS
    ) -> Record | None:
        """The first of `ranking`, or None."""
        return next(iter(self.ranking(problem, conditions, limits)), None)

    def best_all(self, conditions: Conditions, limits: Limits = NO_LIMITS) -> dict[str, Record]:
        """The best record of every problem that has one, by problem text, in one query."""
        query = ranked(conditions)
        with self._store.reading() as connection, self._checked():
            rows = connection.execute(query).mappings().all()
            for row in rows:
                check_time(row)
            found: dict[str, Record] = {}
            for row in rows:
                if row["problem"] not in found and limits.allow(record := row_record(row)):
                    found[record.problem] = record
            return found

    def merge(self, other: Database | str | Path) -> int:
        """Add the contents of `other` that are missing here; return the number of new records.

        Either all is added or nothing. A second merge changes nothing. All contents are checked,
        and the merge fails if one is not valid.
        """
        if not isinstance(other, Database):
            with Database(other, read_only=True) as opened:
                return self.merge(opened)
        environments = [environment_row(e, run) for e, run in other._environments()]
        networks = [network_row(record) for record in other.networks()]
        runs = [run_row(run) for run in other.runs()]
        rows = [record_row(record) for record in other.records()]
        return self._append(rows, environments, networks, runs)

    def export(self, path: str | Path, form: str, **match: Unpack[Match]) -> int:
        """Write the records that match as `t4`, `csv` or `jsonl`; return their number.

        A file whose name ends in `.gz` is compressed. Readers of T4 expect one search space per
        file: give a problem, machine, number of threads and regime for them.
        """
        records = self.records(**match)
        machines = {record.machine for record in records}
        environments = [e for e in self.environments() if e.machine in machines]
        if self._store.holds(Path(path)):
            raise DatabaseError(f"{path} is the database itself: name another file")
        names = {record.run for record in records}
        runs = [run for run in self.runs() if run.name in names]
        try:
            exchange.write(Path(path), form, records, environments, runs)
        except OSError as error:
            raise DatabaseError(f"cannot write {path}: {error.strerror}") from error
        except ValueError as error:
            raise DatabaseError(str(error)) from error
        return len(records)

    def import_file(self, path: str | Path) -> int:
        """Add all records of a JSON lines or T4 file, or none; return the number of new ones."""
        if self._store.holds(Path(path)):
            raise DatabaseError(f"{path} is the database itself: name another file")
        try:
            records, runs = exchange.read(Path(path))
        except RecordError as error:
            raise DatabaseError(str(error)) from error
        except (OSError, EOFError, zlib.error) as error:
            raise DatabaseError(f"cannot read {path}: {error}") from error
        return self._append([*map(record_row, records)], runs=[*map(run_row, runs)])

    def info(self) -> Info:
        """The contents in numbers."""
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
        with self._store.reading() as connection, self._checked():
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
                outcomes={Outcome(row[0]): row[1] for row in connection.execute(outcomes)},
                first=_time(first),
                last=_time(last),
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

    def _append(
        self,
        records: Sequence[Row],
        environments: Sequence[Row] = (),
        networks: Sequence[Row] = (),
        runs: Sequence[Row] = (),
    ) -> int:
        """Store the rows whose key is new in one transaction; return the number of records."""
        for _ in range(_ATTEMPTS):
            try:
                with self._store.writing() as connection:
                    insert_new(connection, ENVIRONMENTS, environments)
                    insert_new(connection, NETWORKS, networks)
                    insert_new(connection, RUNS, runs)
                    return insert_new(connection, RECORDS, records)
            except RecordError as error:
                raise DatabaseError(f"database {self.name} cannot be used: {error}") from error
            except exc.IntegrityError as error:
                # Where writers do not exclude each other, another one has just added one of these
                # rows. The next attempt leaves it out.
                refusal = error
        raise DatabaseError(f"database {self.name} refuses the record: {refusal.orig}")

    def _environments(self) -> list[tuple[Environment, str]]:
        query = sql.select(ENVIRONMENTS).order_by(ENVIRONMENTS.c.id)
        with self._store.reading() as connection, self._checked():
            return [row_environment(row) for row in connection.execute(query).mappings()]

    def _fetched(self, query: sql.Select[Any]) -> list[Record]:
        with self._store.reading() as connection, self._checked():
            return [row_record(row) for row in connection.execute(query).mappings()]

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, RecursionError) as error:
            raise DatabaseError(
                f"database {self.name} holds an invalid record ({error}): "
                "it was changed by hand or is damaged"
            ) from error


def _time(text: object) -> str | None:
    if not (text is None or (isinstance(text, str) and is_utc(text))):
        raise RecordError(f"{text!r:.60} is no time")
    return text


def existing(url: str | None) -> Database:
    """The database to read from; an empty one if it is the default and nothing was tuned yet."""
    usual = cache_root() / "fastrun.db"
    if url is None and not os.path.exists(usual):
        nothing = Database("sqlite://")
        nothing.name = f"{usual} (not there yet)"
        return nothing
    # The default database is migrated from an older schema. Any other is only read.
    return Database(url, read_only=url is not None)

"""Records in SQL: the tables, their versions, and the query that ranks schedules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import sqlalchemy as sql

from fastrun.kernels.core.attention import Problem
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.network_record import NetworkRecord
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import (
    LATER,
    PROTOCOL,
    Conditions,
    Outcome,
    Record,
    RecordError,
    Stage,
    by_process,
    content_key,
    typical_of,
)

TABLES = sql.MetaData()

META = sql.Table(
    "meta",
    TABLES,
    sql.Column("name", sql.String(32), primary_key=True),
    sql.Column("value", sql.Text, nullable=False),
)

ENVIRONMENTS = sql.Table(
    "environments",
    TABLES,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("key", sql.String(32), unique=True, nullable=False),
    sql.Column("machine", sql.Text, nullable=False),
    sql.Column("run", sql.Text, nullable=False),
    sql.Column("body", sql.Text, nullable=False),
)

RECORDS = sql.Table(
    "records",
    TABLES,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("key", sql.String(32), unique=True, nullable=False),
    *(
        sql.Column(name, sql.Text, nullable=False)
        for name in (
            *("problem", "algorithm", "schedule", "machine", "regime", "toolchain", "ir_hash"),
            *("outcome", "reason", "stage", "run", "time"),
        )
    ),
    sql.Column("threads", sql.Integer, nullable=False),
    sql.Column("baseline", sql.Boolean, nullable=False),
    sql.Column("heuristic", sql.Boolean, nullable=False),
    sql.Column("workspace", sql.BigInteger, nullable=False),
    sql.Column("seconds_per_call", sql.Double),
    sql.Column("error_rms", sql.Double),
    sql.Column("noise", sql.Double),
    sql.Column("errors", sql.Text, nullable=False),
    sql.Column("samples", sql.Text, nullable=False),
    sql.Column("seconds", sql.Text, nullable=False),
    sql.Column("processes", sql.Text, nullable=False, server_default="[]"),
    sql.Column("rounds", sql.Text, nullable=False, server_default="[]"),
    sql.Column("protocol", sql.Integer, nullable=False, server_default="1"),
    sql.Column("clocks", sql.Text, nullable=False, server_default="[]"),
    sql.Column("temperatures", sql.Text, nullable=False, server_default="[]"),
    sql.Index("records_asked_for", "problem", "machine", "threads", "regime"),
    sql.Index("records_of_run", "run"),
    sql.Index("records_of_code", "ir_hash", "machine", "toolchain"),
)

NETWORKS = sql.Table(
    "networks",
    TABLES,
    sql.Column("key", sql.String(32), primary_key=True),
    *(
        sql.Column(name, sql.Text, nullable=False)
        for name in (
            *("network", "graph", "machine", "limits", "toolchain", "ir_hash", "kept", "plan"),
            *("run", "time"),
        )
    ),
    sql.Column("threads", sql.Integer, nullable=False),
    sql.Column("seconds_per_run", sql.Double, nullable=False),
    sql.Column("samples", sql.Text, nullable=False),
)

RUNS = sql.Table(
    "runs",
    TABLES,
    sql.Column("key", sql.String(32), primary_key=True),
    sql.Column("name", sql.Text, nullable=False),
    sql.Column("body", sql.Text, nullable=False),
)

FIRST_TABLES = {META.name, ENVIRONMENTS.name, RECORDS.name}
"""The names of the tables that a database of any schema has."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    ("ALTER TABLE records ADD COLUMN noise DOUBLE PRECISION",),
    (
        'CREATE TABLE networks ("key" VARCHAR(32) NOT NULL PRIMARY KEY, network TEXT NOT NULL, '
        "graph TEXT NOT NULL, machine TEXT NOT NULL, limits TEXT NOT NULL, "
        "toolchain TEXT NOT NULL, ir_hash TEXT NOT NULL, kept TEXT NOT NULL, plan TEXT NOT NULL, "
        "run TEXT NOT NULL, time TEXT NOT NULL, threads INTEGER NOT NULL, "
        "seconds_per_run DOUBLE PRECISION NOT NULL, samples TEXT NOT NULL)",
    ),
    (
        "ALTER TABLE records ADD COLUMN processes TEXT DEFAULT '[]' NOT NULL",
        "ALTER TABLE records ADD COLUMN rounds TEXT DEFAULT '[]' NOT NULL",
        "ALTER TABLE records ADD COLUMN protocol INTEGER DEFAULT 1 NOT NULL",
        'CREATE TABLE runs ("key" VARCHAR(32) NOT NULL PRIMARY KEY, name TEXT NOT NULL, '
        "body TEXT NOT NULL)",
    ),
    (
        "ALTER TABLE records ADD COLUMN clocks TEXT DEFAULT '[]' NOT NULL",
        "ALTER TABLE records ADD COLUMN temperatures TEXT DEFAULT '[]' NOT NULL",
    ),
)
"""MIGRATIONS[i] holds the SQL statements that turn schema i + 1 into i + 2."""

Row = dict[str, Any]

_JSON = ("errors", "samples", "seconds", "processes", "rounds", "clocks", "temperatures")


class Match(TypedDict, total=False):
    """Columns and the values that a record must have in them."""

    problem: str | Problem
    algorithm: str
    schedule: str
    machine: str
    threads: int
    regime: str
    toolchain: str
    ir_hash: str
    outcome: str
    stage: str
    run: str
    protocol: int


class NetworkMatch(TypedDict, total=False):
    """Columns and the values that a network's record must have in them."""

    network: str
    graph: str
    machine: str
    threads: int
    limits: str
    run: str


def schema_version() -> int:
    """The schema that this version writes. Older ones are migrated, newer ones refused."""
    return 1 + len(MIGRATIONS)


def migration(version: int) -> Iterator[str]:
    """The SQL statements that lead from `version` to `schema_version()`."""
    for step in MIGRATIONS[version - 1 :]:
        yield from step


def record_row(record: Record) -> Row:
    """A record as a row of `RECORDS`; values that serve queries are repeated in own columns."""
    # Every row names all columns, because the first row determines those of an insertion.
    data = LATER | record.to_dict()
    text = {name: json.dumps(data[name], allow_nan=False) for name in _JSON}
    return data | text | _derived(record)


def _derived(record: Record) -> Row:
    return {
        "key": record.key,
        "algorithm": record.algorithm,
        "seconds_per_call": record.seconds_per_call if record.samples else None,
        "error_rms": record.errors.rms if record.errors else None,
    }


def row_record(row: sql.RowMapping) -> Record:
    """The record of a row of `RECORDS`. Everything is checked, because the file may be foreign.

    Raises:
        ValueError, TypeError, RecursionError: the row holds no record.
    """
    parsed = {name: json.loads(row[name]) for name in _JSON}
    record = Record.from_dict({name: row[name] for name in Record.__dataclass_fields__} | parsed)
    _check_derived(row, _derived(record))
    return record


def environment_row(environment: Environment, run: str) -> Row:
    """The environment of a run as a row of `ENVIRONMENTS`."""
    body = environment.to_dict()
    return {
        "key": content_key({"run": run, **body}),
        "machine": environment.machine,
        "run": run,
        "body": json.dumps(body, allow_nan=False),
    }


def row_environment(row: sql.RowMapping) -> tuple[Environment, str]:
    """The environment of a row of `ENVIRONMENTS` and the name of its run, checked.

    Raises:
        ValueError, TypeError, RecursionError: the row holds no environment.
    """
    body = json.loads(row["body"])
    environment = Environment.from_dict(body)
    made = {"key": content_key({"run": row["run"], **body}), "machine": environment.machine}
    _check_derived(row, made)
    return environment, row["run"]


def run_row(run: Run) -> Row:
    """A run as a row of `RUNS`."""
    body = run.to_dict()
    return {"key": content_key(body), "name": run.name, "body": json.dumps(body, allow_nan=False)}


def row_run(row: sql.RowMapping) -> Run:
    """The run of a row of `RUNS`, checked.

    Raises:
        ValueError, TypeError, RecursionError: the row holds no run.
    """
    run = Run.from_dict(json.loads(row["body"]))
    _check_derived(row, {"key": content_key(run.to_dict()), "name": run.name})
    return run


def check_time(row: sql.RowMapping) -> None:
    """Check that the time of a row of `RECORDS` is that of its samples.

    Raises:
        ValueError, TypeError, RecursionError: it is not.
    """
    groups = by_process(json.loads(row["samples"]), json.loads(row["processes"]))
    _check_derived(row, {"seconds_per_call": typical_of(groups)})


def _check_derived(row: sql.RowMapping, made: Row) -> None:
    """Check that the columns which serve queries agree with the raw data."""
    for name, value in made.items():
        if row[name] != value:
            raise RecordError(
                f"{name!r} is {row[name]!r:.60}, by the rest of its row {value!r:.60}"
            )


def network_row(record: NetworkRecord) -> Row:
    """A network's record as a row of `NETWORKS`."""
    data = record.to_dict()
    return data | {
        "key": record.key,
        "seconds_per_run": record.seconds(record.kept),
        "samples": json.dumps(data["samples"], allow_nan=False),
    }


def row_network(row: sql.RowMapping) -> NetworkRecord:
    """The record of a row of `NETWORKS`. Everything is checked, as for `row_record`.

    Raises:
        ValueError, TypeError, RecursionError: the row holds no record.
    """
    data = {name: row[name] for name in NetworkRecord.__dataclass_fields__}
    samples = json.loads(row["samples"])
    if not isinstance(samples, dict):
        raise RecordError("network record field 'samples' is not an object")
    record = NetworkRecord(**data | {"samples": {k: tuple(v) for k, v in samples.items()}})
    made = {"key": record.key, "seconds_per_run": record.seconds(record.kept)}
    _check_derived(row, made)
    return record


def insert_new(connection: sql.Connection, table: sql.Table, rows: Sequence[Row]) -> int:
    """Insert the rows whose key the table does not hold yet; return their number.

    Raises:
        RecordError: they are not there afterwards, for example because of a trigger.
    """
    count = 0
    for start in range(0, len(rows), 500):
        fresh = {row["key"]: row for row in rows[start : start + 500]}
        known = connection.execute(sql.select(table.c.key).where(table.c.key.in_(fresh)))
        for key in known.scalars().all():
            del fresh[key]
        if fresh:
            connection.execute(sql.insert(table), list(fresh.values()))
            kept = sql.select(sql.func.count()).where(table.c.key.in_(fresh))
            if connection.execute(kept).scalar_one() != len(fresh):
                raise RecordError("something in it throws away what is written")
        count += len(fresh)
    return count


def equal(match: Match) -> Iterator[sql.ColumnElement[bool]]:
    """The conditions that choose matching records."""
    for name, value in match.items():
        yield RECORDS.c[name] == (str(value) if name == "problem" else value)


def ranked(
    conditions: Conditions,
    problem: str | Problem | None = None,
    include_baselines: bool = False,
) -> sql.Select[Any]:
    """The query behind `Database.ranking`, for all problems if none is given.

    Records of another protocol take no part, because their times cannot be compared. The caller
    applies limits of error and workspace to the records: columns that only serve queries may be
    false.
    """
    ranks = {str(stage): rank for rank, stage in enumerate(Stage)}
    stage = sql.case(ranks, value=RECORDS.c.stage)
    turn = sql.func.row_number().over(
        partition_by=(RECORDS.c.problem, RECORDS.c.schedule),
        order_by=(stage.desc(), RECORDS.c.time.desc(), RECORDS.c.id.desc()),
    )
    values = {**asdict(conditions), "protocol": PROTOCOL}
    if problem is not None:
        values["problem"] = str(problem)
    comparable = [RECORDS.c[name] == value for name, value in values.items()]
    # Only narrow rows go through the window. The samples are fetched for the rows that are left.
    narrow = sql.select(RECORDS.c.id, stage.label("rank"), turn.label("turn"))
    decisive = narrow.where(*comparable).subquery()
    bad = RECORDS.alias()
    distrusted = sql.exists().where(
        *(bad.c[name] == RECORDS.c[name] for name in ("ir_hash", "machine", "toolchain")),
        bad.c.outcome.in_([Outcome.RUNTIME, Outcome.CORRECTNESS]),
    )
    accepted = [
        decisive.c.turn == 1,
        RECORDS.c.outcome == Outcome.CORRECT,
        RECORDS.c.samples != "[]",
        ~distrusted,
    ]
    if not include_baselines:
        accepted.append(~RECORDS.c.baseline)
    order = (RECORDS.c.problem, decisive.c.rank.desc(), RECORDS.c.seconds_per_call)
    return (
        sql.select(RECORDS)
        .join(decisive, decisive.c.id == RECORDS.c.id)
        .where(*accepted)
        .order_by(*order, RECORDS.c.schedule)
    )

"""`fastrun db`: look into the database, merge, export, import."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fastrun.tuner.records.units import plural
from fastrun.tuner.store.database import Database, DatabaseError, existing


def info_database(arguments: Namespace) -> int:
    """Say what the database holds."""
    with existing(arguments.db) as database:
        info = database.info()
    state = ", read-only" if info.read_only else ""
    print(f"{info.name} (schema {info.schema}{state})")
    print(
        f"  {plural(info.records, 'record')} of {plural(info.problems, 'problem')} on "
        f"{plural(info.machines, 'machine')}, from {plural(info.runs, 'run')}"
    )
    for outcome, count in sorted(info.outcomes.items()):
        print(f"  {count:>8} {outcome}")
    if info.first and info.last:
        print(f"  from {info.first[:16]} to {info.last[:16]} UTC")
    return 0


def merge_database(arguments: Namespace) -> int:
    """Add another database's records."""
    with Database(arguments.db) as database:
        count = database.merge(arguments.path)
        print(f"{plural(count, 'new record')} in {database.name}")
    return 0


def export_database(arguments: Namespace) -> int:
    """Write the records to a file whose name says the format."""
    suffix = Path(arguments.path.removesuffix(".gz")).suffix
    forms = {".json": "t4", ".csv": "csv", ".jsonl": "jsonl"}
    if suffix not in forms:
        raise DatabaseError(
            f"no format for {arguments.path}: end its name in .json (T4), .csv or .jsonl, or "
            "one of these and .gz"
        )
    with existing(arguments.db) as database:
        count = database.export(arguments.path, forms[suffix])
    print(f"{plural(count, 'record')} in {arguments.path}")
    return 0


def import_database(arguments: Namespace) -> int:
    """Add the records of a JSON lines or T4 file."""
    with Database(arguments.db) as database:
        count = database.import_file(arguments.path)
        print(f"{plural(count, 'new record')} in {database.name}")
    return 0

"""Look into the database, merge, export, import."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from fastrun.options import database as database_option
from fastrun.tuner.records.units import plural


def options(parser: ArgumentParser) -> None:

    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, action, path, help in (
        ("info", run, "", "print what is stored"),
        ("merge", merge_database, "DATABASE", "add the records of another database"),
        ("export", export_database, "FILE", "write records to a .json (T4), .csv or .jsonl file"),
        ("import", import_database, "FILE", "add the records of a .jsonl or .json (T4) file"),
    ):
        added = actions.add_parser(name, help=help, description=help)
        added.set_defaults(command=action)
        if path:
            added.add_argument("path", metavar=path)
        database_option(added)


def run(arguments: Namespace) -> int:
    """Print what the database holds."""
    from fastrun.tuner.store.database import existing

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
    from fastrun.tuner.store.database import Database

    with Database(arguments.db) as database:
        count = database.merge(arguments.path)
        print(f"{plural(count, 'new record')} in {database.name}")
    return 0


def export_database(arguments: Namespace) -> int:
    """Write the records to a file; the end of its name chooses the format."""
    from fastrun.tuner.store.database import DatabaseError, existing

    suffix = Path(arguments.path.removesuffix(".gz")).suffix
    forms = {".json": "t4", ".csv": "csv", ".jsonl": "jsonl"}
    if suffix not in forms:
        raise DatabaseError(
            f"no format for {arguments.path}: its name must end in .json (T4), .csv or .jsonl, "
            "or one of these and .gz"
        )
    with existing(arguments.db) as database:
        count = database.export(arguments.path, forms[suffix])
    print(f"{plural(count, 'record')} in {arguments.path}")
    return 0


def import_database(arguments: Namespace) -> int:
    """Add the records of a JSON lines or T4 file."""
    from fastrun.tuner.store.database import Database

    with Database(arguments.db) as database:
        count = database.import_file(arguments.path)
        print(f"{plural(count, 'new record')} in {database.name}")
    return 0

"""`fastrun report`: a page, figures and tables about what was measured."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from fastrun.tuner.machine.probe import probe
from fastrun.tuner.networks.targets import Target, read_target
from fastrun.tuner.store.database import Database, existing


def run(arguments: Namespace) -> int:
    """Write the report."""
    targets = [read_target(text) for text in arguments.targets]
    with existing(arguments.db) as database:
        return write(targets, database, arguments, arguments.out)


def write(
    targets: Sequence[Target], database: Database, arguments: Namespace, out: Path | None
) -> int:
    """Write the report of the targets, and say where it is.

    Raises:
        OSError: the folder cannot be written.
    """
    from fastrun.tuner.report.page import write_report

    try:
        page = write_report(
            database, targets, out, probe(), threads=arguments.threads, regime=arguments.regime
        )
    except OSError as error:
        advice = f"{error.strerror}; `fastrun report --out DIR` writes it elsewhere"
        raise OSError(error.errno, advice, error.filename) from error
    print(f"report: {page}")
    return 0

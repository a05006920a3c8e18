"""`fastrun report`: a page, figures and tables about what was measured."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from tuner.commands import existing
from tuner.database import Database
from tuner.machine import probe
from tuner.targets import Target, read_target


def run(arguments: Namespace) -> int:
    """Write the report."""
    targets = [read_target(text) for text in arguments.targets]
    with existing(arguments.db) as database:
        return write(targets, database, arguments, arguments.out)


def write(
    targets: Sequence[Target], database: Database, arguments: Namespace, out: Path | None
) -> int:
    from tuner.report import write_report

    page = write_report(
        database, targets, out, probe(), threads=arguments.threads, regime=arguments.regime
    )
    print(f"report: {page}")
    return 0

"""Write a page, figures and tables about what was measured."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrun.options import conditions, new_folder, shape_sets, shapes
from fastrun.tuner.networks.targets import Target, read_target

if TYPE_CHECKING:
    from fastrun.tuner.machine.probe import MachineReport
    from fastrun.tuner.store.database import Database


def options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="(default: everything that was measured)"
    )
    parser.add_argument(
        "--out",
        type=new_folder,
        metavar="DIR",
        help="write into this folder (default: the machine's folder in reports/)",
    )
    shapes(parser)
    parser.add_argument(
        "--machine",
        metavar="FINGERPRINT",
        help="report on the machine or device whose CPU fingerprint begins with this (default: "
        "this machine)",
    )
    conditions(parser)


def run(arguments: Namespace) -> int:
    """Write the report."""
    from fastrun.tuner.store.database import existing

    targets = [
        read_target(text, given) for text in arguments.targets for given in shape_sets(arguments)
    ]
    with existing(arguments.db) as database:
        return write(targets, database, arguments, arguments.out)


def write(
    targets: Sequence[Target], database: Database, arguments: Namespace, out: Path | None
) -> int:
    """Write the report of the targets, and print where it is.

    Raises:
        OSError: the folder cannot be written.
    """
    from fastrun.tuner.report.page import write_report

    machine = _machine(arguments.machine)
    try:
        page = write_report(
            database, targets, out, machine, threads=arguments.threads, regime=arguments.regime
        )
    except OSError as error:
        advice = f"{error.strerror}; `fastrun report --out DIR` writes it elsewhere"
        raise OSError(error.errno, advice, error.filename) from error
    print(f"report: {page}")
    return 0


def _machine(fingerprint: str | None) -> MachineReport:
    """What was measured of the machine that is reported on."""
    from fastrun.graph.core.errors import InputError
    from fastrun.tuner.machine.probe import known_machines, probe

    if fingerprint is None:
        return probe()
    found = known_machines(fingerprint)
    kinds = {report.machine: report.model for report in found}
    if len(kinds) == 1:
        return found[-1]
    if kinds:
        listed = ", ".join(map(" ".join, kinds.items()))
        raise InputError(f"several machines begin with {fingerprint}: {listed}")
    raise InputError(
        f"no machine or device whose fingerprint begins with {fingerprint} was measured from here"
    )

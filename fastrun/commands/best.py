"""Print the best known schedule of every convolution of a target."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastrun.options import conditions, limits_of, shapes, shapes_of
from fastrun.tuner.networks.targets import Target, read_target
from fastrun.tuner.records.units import UNKNOWN, finite, ms, ratio, size

if TYPE_CHECKING:
    from fastrun.kernels.core.attention import Problem
    from fastrun.tuner.records.record import Record
    from fastrun.tuner.store.database import Database


def options(parser: ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--pareto",
        action="store_true",
        help="print the fastest schedule, and slower ones with less workspace or a smaller error; "
        "of a network also the front of its precisions, after `fastrun tune --calibrate`",
    )
    shapes(parser)
    conditions(parser)


def run(arguments: Namespace) -> int:
    """Print the best known schedules of a target."""
    from fastrun.choices import print_choices
    from fastrun.tuner.store.database import existing

    target = read_target(arguments.target, shapes_of(arguments))
    with existing(arguments.db) as database:
        if arguments.pareto:
            return _print_fronts(target, database, arguments)
        return print_choices([target], database, arguments)


def _print_fronts(target: Target, database: Database, arguments: Namespace) -> int:
    """Print the schedules of each problem that are best at time, workspace or error."""
    from fastrun.choices import not_measured
    from fastrun.tuner.records.record import Conditions
    from fastrun.tuner.store.standing import front
    from fastrun.tuner.terminal.display import grid, screen

    here, limits = Conditions.here(arguments.threads, arguments.regime), limits_of(arguments)
    fronts = {p: front(database.ranking(p, here, limits)) for p, _ in target.problems}
    if arguments.json:
        print(json.dumps(_document(target, fronts, arguments), indent=1))
        return 0
    rows = [
        (
            "" if i else str(p),
            *(ms(r.seconds_per_call), ratio(r.seconds_per_call / records[0].seconds_per_call)),
            *(size(r.workspace), f"{r.errors.rms:.1e}" if r.errors else UNKNOWN, r.schedule),
        )
        for p, records in fronts.items()
        for i, r in enumerate(records)
    ]
    heads = ("problem", "ms>", "as long as\nthe fastest>", "workspace>", "rms error>", "schedule")
    grid(screen(), heads, rows, below="schedule")
    if missing := sum(not records for records in fronts.values()):
        print(not_measured(missing, arguments))
    if target.is_network:
        from fastrun.precision import print_front
        from fastrun.tuner.precision.kept import kept_front

        if kept := kept_front(target.graph, here.machine, arguments.threads):
            print_front(kept)
    return 0


def _document(
    target: Target, fronts: Mapping[Problem, Sequence[Record]], arguments: Namespace
) -> dict[str, Any]:
    """The JSON form; times in seconds, workspace in bytes."""
    return {
        "target": target.name,
        "threads": arguments.threads,
        "regime": arguments.regime,
        "problems": [
            {
                "problem": str(p),
                "pareto": [
                    {
                        "schedule": r.schedule,
                        "seconds": finite(r.seconds_per_call),
                        "workspace": r.workspace,
                        "error": r.errors.to_dict() if r.errors else None,
                        "stage": r.stage,
                    }
                    for r in records
                ],
            }
            for p, records in fronts.items()
        ],
    }

"""`fastrun best`: the best known schedules of a target."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from fastrun.commands import limits_of
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.networks.measured_choices import guessed_choices
from fastrun.tuner.networks.targets import Target, merged, read_target
from fastrun.tuner.records.record import Conditions, Record
from fastrun.tuner.records.units import UNKNOWN, finite, interval, ms, plural, ratio, size
from fastrun.tuner.store.database import Database, existing
from fastrun.tuner.store.standing import Standing, front, network_seconds, seconds, standings
from fastrun.tuner.terminal.display import grid, screen


def run(arguments: Namespace) -> int:
    """Print the best known schedules of a target."""
    target = read_target(arguments.target)
    with existing(arguments.db) as database:
        if arguments.pareto:
            return _print_fronts(target, database, arguments)
        return print_choices([target], database, arguments)


def print_choices(
    targets: Sequence[Target], database: Database | None, arguments: Namespace
) -> int:
    """What would run: the best measured schedule, else what the heuristic says."""
    cpu, problems = Cpu.host(), merged(targets)
    if database is None:
        found = [Standing(p, count, None, None, None) for p, count in problems]
    else:
        conditions = Conditions.here(arguments.threads, arguments.regime)
        found = standings(database, problems, conditions, limits_of(arguments))
    if getattr(arguments, "json", False):
        print(json.dumps(_choices_document(targets[0], found, arguments, cpu), indent=1))
        return 0
    rows = [
        (
            *(str(s.problem), str(s.count), _choice(s, cpu, arguments)),
            *(_source(s), ms(seconds(s.best)), interval(*s.over_runner_up)),
            f"{s.gflops:.1f}" if s.best else UNKNOWN,
        )
        for s in found
    ]
    grid(screen(), ("problem", "n>", "schedule", "from", "ms>", "over next>", "GFLOP/s>"), rows)
    missing = sum(s.best is None for s in found)
    if missing and database is not None:
        print(
            f"{missing} of {plural(len(found), 'problem')} not measured with "
            f"{plural(arguments.threads, 'thread')}, {arguments.regime}: `fastrun tune` does that"
        )
    return 0


def _print_fronts(target: Target, database: Database, arguments: Namespace) -> int:
    """The schedules of each problem that are best at time, workspace or error."""
    conditions = Conditions.here(arguments.threads, arguments.regime)
    limits = limits_of(arguments)
    fronts = {p: front(database.ranking(p, conditions, limits)) for p, _ in target.problems}
    if arguments.json:
        print(json.dumps(_fronts_document(target, fronts, arguments), indent=1))
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
    grid(screen(), heads, rows)
    if missing := sum(not records for records in fronts.values()):
        print(f"{plural(missing, 'problem')} not measured: `fastrun tune` does that")
    return 0


def _fronts_document(
    target: Target, fronts: Mapping[ConvProblem, Sequence[Record]], arguments: Namespace
) -> dict[str, Any]:
    """JSON form of the fronts; times in seconds, workspace in bytes."""
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


def _source(s: Standing) -> str:
    if s.best is None:
        return "heuristic"
    return "measured, not searched" if s.verdict == "not searched" else "measured"


def _choice(s: Standing, cpu: Cpu, arguments: Namespace) -> str:
    if s.best:
        return s.best.schedule
    guesses = guessed_choices(cpu, arguments.threads, limits_of(arguments))(s.problem)
    return min(guesses, key=lambda choice: choice.seconds).schedule


def _choices_document(
    target: Target, found: Sequence[Standing], arguments: Namespace, cpu: Cpu
) -> dict[str, Any]:
    """JSON form of what would run; times in seconds, null is what nobody measured."""
    naive, heuristic, total = network_seconds(found)
    return {
        "target": target.name,
        "machine": cpu.fingerprint,
        "threads": arguments.threads,
        "regime": arguments.regime,
        "naive": finite(naive),
        "heuristic": finite(heuristic),
        "best": finite(total),
        "problems": [
            {
                "problem": str(s.problem),
                "count": s.count,
                "schedule": _choice(s, cpu, arguments),
                "from": "measured" if s.best else "heuristic",
                "verdict": s.verdict,
                "naive": finite(seconds(s.naive)),
                "heuristic": finite(seconds(s.heuristic)),
                "best": finite(seconds(s.best)),
                "over_heuristic": [*map(finite, s.interval)],
                "runner_up": s.runner_up.schedule if s.runner_up else None,
                "over_runner_up": [*map(finite, s.over_runner_up)],
                "gflops": finite(s.gflops),
                "error": s.best.errors.to_dict() if s.best and s.best.errors else None,
                "workspace": s.best.workspace if s.best else None,
            }
            for s in found
        ],
    }

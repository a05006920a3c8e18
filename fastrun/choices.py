"""Print what would run each convolution of some targets, without measuring."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.options import limits_of
from fastrun.tuner.model.cost_model import CostModel
from fastrun.tuner.networks.measured_choices import guessed_choices
from fastrun.tuner.networks.targets import Target, merged
from fastrun.tuner.records.record import Conditions
from fastrun.tuner.records.units import UNKNOWN, finite, interval, ms, plural
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.standing import Standing, network_seconds, seconds, standings
from fastrun.tuner.terminal.display import grid, screen
from fastrun.tuner.terminal.prose import say


def print_choices(
    targets: Sequence[Target], database: Database | None, arguments: Namespace
) -> int:
    """Print the best stored schedule of each convolution, or the heuristic's if there is none.

    Without a database the policy `model` prints what the cost model chooses.
    """
    cpu, problems = Cpu.host(), merged(targets)
    if database is None:
        found = [Standing(p, count, None, None, None) for p, count in problems]
    else:
        conditions = Conditions.here(arguments.threads, arguments.regime)
        found = standings(database, problems, conditions, limits_of(arguments))
    if getattr(arguments, "json", False):
        print(json.dumps(_document(targets[0], found, arguments, cpu), indent=1))
        return 0
    rows = [
        (
            *(str(s.problem), str(s.count), _choice(s, cpu, arguments)),
            *(_source(s, arguments), ms(seconds(s.best)), interval(*s.over_runner_up)),
            f"{s.gflops:.1f}" if s.best else UNKNOWN,
        )
        for s in found
    ]
    heads = ("problem", "n>", "schedule", "from", "ms>", "over next>", "GFLOP/s>")
    grid(screen(), heads, rows, below="schedule")
    missing = sum(s.best is None for s in found)
    if missing and database is not None:
        say(f"{missing} of {not_measured(len(found), arguments)}")
    return 0


def not_measured(problems: int, arguments: Namespace) -> str:
    """Say that problems were not measured under a command's conditions, and what to do."""
    return (
        f"{plural(problems, 'problem')} not measured with "
        f"{plural(arguments.threads, 'thread')}, {arguments.regime}: `fastrun tune` measures them"
    )


def _source(s: Standing, arguments: Namespace) -> str:
    if s.best is None:
        return "cost model" if _by_model(arguments) else "heuristic"
    return "measured, not searched" if s.verdict == "not searched" else "measured"


def _choice(s: Standing, cpu: Cpu, arguments: Namespace) -> str:
    if s.best:
        return s.best.schedule
    guesses = guessed_choices(cpu, arguments.threads, limits_of(arguments))(s.problem)
    usual = min(guesses, key=lambda choice: choice.seconds).schedule
    if _by_model(arguments) and isinstance(s.problem, ConvProblem):
        return CostModel.shipped(cpu).choice(s.problem, cpu, usual)
    return usual


def _by_model(arguments: Namespace) -> bool:
    return getattr(arguments, "policy", "") == "model"


def _document(
    target: Target, found: Sequence[Standing], arguments: Namespace, cpu: Cpu
) -> dict[str, Any]:
    """The JSON form; times in seconds, null where nothing was measured."""
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

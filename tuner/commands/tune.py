"""`fastrun tune`: search for the best schedules of the targets."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence

from kernels.core.cpu import Cpu
from tuner.commands import existing
from tuner.commands.best import print_choices
from tuner.database import Database
from tuner.display import network_sums, screen, standings_table
from tuner.effort import EFFORTS, Effort
from tuner.machine import probe
from tuner.standing import standings
from tuner.targets import Target, merged, read_target
from tuner.units import duration, percent, plural

INTERRUPTED = 130


def run(arguments: Namespace) -> int:
    """Search for the best schedules of the targets, or say what a policy would use."""
    targets = [read_target(text) for text in arguments.targets]
    if arguments.policy == "heuristic":
        return print_choices(targets, None, arguments)
    if arguments.policy == "cached":
        with existing(arguments.db) as database:
            return print_choices(targets, database, arguments)
    with Database(arguments.db) as database:
        return profile(targets, database, arguments)


def profile(targets: Sequence[Target], database: Database, arguments: Namespace) -> int:
    """Tune, and show what has come of it."""
    from tuner.display import Board
    from tuner.fastrun import Budget, fast_run

    peak = probe().peak_of(arguments.threads)
    problems = merged(targets)
    effort = _effort(arguments)
    limit = arguments.seconds
    if limit is None and effort.seconds is not None:
        limit = effort.seconds * len(problems)
    budget = Budget(limit, arguments.trials, effort.worth)
    names = ", ".join(target.name for target in targets)
    title = (
        f"{names}: {plural(len(problems), 'problem')}, {plural(arguments.threads, 'thread')}, "
        f"{arguments.regime}, {_budget_text(budget.seconds, budget.trials)}"
    )
    console = screen()
    with Board(console, title, budget) as board:
        summary = fast_run(
            problems,
            database,
            budget,
            threads=arguments.threads,
            regime=arguments.regime,
            seed=arguments.seed,
            algorithms=arguments.algorithms,
            max_error=math.inf if arguments.max_error is None else arguments.max_error,
            sampler=arguments.sampler or effort.sampler,
            protocol=effort.protocol,
            observe=board,
        )
    machine = Cpu.host().fingerprint
    found = standings(
        database,
        problems,
        machine,
        arguments.threads,
        arguments.regime,
        max_error=arguments.max_error,
    )
    standings_table(console, found, peak)
    for target in targets:
        if target.is_network:
            network_sums(console, target, found)
    rate = summary.trials / summary.seconds if summary.seconds else 0.0
    print(
        f"{plural(summary.trials, 'trial')} in {duration(summary.seconds)} ({rate:.1f}/s), "
        f"{summary.known} known before; stored in {database.name}"
    )
    if budget.worth is not None and summary.settled:
        print(
            f"{len(summary.settled)} of {plural(len(problems), 'problem')} levelled off: twice the "
            f"trials made their best less than {percent(budget.worth)} faster"
        )
    if summary.interrupted:
        print("interrupted: the same command goes on where this one stopped")
        return INTERRUPTED
    return 0


def _effort(arguments: Namespace) -> Effort:
    """The effort asked for; a budget of the user's own is spent whole unless one is."""
    if arguments.effort:
        return EFFORTS[arguments.effort]
    own = arguments.seconds is not None or arguments.trials is not None
    return Effort(None, None) if own else EFFORTS["normal"]


def _budget_text(limit: float | None, trials: int | None) -> str:
    parts = [] if limit is None else [f"{limit:.0f} s"]
    parts += [] if trials is None else [f"{trials} trials each"]
    return ", ".join(parts)

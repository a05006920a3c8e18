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
from tuner.machine import probe
from tuner.standing import standings
from tuner.targets import Target, merged, read_target
from tuner.units import duration, plural

SECONDS_PER_PROBLEM = 8.0
"""The default budget: what the schedules of a problem take to level off."""

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
    limit = arguments.seconds
    if limit is None and arguments.trials is None:
        limit = SECONDS_PER_PROBLEM * len(problems)
    budget = Budget(limit, arguments.trials)
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
    if summary.interrupted:
        print("interrupted: the same command goes on where this one stopped")
        return INTERRUPTED
    return 0


def _budget_text(limit: float | None, trials: int | None) -> str:
    parts = [] if limit is None else [f"{limit:.0f} s"]
    parts += [] if trials is None else [f"{trials} trials each"]
    return ", ".join(parts)

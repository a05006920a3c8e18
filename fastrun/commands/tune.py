"""Find the best schedule of every convolution of the targets."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from fastrun.options import algorithms, budget, conditions, limits_of, objectives, sampler
from fastrun.tuner.networks.targets import Target, merged, read_target
from fastrun.tuner.records.units import duration, percent, plural
from fastrun.tuner.terminal.exits import INTERRUPTED

if TYPE_CHECKING:
    from fastrun.tuner.machine.probe import MachineReport
    from fastrun.tuner.measure.measurer import Measurer
    from fastrun.tuner.search.budget import Effort
    from fastrun.tuner.store.database import Database


def options(parser: ArgumentParser) -> None:
    parser.add_argument("targets", nargs="+", metavar="TARGET")
    budget(parser)
    conditions(parser, both=True)
    parser.add_argument(
        "--policy",
        choices=("profile", "cached", "heuristic"),
        default="profile",
        help="profile: measure schedules (default). cached: print stored results, and the "
        "heuristic's choice where there are none. heuristic: print the heuristic's choice only. "
        "Only profile measures",
    )
    parser.add_argument(
        "--algorithms",
        type=algorithms,
        default=(),
        metavar="A,B",
        help="search only these; 'winograd(mh=2|4, prefetch=0)' allows only these values of fields",
    )
    parser.add_argument(
        "--sampler",
        type=sampler,
        metavar="NAME",
        help="what proposes schedules: gp, tpe, random, exhaustive, local, cmaes, or the import "
        "path of any sampler of Optuna, such as optuna.samplers.QMCSampler (default: gp, or as the "
        "effort says)",
    )
    parser.add_argument(
        "--objectives",
        type=objectives,
        default=("time",),
        metavar="A,B",
        help="what the sampler minimises, of time, error and workspace (default time); several "
        "need a sampler such as optuna.samplers.NSGAIISampler",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the search's random numbers (default 0)",
    )
    parser.add_argument(
        "--storage",
        type=Path,
        metavar="FILE",
        help="keep the Optuna studies of the search in this journal file, for `fastrun dashboard`",
    )
    elsewhere = parser.add_argument_group("other machines")
    elsewhere.add_argument(
        "--workers",
        metavar="URL",
        help="measure on all workers (`fastrun worker`) of the scheduler at URL, such as "
        "tcp://host:8786",
    )
    elsewhere.add_argument(
        "--machine",
        metavar="FINGERPRINT",
        help="use only workers whose CPU fingerprint (see `fastrun doctor`) begins with this",
    )


def run(arguments: Namespace) -> int:
    """Search for the best schedules of the targets, or print what a policy would use."""
    from fastrun.choices import print_choices
    from fastrun.tuner.records.record import REGIMES
    from fastrun.tuner.store.database import Database, existing

    targets = [read_target(text) for text in arguments.targets]
    also: list[str] = []
    if arguments.regime == "both":
        arguments.regime, *also = REGIMES
    if arguments.policy == "heuristic":
        return print_choices(targets, None, arguments)
    if arguments.policy == "cached":
        with existing(arguments.db) as database:
            return print_choices(targets, database, arguments)
    with Database(arguments.db) as database:
        code = profile(targets, database, arguments, also)
    if code == 0:
        _say_what_next(targets[-1], arguments, database.name)
    return code


def _say_what_next(target: Target, arguments: Namespace, database: str) -> None:
    """Print what can be done with what was found, under the conditions it was found under."""
    same = "" if arguments.threads == 1 else f" --threads {arguments.threads}"
    if arguments.db is not None:
        # A URL as we name it, which is without its password.
        given = database if "://" in arguments.db else arguments.db
        same += f" --db {shlex.quote(given)}"
    regime = "" if arguments.regime == "hot" else f" --regime {arguments.regime}"
    name = shlex.quote(target.name)
    if target.lacks:
        look = f"`fastrun best {name}{regime}{same}` lists the schedules"
    elif target.is_network:
        look = f"`fastrun plan {name}{same}` says what runs"
    else:
        look = f"`fastrun show {name}{regime}{same}` takes the kernel apart"
    print(f"next: {look}, `fastrun report {name}{regime}{same}` writes a page")


def profile(
    targets: Sequence[Target],
    database: Database,
    arguments: Namespace,
    also: Sequence[str] = (),
) -> int:
    """Tune, with finals in the regimes `also` given, and show what has come of it."""
    from fastrun.processor import shortcoming
    from fastrun.tuner.machine.noise import NOISY, amount, in_words, noise_of, others
    from fastrun.tuner.measure.confine import unconfined
    from fastrun.tuner.networks.stored_plans import FINALS
    from fastrun.tuner.records.provenance import command_line
    from fastrun.tuner.records.record import Conditions
    from fastrun.tuner.search.budget import Budget, enough
    from fastrun.tuner.search.fastrun import Progress, fast_run
    from fastrun.tuner.search.options import SearchOptions
    from fastrun.tuner.search.storage import journal
    from fastrun.tuner.store.standing import network_seconds, of_network, standings
    from fastrun.tuner.terminal.board import Board
    from fastrun.tuner.terminal.display import network_sums, screen, standings_table

    begin = monotonic()
    measurer, report = _measurer(arguments)
    problems = merged(targets)
    effort = _effort(arguments)
    limit = arguments.seconds
    if limit is None and effort.seconds is not None:
        limit = effort.seconds * len(problems)
    # Other machines measure layers only.
    networks = [t for t in targets if t.is_network and not (t.lacks or arguments.workers)]
    share = FINALS if networks else 0.0
    whole = Budget(limit, arguments.trials, effort.worth)
    names = ", ".join(target.name for target in targets)
    title = (
        f"{names}: {plural(len(problems), 'problem')}, {plural(arguments.threads, 'thread')}, "
        f"{' and '.join([arguments.regime, *also])}, "
        f"{_budget_text(limit, whole.trials)}"
    )
    console = screen()
    here = () if arguments.workers else (unconfined(), others())
    for warning in filter(None, (shortcoming(measurer.cpu), *here)):
        print(warning)
    for target in targets:
        if target.lacks:
            print(f"only the convolutions of {target.name} are tuned: {target.lacks}")
    with Board(console, title, whole) as board:
        before = monotonic() - begin

        def observe(progress: Progress) -> None:
            board(replace(progress, elapsed=before + progress.elapsed))

        summary = fast_run(
            problems,
            database,
            whole if limit is None else replace(whole, seconds=(1 - share) * limit - before),
            sampler=arguments.sampler or effort.sampler,
            options=SearchOptions(
                seed=arguments.seed,
                algorithms=arguments.algorithms,
                limits=limits_of(arguments),
                protocol=effort.protocol,
                also=also,
                objectives=arguments.objectives,
                storage=journal(arguments.storage) if arguments.storage else None,
            ),
            measurer=measurer,
            observe=observe,
            command=command_line(["fastrun", *arguments.words]),
        )
    for regime in (arguments.regime, *also):
        conditions = Conditions(measurer.cpu.fingerprint, arguments.threads, regime)
        found = standings(database, problems, conditions, limits_of(arguments))
        if also:
            print(regime)
        standings_table(console, found, report.peak_of(arguments.threads))
        for target in targets:
            if target.is_network:
                network_sums(console, target, found)
    rate = summary.trials / summary.seconds if summary.seconds else 0.0
    noise = noise_of(database.records(run=summary.run))
    if noise >= NOISY:
        print(f"noise {amount(noise)}; {in_words(noise)}")
    print(
        f"{plural(summary.trials, 'trial')} in {duration(summary.seconds)} ({rate:.1f}/s), "
        f"{summary.known} known before, noise {amount(noise)}; stored in {database.name}"
    )
    if arguments.storage:
        print(f"studies in {arguments.storage}: `fastrun dashboard {arguments.storage}` shows them")
    if summary.left_out:
        print(f"left out for want of time: {'; '.join(summary.left_out)}")
    if limit and not (summary.trials or summary.interrupted or summary.settled):
        # What is not search is the start, which takes long on a busy machine.
        start = monotonic() - begin - summary.seconds
        print(
            f"no schedule was measured: {duration(limit)} is too short for "
            f"{plural(len(problems), 'problem')}, {duration(start)} of it went to the start; "
            f"{duration(start + enough([p for p, _ in problems]))} is enough for a first look"
        )
    if whole.worth is not None and summary.settled:
        print(
            f"{len(summary.settled)} of {plural(len(problems), 'problem')} were ended early: "
            f"doubling their trials improved the best time by less than {percent(whole.worth)}"
        )
    if summary.interrupted:
        print("interrupted: the same command goes on where this one stopped")
        return INTERRUPTED
    for n, target in enumerate(networks):
        naive, *_ = network_seconds(of_network(found, target.problems))
        left = summary.seconds * share / (1 - share)
        if limit is not None:
            left = limit - (monotonic() - begin)
        if left <= 0:
            print(f"left out for want of time: the race of {target.name} as a whole")
            continue
        seconds = left / (len(networks) - n)
        print(f"racing plans of {target.name} as a whole, for some {duration(seconds)}")
        _final(target, database, arguments, seconds, summary.run, naive)
    if limit is not None:
        print(f"{duration(monotonic() - begin)} of {duration(limit)} taken")
    return 0


def _final(
    target: Target,
    database: Database,
    arguments: Namespace,
    seconds: float,
    run: str,
    naive: float,
) -> None:
    """Race the plans of a network, keep the fastest, and show how they did."""
    from fastrun.graph.core.errors import UnsupportedError
    from fastrun.graph.networks import load_network
    from fastrun.graph.passes.pipeline import optimise
    from fastrun.tuner.measure.sandbox import WorkerDied
    from fastrun.tuner.networks.final import NoTimeError
    from fastrun.tuner.networks.stored_plans import store_plan
    from fastrun.tuner.terminal.display import final_table, screen

    graph = optimise(load_network(target.name))
    limits, strict = limits_of(arguments), arguments.seconds is not None
    try:
        record = store_plan(graph, database, arguments.threads, seconds, limits, run, strict)
    except (UnsupportedError, WorkerDied, NoTimeError) as error:
        print(f"{target.name} was not raced as a whole: {error}")
        return
    final_table(screen(), record, naive)


def _measurer(arguments: Namespace) -> tuple[Measurer, MachineReport]:
    """What measures, here or elsewhere, and what that machine can do."""
    if arguments.workers is None:
        from fastrun.tuner.machine.probe import probe
        from fastrun.tuner.measure.measurer import Measurer

        return Measurer(arguments.threads, arguments.regime), probe()
    from fastrun.tuner.remote.fleet import Fleet

    fleet = Fleet(arguments.workers, arguments.threads, arguments.regime, machine=arguments.machine)
    return fleet, fleet.report


def _effort(arguments: Namespace) -> Effort:
    """The effort asked for; a budget of the user's own is spent whole unless one is."""
    from fastrun.tuner.search.budget import EFFORTS, Effort

    if arguments.effort:
        return EFFORTS[arguments.effort]
    own = arguments.seconds is not None or arguments.trials is not None
    return Effort(None, None) if own else EFFORTS["normal"]


def _budget_text(limit: float | None, trials: int | None) -> str:
    parts = [] if limit is None else [f"{limit:.0f} s"]
    parts += [] if trials is None else [f"{plural(trials, 'trial')} each"]
    return ", ".join(parts)

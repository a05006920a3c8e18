"""A run of `fastrun tune`: a search with a board, what was found, and a final for each network."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastrun.kernels.core.rounding import roundings
from fastrun.options import limits_of
from fastrun.tuner.networks.targets import Target, merged
from fastrun.tuner.records.units import duration, finite, percent, plural
from fastrun.tuner.terminal.exits import INTERRUPTED
from fastrun.tuner.terminal.prose import say

if TYPE_CHECKING:
    from fastrun.graph.plan.plan import Plan
    from fastrun.tuner.machine.probe import MachineReport
    from fastrun.tuner.measure.measurer import Measurer
    from fastrun.tuner.search.budget import Effort
    from fastrun.tuner.search.summary import Summary
    from fastrun.tuner.store.database import Database
    from fastrun.tuner.store.standing import Standing


class Tuning:
    """One run of the command: first the search, then a final for each network.

    There are finals in the regimes `also` given, too. `document` is what was found, as JSON has it.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        database: Database,
        arguments: Namespace,
        also: Sequence[str] = (),
        baselines: bool = True,
    ) -> None:
        from fastrun.tuner.networks.time_shares import TimeShares
        from fastrun.tuner.search.budget import Budget

        begin = monotonic()
        self._targets, self._database, self._arguments = targets, database, arguments
        self._also, self._limits, self._baselines = also, limits_of(arguments), baselines
        self.document: dict[str, Any] = {
            "targets": [target.title for target in targets],
            "threads": arguments.threads,
            "unsupported": {t.title: t.lacks for t in targets if t.lacks},
        }
        self._measurer, self._report = _measurer(arguments)
        self._problems = merged(targets, roundings(self._limits.error, self._measurer.cpu))
        self._effort = _effort(arguments)
        limit = arguments.seconds
        if limit is None and self._effort.seconds is not None:
            limit = self._effort.seconds * len(self._problems)
        self._budget = Budget(limit, arguments.trials, self._effort.worth)
        # Other machines measure layers only.
        tunable = [t for t in targets if t.is_network and not t.lacks]
        self._elsewhere = bool(arguments.workers or arguments.device)
        self._networks = [] if self._elsewhere else tunable
        self._kept = {target.title: self._stored(target) for target in self._networks}
        self._shares = TimeShares(self._budget, len(self._networks), begin)

    @property
    def device(self) -> str:
        """The beginning of the fingerprint of the device that measured, if one did."""
        return self._measurer.cpu.fingerprint[:8] if self._arguments.device else ""

    def profile(self) -> int:
        """Do it all, and show what has come of it."""
        self.print_warnings()
        summary = self.search()
        found = self.print_standings()
        self.print_summary(summary)
        if summary.interrupted:
            print("interrupted: run the same command again to continue")
            return INTERRUPTED
        self.run_finals(summary, found)
        return 0

    def _stored(self, target: Target) -> Plan | None:
        """The plan whose bits are to be kept, if any are."""
        if not self._arguments.keep_bits:
            return None
        from fastrun.graph.core.errors import PlanError
        from fastrun.graph.networks import load_network
        from fastrun.graph.passes.pipeline import optimise
        from fastrun.tuner.networks.stored_plans import stored_plan

        graph, threads = optimise(load_network(target.name, target.shapes)), self._arguments.threads
        cpu = self._measurer.cpu
        found = stored_plan(graph, self._database, cpu, threads, self._limits)
        if found is None:
            raise PlanError(
                f"there are no bits to keep: no current plan of {target.title} is stored for "
                f"{plural(threads, 'thread')}; tune without --keep-bits first"
            )
        return found[0]

    def print_warnings(self) -> None:
        """What makes measurements on this machine worse, and what cannot be tuned."""
        from fastrun.processor import shortcoming
        from fastrun.tuner.machine.noise import others
        from fastrun.tuner.measure.confine import unconfined

        warnings = getattr(self._measurer, "warnings", ())
        if not self._elsewhere:
            warnings = (unconfined(), others())
        for warning in filter(None, (shortcoming(self._measurer.cpu), *warnings)):
            say(warning)
        for target in self._targets:
            if target.lacks:
                say(f"only the convolutions of {target.title} are tuned: {target.lacks}")

    def search(self) -> Summary:
        """Search the schedules of all problems, with a board that shows how it goes."""
        from fastrun.tuner.records.provenance import command_line
        from fastrun.tuner.search.fastrun import fast_run
        from fastrun.tuner.search.options import SearchOptions
        from fastrun.tuner.search.progress import Progress
        from fastrun.tuner.search.storage import journal
        from fastrun.tuner.terminal.board import Board
        from fastrun.tuner.terminal.display import screen

        arguments, budget = self._arguments, self._budget
        console = screen(progress=True)
        if arguments.quiet:
            console.quiet = True
        with Board(console, self._title(), budget) as board:
            before = self._shares.elapsed

            def observe(progress: Progress) -> None:
                board(replace(progress, elapsed=before + progress.elapsed))

            return fast_run(
                self._problems,
                self._database,
                self._shares.of_search(),
                sampler=arguments.sampler or self._effort.sampler,
                options=SearchOptions(
                    seed=arguments.seed,
                    algorithms=arguments.algorithms,
                    limits=self._limits,
                    protocol=self._effort.protocol,
                    also=self._also,
                    objectives=arguments.objectives,
                    storage=journal(arguments.storage) if arguments.storage else None,
                    baselines=self._baselines,
                ),
                measurer=self._measurer,
                observe=observe,
                command=command_line(["fastrun", *arguments.words]),
            )

    def _title(self) -> str:
        arguments, budget = self._arguments, self._budget
        return (
            f"{', '.join(target.title for target in self._targets)}: "
            f"{plural(len(self._problems), 'problem')}, {plural(arguments.threads, 'thread')}, "
            f"{' and '.join([arguments.regime, *self._also])}, "
            f"{_budget_text(budget.seconds, budget.trials)}"
        )

    def print_standings(self) -> Sequence[Standing]:
        """The best of every problem, for each regime; returns those of the last regime."""
        from fastrun.tuner.records.record import Conditions
        from fastrun.tuner.store.standing import standings
        from fastrun.tuner.terminal.display import network_sums, screen, standings_table

        threads, console = self._arguments.threads, screen()
        for regime in (self._arguments.regime, *self._also):
            conditions = Conditions(self._measurer.cpu.fingerprint, threads, regime)
            found = standings(self._database, self._problems, conditions, self._limits)
            self.document.setdefault("problems", {})[regime] = [_standing(one) for one in found]
            if self._also:
                print(regime)
            standings_table(console, found, self._report.peak_of(threads))
            for target in self._targets:
                if target.is_network:
                    network_sums(console, target, found)
        return found

    def print_summary(self, summary: Summary) -> None:
        """How many trials there were, how noisy the machine was, and what was left out."""
        from fastrun.tuner.machine.noise import NOISY, amount, in_words, noise_of
        from fastrun.tuner.search.budget import enough

        limit, count = self._budget.seconds, plural(len(self._problems), "problem")
        # What is not search is the start, which takes long on a busy machine.
        start = self._shares.elapsed - summary.seconds
        rate = summary.trials / summary.seconds if summary.seconds else 0.0
        noise = noise_of(self._database.records(run=summary.run))
        self.document |= {
            "run": summary.run,
            "trials": summary.trials,
            "known": summary.known,
            "seconds": summary.seconds,
            "noise": finite(noise),
            "left_out": list(summary.left_out),
            "database": self._database.name,
        }
        noisy = f" ({in_words(noise)})" if noise >= NOISY else ""
        say(
            f"{plural(summary.trials, 'trial')} in {duration(summary.seconds)} ({rate:.1f}/s), "
            f"{summary.known} known before; stored in {self._database.name}"
        )
        say(f"noise {amount(noise)}{noisy}")
        if storage := self._arguments.storage:
            say(f"studies in {storage}: `fastrun dashboard {storage}` shows them")
        if summary.left_out:
            say(f"left out, because time ran out: {'; '.join(summary.left_out)}")
        if limit and not (summary.trials or summary.interrupted or summary.settled):
            look = start + enough([p for p, _ in self._problems])
            say(
                f"no schedule was measured: {duration(limit)} is too short for {count}, "
                f"{duration(start)} of it went to the start; {duration(look)} is enough for a "
                "first look"
            )
        if self._budget.worth is not None and summary.settled:
            say(
                f"{len(summary.settled)} of {count} were ended early: doubling their trials "
                f"improved the best time by less than {percent(self._budget.worth)}"
            )

    def run_finals(self, summary: Summary, found: Sequence[Standing]) -> None:
        """A final for each network, in equal parts of the time that is left."""
        from fastrun.tuner.store.standing import network_seconds, of_network

        parts = self._shares.of_finals(summary.seconds)
        for target, seconds in zip(self._networks, parts, strict=True):
            naive, *_ = network_seconds(of_network(found, target.problems))
            if seconds <= 0:
                say(f"left out, because time ran out: the final of {target.title}")
                continue
            say(f"final of the plans of {target.title}, for some {duration(seconds)}")
            self._final(target, seconds, summary.run, naive)
        if limit := self._budget.seconds:
            say(f"{duration(self._shares.elapsed)} of {duration(limit)} taken")

    def _final(self, target: Target, seconds: float, run: str, naive: float) -> None:
        """Race the plans of a network, store the fastest, and show how they did."""
        from fastrun.graph.core.errors import UnsupportedError
        from fastrun.graph.networks import load_network
        from fastrun.graph.passes.pipeline import optimise
        from fastrun.tuner.measure.sandbox import WorkerDied
        from fastrun.tuner.networks.final import NoTimeError
        from fastrun.tuner.networks.same_bits import BitsError
        from fastrun.tuner.networks.stored_plans import store_plan
        from fastrun.tuner.terminal.display import final_table, screen

        graph = optimise(load_network(target.name, target.shapes))
        threads, strict = self._arguments.threads, self._arguments.seconds is not None
        database, limits, kept = self._database, self._limits, self._kept[target.title]
        try:
            record = store_plan(graph, database, threads, seconds, limits, run, strict, kept)
        except (UnsupportedError, WorkerDied, NoTimeError, BitsError) as error:
            say(f"{target.title} has no final: {error}")
            return
        self.document.setdefault("networks", []).append(
            {
                "network": target.title,
                "kept": record.kept,
                "verdict": record.verdict,
                "seconds": {name: finite(record.seconds(name)) for name in record.samples},
            }
        )
        final_table(screen(), record, naive)


def _standing(one: Standing) -> dict[str, Any]:
    """The JSON form of a standing; times in seconds."""
    from fastrun.tuner.store.standing import seconds

    times = {"naive": one.naive, "heuristic": one.heuristic, "best": one.best}
    return {
        "problem": str(one.problem),
        "count": one.count,
        **{name: finite(seconds(record)) for name, record in times.items()},
        "schedule": one.best.schedule if one.best else None,
        "verdict": one.verdict,
    }


def _measurer(arguments: Namespace) -> tuple[Measurer, MachineReport]:
    """What measures, here or elsewhere, and what that machine can do."""
    from fastrun.graph.core.errors import InputError

    if arguments.device and arguments.workers:
        raise InputError("--device and --workers are two ways to measure elsewhere: choose one")
    if arguments.device:
        from fastrun.tuner.device.device import Device

        on = arguments.device_cores
        device = Device(arguments.device, arguments.threads, arguments.regime, on=on)
        return device, device.report
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

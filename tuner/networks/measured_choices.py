"""What may run a convolution, by what the database knows; the planner's choices.

An injected function answers the planner, which knows of no database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.plan.choices import Choice, Choose, crossed, heuristic_choices
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import KernelTemplate, ScheduleError
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.records.record import Conditions, Limits

if TYPE_CHECKING:
    from fastrun.tuner.store.database import Database

# What was measured with weights out of cache is closer to a network; else any measurement.
_REGIMES = ("cold-weights", "hot")

# Nobody knows how fast an unmeasured layout is. It must promise to be this much faster than what
# was measured before it is believed.
_DISTRUST = 1.3


def guessed_choices(cpu: Cpu, threads: int, limits: Limits) -> Choose:
    """What the heuristics say, as far as it is expected to stay within `limits`."""
    guess = heuristic_choices(cpu)

    def choose(p: ConvProblem) -> Sequence[Choice]:
        found = [c for c in guess(p) if _within(p, c.schedule, cpu, threads, limits)]
        if not found:
            raise UnsupportedError(f"nothing is expected to run {p} within {limits}: allow more")
        return found

    return choose


def stored_choices(
    store: Database,
    cpu: Cpu,
    threads: int,
    limits: Limits,
    each: int = 1,
    missing: Callable[[ConvProblem], object] = lambda p: None,
) -> Choose:
    """What the database knows, filled up with guesses: `each` schedules per pair of layouts.

    Where nothing was measured with so many threads, what one thread was measured to take counts,
    divided by the threads. `missing` is told of problems for which there is nothing at all.
    """
    guess = guessed_choices(cpu, threads, limits)

    def choose(p: ConvProblem) -> list[Choice]:
        known = _measured(store, p, cpu, threads, limits, each)
        if not known:
            missing(p)
            return list(guess(p))
        try:
            guesses = guess(p)
        except UnsupportedError:
            return known
        layouts = {(choice.src, choice.dst) for choice in known}
        # Guesses are good for comparing guesses only: the best one is as good as the best known.
        scale = min(c.seconds for c in known) / min(c.seconds for c in guesses) * _DISTRUST
        return known + [
            Choice(c.schedule, c.src, c.dst, c.seconds * scale)
            for c in guesses
            if (c.src, c.dst) not in layouts
        ]

    return choose


def _measured(
    store: Database, p: ConvProblem, cpu: Cpu, threads: int, limits: Limits, each: int
) -> list[Choice]:
    """The best schedules measured for each pair of layouts, of those that are still the same.

    None where the best of all is no more the same.
    """
    from fastrun.tuner.store.staleness import is_current

    for measured_threads in dict.fromkeys((threads, 1)):
        for regime in _REGIMES:
            found: defaultdict[object, list[Choice]] = defaultdict(list)
            conditions = Conditions(cpu.fingerprint, measured_threads, regime)
            for record in store.ranking(p, conditions, limits):
                try:
                    template, schedule = parse_schedule(record.schedule)
                except ScheduleError:
                    continue  # of an algorithm as it was, or of one that is no more
                pair = layout_pair(schedule.layout)
                if len(found[pair]) == each:
                    continue
                if not is_current(record):
                    if any(found.values()):
                        continue
                    break  # the fastest was made by an older generator: nobody knows who leads now
                # One thread's workspace says nothing of several threads'.
                if measured_threads == threads or _fits(
                    p, template, schedule, cpu, threads, limits
                ):
                    seconds = record.seconds_per_call * measured_threads / threads
                    found[pair].append(Choice(record.schedule, *pair, seconds))
            if choices := [choice for group in found.values() for choice in group]:
                return crossed(p, choices)
    return []


def _within(p: ConvProblem, text: str, cpu: Cpu, threads: int, limits: Limits) -> bool:
    """Whether an unmeasured schedule should stay within the limits."""
    template, schedule = parse_schedule(text)
    precise = limits.error is None or template.error(p, schedule) <= limits.error
    return precise and _fits(p, template, schedule, cpu, threads, limits)


def _fits(
    p: ConvProblem,
    template: KernelTemplate,
    schedule: Any,
    cpu: Cpu,
    threads: int,
    limits: Limits,
) -> bool:
    """Whether so many threads take no more workspace than is allowed."""
    if limits.workspace is None:
        return True
    program = template.program(p, schedule, cpu)
    return program.shared_bytes + threads * program.local_bytes <= limits.workspace

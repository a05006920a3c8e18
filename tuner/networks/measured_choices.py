"""The planner's choices for a problem, from the records of the database.

The planner itself does not depend on a database; it gets a function.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.plan.choices import Choice, Choose, crossed, heuristic_choices
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.rounding import rounds_weights
from fastrun.kernels.core.template import KernelTemplate, ScheduleError
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.records.record import Conditions, Limits

if TYPE_CHECKING:
    from fastrun.tuner.store.database import Database

# Times with weights out of cache are closer to those in a network, so they come first.
_REGIMES = ("cold-weights", "hot")

# The expected times of unmeasured layouts are multiplied by this, because they are uncertain.
_DISTRUST = 1.3


def guessed_choices(cpu: Cpu, threads: int, limits: Limits) -> Choose:
    """The heuristics' choices that are expected to be within `limits`.

    What a report of the machine has of rates decides between element types.
    """
    from fastrun.tuner.machine.probe import of_machine

    report = of_machine(cpu.fingerprint, cpu.cores)
    guess = heuristic_choices(cpu, limits.error, report.relative if report else None)

    def choose(p: Problem) -> Sequence[Choice]:
        found = [c for c in guess(p) if _within(p, c.schedule, cpu, threads, limits)]
        if not found and not p.types:  # float32 is always possible
            raise UnsupportedError(f"no schedule of {p} is expected within {limits}: allow more")
        return found

    return choose


def pretuned_choices(
    cpu: Cpu,
    threads: int,
    limits: Limits,
    used: Callable[[Problem], object] = lambda p: None,
) -> Choose:
    """The heuristics' choices, of which winners that come with the package replace some.

    A winner replaces the heuristic's schedule in the same layouts, with a time that is shorter by
    as much as it was in the final. `used` is called for problems with such a winner.
    """
    from fastrun.tuner.store.pretuned import pretuned

    guess = guessed_choices(cpu, threads, limits)

    def choose(p: Problem) -> list[Choice]:
        found = list(guess(p))
        for i, choice in enumerate(found):
            better = pretuned(p, cpu, threads, choice.schedule)
            if better and limits.allow(better[1]):
                gain = better[1].seconds_per_call / better[0].seconds_per_call
                found[i] = replace(
                    choice, schedule=better[1].schedule, seconds=choice.seconds * gain
                )
                used(p)
        return found

    return choose


def stored_choices(
    store: Database,
    cpu: Cpu,
    threads: int,
    limits: Limits,
    each: int = 1,
    missing: Callable[[Problem], object] = lambda p: None,
    machine: str = "",
) -> Choose:
    """The `each` best measured schedules for each pair of layouts; guesses for the other pairs.

    Times on another number of threads say little: they know neither how tasks divide nor the caches
    and the bus that threads share. So without measurements on `threads` the heuristic chooses, or
    what comes with the package. `missing` is called for problems without any measurement.
    `machine` is the fingerprint of the records, by default that of `cpu`.
    """
    where = machine or cpu.fingerprint
    guess, shipped = guessed_choices(cpu, threads, limits), pretuned_choices(cpu, threads, limits)

    def choose(p: Problem) -> list[Choice]:
        tried = (_measured(store, q, where, threads, limits, each) for q in (p, *_alike(p)))
        known = next(filter(None, tried), [])
        if not known:
            if not rounds_weights(p.precision):  # which is never needed
                missing(p)
            return list(shipped(p))
        try:
            guesses = guess(p)
        except UnsupportedError:
            return known
        if not guesses:
            return known
        layouts = {(choice.src, choice.dst) for choice in known}
        # Guessed times can be compared with each other only. So they are scaled: the best guess
        # gets the time of the best measured schedule, times a factor of distrust.
        scale = min(c.seconds for c in known) / min(c.seconds for c in guesses) * _DISTRUST
        return known + [
            Choice(c.schedule, c.src, c.dst, c.seconds * scale)
            for c in guesses
            if (c.src, c.dst) not in layouts
        ]

    return choose


def _alike(p: Problem) -> Iterator[Problem]:
    """Problems that take about as long, whose measurements serve one that has none."""
    if not isinstance(p, ConvProblem):
        return
    if p.precision.integer and p.types.endswith(">f32"):
        yield replace(p, types=p.types.replace(">f32", ">u8"))
    elif p.precision.integer and not p.activation:
        # Bytes are clipped anyway, so a quantised file's network often needs no rectifier.
        yield from (replace(p, activation=name) for name in ("relu", "relu6"))


def _measured(
    store: Database, p: Problem, machine: str, threads: int, limits: Limits, each: int
) -> list[Choice]:
    """The best measured schedules for each pair of layouts, of current records.

    Nothing if the best record of all is stale.
    """
    from fastrun.tuner.store.staleness import is_current

    for regime in _REGIMES:
        found: defaultdict[object, list[Choice]] = defaultdict(list)
        for record in store.ranking(p, Conditions(machine, threads, regime), limits):
            try:
                _, schedule = parse_schedule(record.schedule)
            except ScheduleError:
                continue  # of an older version of the algorithm, or of a removed one
            pair = layout_pair(schedule.layout)
            if len(found[pair]) == each:
                continue
            if not is_current(record):
                if any(found.values()):
                    continue
                break  # the fastest code is gone, so the order is unknown
            found[pair].append(Choice(record.schedule, *pair, record.seconds_per_call))
        if choices := [choice for group in found.values() for choice in group]:
            return crossed(p, choices)
    return []


def _within(p: Problem, text: str, cpu: Cpu, threads: int, limits: Limits) -> bool:
    """Whether an unmeasured schedule is expected to be within the limits."""
    template, schedule = parse_schedule(text)
    # Attention has a single algorithm: like other operators it has no choice of errors.
    free = limits.error is None or not isinstance(p, ConvProblem)
    precise = free or template.error(p, schedule) <= (limits.error or 0)
    return precise and _fits(p, template, schedule, cpu, threads, limits)


def _fits(
    p: Problem,
    template: KernelTemplate,
    schedule: Any,
    cpu: Cpu,
    threads: int,
    limits: Limits,
) -> bool:
    """Whether the workspace of `threads` threads is within the limit."""
    if limits.workspace is None:
        return True
    program = template.program(p, schedule, cpu)
    return program.shared_bytes + threads * program.local_bytes <= limits.workspace

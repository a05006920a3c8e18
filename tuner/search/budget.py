"""How long a run may take and what of it fits: by guesses, or by what was measured before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from fastrun.kernels.core.attention import Problem, parse_problem
from fastrun.tuner.measure.races import FINAL, Format
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.records.record import Record

# FLOP/s that are expected as long as nothing is measured.
_REFERENCE = 1e10  # the float64 reference
_SCHEDULE = 2e10  # a first schedule
_NAIVE = 1.5e9  # a naive loop

# Seconds.
_START = 2.0  # until the processes of a run answer
PROCESS = 1.0  # a fresh process in a final
_LOOK = 3.0  # a first look at a problem

# Shares of a budget.
BASELINES = 0.3  # for baselines, at most
RACES_LEAST = 0.2  # for races
RACES_MOST = 0.5

# Time that is kept for races, in multiples of what they should take.
MARGIN = 1.2

# A final may take this many times longer than it should, if no race before it has shown the pace.
UNKNOWN_PACE = 1.6


@dataclass(frozen=True)
class Budget:
    """When to stop: after `seconds` of wall time, or `trials` per problem. None is no limit.

    Seconds bound all of a run; what does not fit is left out, and the summary says so. The run
    waits for what is being measured when they are over. `worth` ends the search of a problem that
    has levelled off: its best fell by less than this share while its trials doubled.
    """

    seconds: float | None = None
    trials: int | None = None
    worth: float | None = None


@dataclass(frozen=True)
class Races:
    """The races at the end of a run: the `most` schedules in the first one, and the final's form.

    `baselines` says whether the naive loop is in the final, `alone` whether a schedule is timed
    once more that has no other to race against.
    """

    most: int
    final: Format
    baselines: bool = False
    alone: bool = False


DECISIVE = Races(4, FINAL)
"""What a search leaves time for, if that takes no more than `RACES_MOST` of it."""

RACES = (
    Races(8, FINAL, baselines=True, alone=True),
    Races(4, FINAL, baselines=True, alone=True),
    DECISIVE,
    Races(0, FINAL),
    Races(0, replace(FINAL, processes=3)),
    Races(0, replace(FINAL, processes=3, rounds=2)),
    Races(0, replace(FINAL, processes=3, rounds=1)),
)
"""The races of a run, from the fullest to the shortest that gives an interval."""


def first_seconds(p: Problem) -> float:
    """How long a problem's first outcome should take: operands, their reference, a schedule."""
    return 0.5 + p.flops / _REFERENCE + p.flops / _SCHEDULE


def baseline_seconds(p: Problem, known: Iterable[Record]) -> float:
    """How long a naive loop should take, by the slowest of those `known`."""
    rates = [parse_problem(r.problem).flops / r.seconds_per_call for r in known]
    return p.flops / min(rates, default=_NAIVE)


def enough(problems: Sequence[Problem]) -> float:
    """Seconds that should be enough for a first look at all problems."""
    return _START + math.fsum(_LOOK + 2 * first_seconds(p) for p in problems)


def entry_seconds(record: Record, form: Format) -> float:
    """Seconds that the schedule of a record should take in each process of a race."""
    call = record.seconds_per_call
    verify = record.seconds.get("verify", 0.0)
    if form.called_once(record.schedule, call):
        return verify
    # A block of one call is preceded by a whole one; two blocks calibrate.
    warm = 1.0 if call >= form.block else form.protocol(record.schedule).rewarm
    return verify + (2 + form.rounds * (1 + warm)) * max(call, form.block)


def slowness(p: Problem, seconds: float) -> float:
    """How many times longer than expected a run took to its first outcome, of `p`; at least 1."""
    return max(1.0, seconds / (_START + first_seconds(p)))


def race_seconds(entries: Iterable[Record], form: Format, slow: float) -> float:
    """How long a race of these should take, their compiling included.

    A fresh process takes `slow` times as long as on an idle machine.
    """
    made = each = 0.0
    for record in entries:
        made += sum(record.seconds.get(part, 0.0) for part in ("build", "pack"))
        each += entry_seconds(record, form)
    return made + form.processes * (slow * PROCESS + each)


@dataclass(frozen=True)
class Effort:
    """A budget per problem and the way to spend it.

    `seconds` is wall time, None no limit; `worth` as in `Budget`; `sampler` one of
    `tuner.search.sampler_choice.SAMPLERS`.
    """

    seconds: float | None
    worth: float | None
    sampler: str = "gp"
    protocol: Protocol = field(default_factory=Protocol)


EFFORTS = {
    "quick": Effort(3.0, 0.03),
    "normal": Effort(8.0, 0.01),
    "thorough": Effort(60.0, 0.003),
    # For data that others replay: no trial is given up, and all have samples enough to rank.
    "exhaustive": Effort(None, None, "exhaustive", Protocol(blocks=7, give_up=math.inf)),
}
"""From a first look to every schedule there is."""

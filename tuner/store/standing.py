"""The standing of a problem: times of the naive loop, the heuristic and the best schedule."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastrun.kernels.core.attention import Problem
from fastrun.tuner.records.record import NO_LIMITS, Conditions, Limits, Record
from fastrun.tuner.records.verdicts import paired, speedup_interval, verdict
from fastrun.tuner.store.staleness import first_current, is_current

if TYPE_CHECKING:  # a table on the terminal needs no SQL
    from fastrun.tuner.store.database import Database


@dataclass(frozen=True)
class Standing:
    """What is known about a problem that occurs `count` times. None was not measured.

    `naive`, `heuristic` and `best` are the decisive records of these schedules. `heuristic` is the
    schedule that runs without measurements. `runner_up` is the second fastest schedule, which may
    be the heuristic's.
    """

    problem: Problem
    count: int
    naive: Record | None
    heuristic: Record | None
    best: Record | None
    runner_up: Record | None = None

    @property
    def over_naive(self) -> float:
        """The speed-up of the best schedule over the naive loop; NaN if unknown."""
        return seconds(self.naive) / seconds(self.best)

    @property
    def over_heuristic(self) -> float:
        """The speed-up of the best schedule over the heuristic's; NaN if unknown."""
        return seconds(self.heuristic) / seconds(self.best)

    @property
    def gflops(self) -> float:
        """GFLOP/s of the best schedule, by the operations of the direct method."""
        return self.problem.flops / seconds(self.best) / 1e9

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `over_heuristic`; NaN with too few processes."""
        if not (self.best and self.heuristic):
            return math.nan, math.nan
        return speedup_interval(self.heuristic, self.best)

    @property
    def verdict(self) -> str:
        """What measuring gained over the heuristic, in a word or two.

        `not measured`: one of the two records is missing. `not searched`: only the heuristic's
        schedule was measured. `heuristic`: it is the best. Else `faster`, `tie`, `slower` or
        `unsure`.
        """
        if not (self.best and self.heuristic):
            return "not measured"
        if self.best.schedule == self.heuristic.schedule:
            return "heuristic" if self.runner_up else "not searched"
        return verdict(self.heuristic, self.best)

    @property
    def raced(self) -> bool:
        """Whether the best raced the heuristic's schedule or the next best in a final."""
        other = self.heuristic
        if self.best and other and self.best.schedule == other.schedule:
            other = self.runner_up
        return bool(self.best and other and paired(other, self.best))

    @functools.cached_property
    def over_runner_up(self) -> tuple[float, float]:
        """The 95 % interval of the speed-up of the best over the next best; NaN if unknown.

        It is a little too high, because the best was chosen for being the fastest.
        """
        if not (self.best and self.runner_up):
            return math.nan, math.nan
        return speedup_interval(self.runner_up, self.best)


def standings(
    database: Database,
    problems: Iterable[tuple[Problem, int]],
    conditions: Conditions,
    limits: Limits = NO_LIMITS,
) -> list[Standing]:
    """The standing of each problem, by records whose code today's generator still makes.

    The best schedule and the runner-up are those within `limits`.
    """
    found = []
    for problem, count in problems:
        ranking = database.ranking(problem, conditions, include_baselines=True)
        proposed = [r for r in ranking if r.heuristic and not r.baseline]
        # Several versions of the generator may have had their heuristic; today's was measured last.
        proposed.sort(key=lambda r: r.time, reverse=True)
        allowed = [r for r in ranking if not r.baseline and limits.allow(r)]
        best = first_current(allowed)
        found.append(
            Standing(
                problem,
                count,
                naive=first_current(r for r in ranking if r.algorithm == "naive"),
                heuristic=first_current(proposed),
                best=best,
                runner_up=first_current(r for r in allowed if best and r.schedule != best.schedule),
            )
        )
    return found


def seconds(record: Record | None) -> float:
    """Seconds per call; NaN without a record."""
    return record.seconds_per_call if record else math.nan


def of_network(
    found: Iterable[Standing], problems: Iterable[tuple[Problem, int]]
) -> list[Standing]:
    """The standings of a network's problems, with the counts of the network."""
    known = {s.problem: s for s in found}
    return [replace(known[p], count=count) for p, count in problems if p in known]


def network_seconds(found: Sequence[Standing]) -> tuple[float, float, float]:
    """Seconds of the naive loops, the heuristic's and the best schedules, over all occurrences.

    NaN if the measurement of a problem is missing.
    """
    return (
        math.fsum(s.count * seconds(s.naive) for s in found),
        math.fsum(s.count * seconds(s.heuristic) for s in found),
        math.fsum(s.count * seconds(s.best) for s in found),
    )


WORTH = 0.9
"""A slower schedule matters if its workspace or error is below this share of a faster one's."""


def front(ranking: Iterable[Record]) -> list[Record]:
    """The Pareto front of a problem's schedules by time, workspace and error, the winner first.

    Each schedule is slower than all before it, and against each of them its workspace or its rms
    error is less by more than a tenth. `ranking` is that of `Database.ranking`: its first schedule
    is the winner, and a lower time of a lower stage was luck. Left out are stale records and those
    without errors.
    """
    usable = (r for r in ranking if not r.baseline and r.errors is not None and is_current(r))
    winner = next(usable, None)
    if winner is None:
        return []
    kept = [winner]
    for record in sorted(usable, key=lambda r: r.seconds_per_call):
        if record.seconds_per_call > winner.seconds_per_call and _is_news(record, kept):
            kept.append(record)
    return kept


def _is_news(record: Record, faster: Sequence[Record]) -> bool:
    errors = record.errors
    return errors is not None and all(
        record.workspace < WORTH * other.workspace
        or (other.errors is not None and errors.rms < WORTH * other.errors.rms)
        for other in faster
    )

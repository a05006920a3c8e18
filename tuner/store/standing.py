"""Where a problem stands: the naive loop, the heuristic and the best schedule, and how sure."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.records.record import NO_LIMITS, Conditions, Limits, Record
from fastrun.tuner.records.verdicts import paired, speedup_interval, verdict
from fastrun.tuner.store.staleness import first_current, is_current

if TYPE_CHECKING:  # a table on the terminal needs no SQL
    from fastrun.tuner.store.database import Database


@dataclass(frozen=True)
class Standing:
    """What is known about a problem that occurs `count` times. None is what nobody measured.

    `naive`, `heuristic` and `best` are the records that decide on these schedules; `heuristic` is
    what would run without any measuring, `runner_up` the fastest but for the best, the heuristic's
    schedule included.
    """

    problem: ConvProblem
    count: int
    naive: Record | None
    heuristic: Record | None
    best: Record | None
    runner_up: Record | None = None

    @property
    def over_naive(self) -> float:
        """How many times faster the best schedule is than the naive loop; NaN if unknown."""
        return seconds(self.naive) / seconds(self.best)

    @property
    def over_heuristic(self) -> float:
        """How many times faster the best schedule is than the heuristic; NaN if unknown."""
        return seconds(self.heuristic) / seconds(self.best)

    @property
    def gflops(self) -> float:
        """The best schedule's GFLOP/s, counting the direct method's operations."""
        return self.problem.flops / seconds(self.best) / 1e9

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `over_heuristic`; NaN where there are too few samples."""
        if not (self.best and self.heuristic):
            return math.nan, math.nan
        return speedup_interval(self.heuristic, self.best)

    @property
    def verdict(self) -> str:
        """What measuring has gained over the heuristic, in a word or two.

        `not measured`: one of the two is missing. `not searched`: nothing else was. `heuristic`:
        the heuristic's own schedule is the best. Else as the function `verdict` says.
        """
        if not (self.best and self.heuristic):
            return "not measured"
        if self.best.schedule == self.heuristic.schedule:
            return "heuristic" if self.runner_up else "not searched"
        return verdict(self.heuristic, self.best)

    @property
    def raced(self) -> bool:
        """Whether the best raced another schedule in a final: the heuristic's, or the next best."""
        rival = self.heuristic
        if self.best and rival and self.best.schedule == rival.schedule:
            rival = self.runner_up
        return bool(self.best and rival and paired(rival, self.best))

    @functools.cached_property
    def over_runner_up(self) -> tuple[float, float]:
        """The 95 % interval of how many times faster the best is than the next; NaN if unknown.

        It was chosen for being the fastest, so that this is a little too high.
        """
        if not (self.best and self.runner_up):
            return math.nan, math.nan
        return speedup_interval(self.runner_up, self.best)


def standings(
    database: Database,
    problems: Iterable[tuple[ConvProblem, int]],
    conditions: Conditions,
    limits: Limits = NO_LIMITS,
) -> list[Standing]:
    """Where each problem stands, by the records whose code today's generator still makes.

    The best is the best within `limits`.
    """
    found = []
    for problem, count in problems:
        ranking = database.ranking(problem, conditions, include_baselines=True)
        proposed = [r for r in ranking if r.heuristic and not r.baseline]
        # Of several generators' heuristics, today's is the one measured last.
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
    """Seconds per call; NaN for no record."""
    return record.seconds_per_call if record else math.nan


def of_network(
    found: Iterable[Standing], problems: Iterable[tuple[ConvProblem, int]]
) -> list[Standing]:
    """Where a network's problems stand, each as often as the network has it."""
    known = {s.problem: s for s in found}
    return [replace(known[p], count=count) for p, count in problems if p in known]


def network_seconds(found: Sequence[Standing]) -> tuple[float, float, float]:
    """The naive loop, the heuristic and the best schedules, summed over all occurrences.

    NaN where a problem lacks that measurement.
    """
    naive, heuristic, best = (
        math.fsum(s.count * seconds(record) for s, record in zip(found, records, strict=True))
        for records in (
            [s.naive for s in found],
            [s.heuristic for s in found],
            [s.best for s in found],
        )
    )
    return naive, heuristic, best


WORTH = 0.9
"""A slower schedule is of interest if it takes at most this share of something."""


def front(ranking: Iterable[Record]) -> list[Record]:
    """The schedules of a problem that nothing else surpasses, the fastest first.

    Each is slower than all before it and takes a tenth less workspace than any of them, or errs by
    a tenth less (rms). `ranking` is `Database.ranking`'s; what today's generator and compiler no
    longer make is left out, and so is what has no error.
    """
    kept: list[Record] = []
    for record in sorted(ranking, key=lambda r: r.seconds_per_call):
        if not record.baseline and _is_news(record, kept) and is_current(record):
            kept.append(record)
    return kept


def _is_news(record: Record, faster: Sequence[Record]) -> bool:
    errors = record.errors
    return errors is not None and all(
        record.workspace < WORTH * other.workspace
        or (other.errors is not None and errors.rms < WORTH * other.errors.rms)
        for other in faster
    )

"""Samplers on recorded spaces: what each would have found, without measuring anything.

If every schedule of a space was measured, a search can be repeated a hundred times on the records.
Samplers are compared with random search, whose expectation is calculated without repeats, as by
Willemsen, van Nieuwpoort and van Werkhoven, "A methodology for comparing optimization algorithms
for auto-tuning", Future Generation Computer Systems, 2024; but evaluations take the place of time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastrun.search_spaces.space import Space
from fastrun.tuner.records.record import Record
from fastrun.tuner.records.statistics import mean_interval
from fastrun.tuner.search.sampler_choice import SMALL, Sampler, sampler_name
from fastrun.tuner.search.study import ScheduleStudy

Floats = NDArray[np.float64]

NEAR = 0.02
"""A schedule no slower than this over the optimum is as good as it."""

# Curves end where random search is expected to have come this share of the way from the median to
# the optimum.
_SETTLED = 0.95

# A walk that has not come near the optimum ends after this share of the space.
_FAR = 0.5


@dataclass(frozen=True)
class RecordedSpace:
    """The seconds per call of every schedule of a space, infinite for a failure.

    A schedule that was not recorded breaks a rule of the `space`, so that it costs no evaluation.
    """

    name: str
    space: Space
    seconds: Mapping[Any, float]

    @cached_property
    def values(self) -> Floats:
        """Seconds of all schedules, the fastest first; failures count as the slowest that ran."""
        found = np.sort(np.array(list(self.seconds.values())))
        return np.asarray(np.minimum(found, self.slowest))

    @cached_property
    def optimum(self) -> float:
        """The least seconds."""
        return min(self.seconds.values())

    @cached_property
    def slowest(self) -> float:
        """The most seconds."""
        return max(value for value in self.seconds.values() if value < math.inf)

    @cached_property
    def near(self) -> int:
        """How many schedules are within `NEAR` of the optimum."""
        return int(np.sum(self.values <= (1 + NEAR) * self.optimum))

    @cached_property
    def horizon(self) -> int:
        """Evaluations until random search is expected 95 % of the way from median to optimum."""
        ran = self.values[self.values < self.slowest]
        median = float(np.median(ran)) if len(ran) else self.slowest
        target = median - _SETTLED * (median - self.optimum)
        return 1 + int(np.argmax(self.random <= target))

    @cached_property
    def random(self) -> Floats:
        """The expected best of random search after 1, 2, ... evaluations: no schedule twice.

        Summed over the gaps between neighbouring times: a gap counts with the probability that no
        schedule below it is among the `k` drawn of `n`, C(n - below, k) / C(n, k).
        """
        n = len(self.values)
        gaps = np.diff(self.values)
        left = n - np.arange(1, n, dtype=np.float64)  # schedules not below each gap
        missed = np.ones(n - 1)
        expected = np.empty(n)
        for k in range(n):
            missed *= np.maximum(left - k, 0) / (n - k)
            expected[k] = self.optimum + float(gaps @ missed)
        return expected

    @cached_property
    def random_needs(self) -> int:
        """Evaluations after which random search is near the optimum in half of all cases."""
        n, missed = len(self.values), 1.0
        for k in range(n):
            missed *= (n - self.near - k) / (n - k)
            if missed <= 0.5:
                return k + 1
        return n


@dataclass(frozen=True)
class Replays:
    """A sampler's walks through a space: `best[r, k]` is the best of walk r after k + 1 trials."""

    recorded: RecordedSpace
    sampler: str
    best: Floats

    @cached_property
    def needed(self) -> Floats:
        """Evaluations of each walk until near the optimum; infinite where that was too far."""
        near = self.best <= (1 + NEAR) * self.recorded.optimum
        return np.where(near.any(axis=1), 1.0 + near.argmax(axis=1), math.inf)

    @cached_property
    def scores(self) -> Floats:
        """P of each walk: 0 is random search, 1 the optimum from the first evaluation on."""
        h, optimum = self.recorded.horizon, self.recorded.optimum
        base = self.recorded.random[:h]
        found = np.minimum(self.best[:, :h], self.recorded.slowest)
        return np.asarray(np.mean((base - found) / (base - optimum), axis=1))


def recorded_spaces(records: Iterable[Record]) -> list[RecordedSpace]:
    """The spaces of the records, one for each problem and algorithm of which enough is known.

    A schedule's time is that of its newest screening: races measure a few better than the rest.
    """
    groups: dict[tuple[str, str, tuple[str, ...]], dict[tuple[Any, ...], float]] = {}
    for record in records:
        if record.screened:
            names = tuple(record.parameters)
            group = groups.setdefault((record.problem, record.algorithm, names), {})
            group[tuple(record.parameters.values())] = record.seconds_per_call
    return [
        _space(f"{algorithm} on {problem}", names, group)
        for (problem, algorithm, names), group in groups.items()
        if len(group) > SMALL and min(group.values()) < math.inf
    ]


def replay(recorded: RecordedSpace, sampler: Sampler, seed: int) -> Floats:
    """The best after each evaluation of one walk by a sampler, as `fast_run` takes it.

    The walk ends at the optimum, and beyond the horizon as soon as it is near it; there it stays.

    Raises:
        SamplerError: there is no such sampler, or it failed.
    """
    limit = max(recorded.horizon, math.ceil(_FAR * len(recorded.values)))
    study = ScheduleStudy(recorded.space, sampler, seed)
    best = np.full(limit, math.inf)
    for k in range(limit):
        schedule = study.ask()
        if schedule is None:
            break
        seconds = recorded.seconds[schedule]
        study.tell(schedule, [1e3 * seconds] if seconds < math.inf else None)
        best[k:] = min(best[k], seconds)
        good = recorded.optimum if k + 1 < recorded.horizon else (1 + NEAR) * recorded.optimum
        if best[k] <= good:
            break
    return best


def compare(
    recorded: RecordedSpace,
    samplers: Sequence[Sampler],
    repeats: int = 100,
    seed: int = 0,
) -> list[Replays]:
    """`repeats` walks by each sampler, with seeds from `seed` on.

    Raises:
        SamplerError: as `replay`.
    """
    walks = range(seed, seed + repeats)
    return [
        Replays(recorded, sampler_name(s), np.array([replay(recorded, s, n) for n in walks]))
        for s in samplers
    ]


def scores_frame(found: Sequence[Replays]) -> pd.DataFrame:
    """A row for each space and method.

    Columns: `space`, `points`, `near` (points near the optimum), `optimum` (seconds), `horizon`,
    `sampler`, `score` (mean P) with its 95 % interval `low` to `high`, `needed` (median
    evaluations until near the optimum), `share` (of the points) and `random_share` (calculated).
    """
    return pd.DataFrame(
        [
            {
                "space": r.recorded.name,
                "points": len(r.recorded.values),
                "near": r.recorded.near,
                "optimum": r.recorded.optimum,
                "horizon": r.recorded.horizon,
                "sampler": r.sampler,
                "score": float(r.scores.mean()),
                **dict(zip(("low", "high"), mean_interval(r.scores), strict=True)),
                "needed": float(np.median(r.needed)),
                "share": float(np.median(r.needed)) / len(r.recorded.values),
                "random_share": r.recorded.random_needs / len(r.recorded.values),
            }
            for r in found
        ]
    )


def overall_frame(found: Sequence[Replays]) -> pd.DataFrame:
    """A row for each method: mean `score` of all spaces, its interval, the largest `share`."""
    spaces = scores_frame(found)
    rows = []
    for sampler in dict.fromkeys(r.sampler for r in found):
        scores = np.mean([r.scores for r in found if r.sampler == sampler], axis=0)
        low, high = mean_interval(scores)
        share = spaces[spaces["sampler"] == sampler]["share"].max()
        score = float(scores.mean())
        rows.append({"sampler": sampler, "score": score, "low": low, "high": high, "share": share})
    return pd.DataFrame(rows)


def curves_frame(found: Sequence[Replays]) -> pd.DataFrame:
    """A row for each space, method and number of `evaluations`, up to the horizon.

    Times are in multiples of the optimum: `median`, `low` and `high` (which 80 % of the walks lie
    between), and `random`, the calculated expectation.
    """
    tables = []
    for r in found:
        h = r.recorded.horizon
        best = np.minimum(r.best[:, :h], r.recorded.slowest) / r.recorded.optimum
        low, median, high = np.quantile(best, (0.1, 0.5, 0.9), axis=0)
        tables.append(
            pd.DataFrame(
                {
                    "space": r.recorded.name,
                    "sampler": r.sampler,
                    "evaluations": np.arange(1, h + 1),
                    "median": median,
                    "low": low,
                    "high": high,
                    "random": r.recorded.random[:h] / r.recorded.optimum,
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _space(
    name: str, names: Sequence[str], group: Mapping[tuple[Any, ...], float]
) -> RecordedSpace:
    """Domains are the values that occur: numbers in order, words as they first occur."""
    schedule: Any = make_dataclass("Schedule", names, frozen=True)
    domains = {}
    for field, values in zip(names, zip(*group, strict=True), strict=True):
        distinct = list(dict.fromkeys(values))
        domains[field] = distinct if isinstance(distinct[0], str) else sorted(distinct)
    seconds = {schedule(*values): value for values, value in group.items()}

    def was_recorded(s: Any) -> bool:
        return s in seconds

    return RecordedSpace(name, Space(schedule, domains, [was_recorded]), seconds)

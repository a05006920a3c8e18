"""Bayesian optimisation with a Gaussian process that models the times of a space's schedules.

The covariance of two log times is exp(-sum of rate * |distance|): paths of such a process are as
rough as times of kernels. Each field of a schedule has its own rate, fitted by likelihood. The
sampler proposes the schedule with the lowest mean minus one standard deviation, the lower
confidence bound (Cox and John, "SDO: a statistical method for global optimization", 1997). Trials
that are running count as observed when the deviation is computed, so that two proposals do not fall
on the same spot (Desautels, Krause and Burdick, "Parallelizing exploration-exploitation tradeoffs
in Gaussian process bandit optimization", 2014).
"""

from __future__ import annotations

import heapq
import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from fastrun.search_spaces.untried import Untried
from fastrun.tuner.search.samplers import SpaceSampler

Floats = NDArray[np.float64]

# Random schedules that are measured before the model is asked.
_FIRST = 5

# Random schedules among which the model chooses.
_SAMPLE = 1000

# The fastest schedules. Their neighbours are candidates too.
_FASTEST = 3

# A surface over other schedules is made when outcomes have grown by this share of them...
_GROWTH = 0.15

# ... and by this number at least.
_NEW = 4

# Standard deviations by which the bound is below the mean.
_DEVIATIONS = 1.0

# The newest outcomes, to which rates and noise are fitted.
_NEWEST = 256

# Weight of the squared logarithms of the rates, which holds them near 1.
_HELD = 0.02

# Lowest and highest rate, for distances as shares of a field's range.
_RATES = (0.02, 20.0)

# Lowest and highest variance of the noise, as shares of the variance of the process.
_NOISES = (1e-4, 0.3)


class GaussianProcessSampler(SpaceSampler):
    """Random schedules first, then the most promising of a sample.

    What the process models is the logarithm of times. Trials that are running count as pending,
    failures as the slowest time.
    """

    def __init__(self, untried: Untried) -> None:
        super().__init__(untried)
        self._values: dict[Any, float | None] = {}
        self._sites: dict[Any, int] = {}
        self._surface: Surface | None = None
        self._rates, self._noise = np.ones(len(untried.space.domains)), 1e-3
        self._due = 0

    def choose(self, study: Study, trial: FrozenTrial) -> Any | None:
        """The schedule with the lowest bound; while little is known a random one."""
        if len(self._values) < _FIRST:
            return next(iter(self.untried.sample(_FIRST)), None)
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        pending = [
            self.parameters.schedule(other.params)
            for other in running
            if other.number != trial.number and other.params
        ]
        return self._promising(pending) or self._promising(pending, anew=True)

    def learn(self, schedule: Any, value: float | None) -> None:
        """Add a time to the surface; where it has no place in it, the next surface will."""
        new = schedule in self._sites and schedule not in self._values
        self._values[schedule] = None if value is None else math.log(value)
        if self._surface is not None and new:
            self._surface.learn(self._sites[schedule], self._logarithm(schedule))
        else:
            self._surface = None

    def _logarithm(self, schedule: Any) -> float:
        """Of the time of a schedule, or of the slowest so far for one that failed."""
        value = self._values[schedule]
        if value is None:
            value = max((v for v in self._values.values() if v is not None), default=0.0)
        return value

    def _promising(self, pending: Sequence[Any], anew: bool = False) -> Any | None:
        """The schedule with the lowest bound, if there is any left to choose."""
        if anew or self._surface is None or len(self._values) >= self._due:
            self._surface = self._model(pending)
        free = [s for s in self._sites if s not in self.untried.taken]
        if not free:
            return None
        sites = [self._sites[s] for s in pending if s in self._sites]
        bound = self._surface.bound(_DEVIATIONS, sites)
        return min(free, key=lambda s: bound[self._sites[s]])

    def _model(self, pending: Sequence[Any]) -> Surface:
        """A surface over other schedules, with rates fitted to what is known by now."""
        untried, known = self.untried, len(self._values)
        self._due = known + max(_NEW, round(_GROWTH * known))
        logarithms = {s: self._logarithm(s) for s in self._values}
        fastest = heapq.nsmallest(_FASTEST, logarithms, key=logarithms.__getitem__)
        near = [s for f in fastest for s in untried.neighbours(f)]
        schedules = dict.fromkeys([*logarithms, *pending, *near, *untried.sample(_SAMPLE)])
        self._sites = {s: site for site, s in enumerate(schedules)}
        values = np.array([*logarithms.values()])
        points = np.array([untried.space.point(s) for s in schedules], dtype=np.float64)
        at = points / np.maximum(1, [len(d) - 1 for d in untried.space.domains.values()])
        newest = slice(max(0, known - _NEWEST), known)
        self._rates, self._noise = fitted(at[newest], values[newest], self._rates, self._noise)
        surface = Surface(at, self._rates, self._noise)
        for site, value in enumerate(values):
            surface.learn(site, value)
        return surface


class Surface:
    """A Gaussian process on the sites `at` (sites x fields), some of which have a value.

    Each value learnt adds a row to inverse(L) C: C are the covariances of the sites that have a
    value with all sites, and L is the Cholesky factor of those among each other.
    """

    def __init__(self, at: Floats, rates: Floats, noise: float) -> None:
        self._at, self._rates, self._noise = at * rates, rates, noise
        self._white = np.empty((0, len(at)))
        self._values: list[float] = []
        self._whitened, self._ones = np.empty(0), np.empty(0)

    def learn(self, site: int, value: float) -> None:
        """Take in a value."""
        before, pivot, row = self._row(site, self._white)
        self._values.append(value)
        self._whitened = np.append(self._whitened, (value - before @ self._whitened) / pivot)
        self._ones = np.append(self._ones, (1 - before @ self._ones) / pivot)
        self._white = np.vstack([self._white, row])

    def bound(self, deviations: float, pending: Sequence[int] = ()) -> Floats:
        """The mean of each site minus so many standard deviations.

        Deviations are those that will remain when the values of the sites `pending` are known.
        """
        # The plain mean of the values: by the likeliest one, a search that stays in one place finds
        # all other places as good as it.
        mean = statistics.fmean(self._values)
        rest = self._whitened - mean * self._ones
        expected = mean + rest @ self._white
        white = self._white
        for site in pending:
            white = np.vstack([white, self._row(site, white)[2]])
        variance = np.maximum(0.0, 1 - np.sum(white * white, axis=0))
        return np.asarray(expected - deviations * np.sqrt(variance * (rest @ rest) / len(rest)))

    def _row(self, site: int, white: Floats) -> tuple[Floats, float, Floats]:
        """Of a site: its column of the rows so far, its pivot, and its own row."""
        before = white[:, site]
        pivot = math.sqrt(1 + self._noise - before @ before)
        covariance = np.exp(-np.sum(np.abs(self._at - self._at[site]), axis=1))
        return before, pivot, (covariance - before @ white) / pivot


def fitted(at: Floats, values: Floats, rates: Floats, noise: float) -> tuple[Floats, float]:
    """Rates and noise of greater likelihood than those given: one round of steps in each.

    Rates vary by factors of three, as where a field matters is what counts.
    """
    distances = np.abs(at[:, None] - at)

    def misfit(where: Floats) -> float:
        rates, noise = where[:-1], where[-1]
        lower = np.linalg.cholesky(np.exp(-(distances @ rates)) + noise * np.eye(len(values)))
        rest = np.linalg.solve(lower, values - values.mean())
        spread = max(float(rest @ rest) / len(rest), 1e-12)
        held = _HELD * np.sum(np.log(rates) ** 2)
        return float(len(rest) / 2 * math.log(spread) + np.sum(np.log(np.diag(lower))) + held)

    where = np.append(rates, noise)
    bounds = [*([_RATES] * len(rates)), _NOISES]
    least = misfit(where)
    for axis, factor in itertools.product(range(len(where)), (1 / 3, 3.0)):
        moved = where.copy()
        moved[axis] = np.clip(moved[axis] * factor, *bounds[axis])
        found = misfit(moved)
        if found < least:
            least, where = found, moved
    return where[:-1], float(where[-1])

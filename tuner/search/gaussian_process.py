"""Bayesian optimisation: a model of a space's times, and a search where they may be least.

The model is ordinary kriging of log times: a Gaussian process with the covariance
exp(-sum of rate * |distance|), whose paths are as rough as times of kernels are. Each field of a
schedule has a rate of its own, fitted by likelihood. The search goes to the least lower confidence
bound (Cox and John, "SDO: a statistical method for global optimization", 1997). What is still being
measured counts as known where doubt is concerned (Desautels, Krause and Burdick, "Parallelizing
exploration-exploitation tradeoffs in Gaussian process bandit optimization", 2014).
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

from fastrun.tuner.search.strategies import Ground, Strategy

Floats = NDArray[np.float64]

# Random schedules before the model is asked.
_FIRST = 5

# The model chooses among so many random schedules and those next to the fastest.
_CHOICE, _FASTEST = 1000, 3

# It is made anew, of other schedules, when outcomes have grown by this share, or so many.
_GROWTH, _FEW = 0.15, 4

# Standard deviations that the bound is below what is expected.
_DOUBT = 1.0

# Rates are fitted to the newest outcomes, and held near 1 by so much of their squared logarithm.
_NEWEST, _HELD = 256, 0.02
_RATES, _NOISES = (0.02, 20.0), (1e-4, 0.3)


class Kriging(Strategy):
    """Random schedules first, then the most promising of a sample."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._values: dict[Any, float] = {}
        self._pending: list[Any] = []
        self._sites: dict[Any, int] = {}
        self._surface: Surface | None = None
        self._rates, self._noise = np.ones(len(ground.space.domains)), 1e-3
        self._due = 0

    def next(self) -> Any | None:
        if len(self._values) < _FIRST:
            choice = self._ground.sample(_FIRST)[:1]
        else:
            choice = self._promising() or self._promising(anew=True)
        if not choice:
            return None
        self._pending.append(choice[0])
        return self._ground.take(choice[0])

    def learn(self, schedule: Any, seconds: float | None) -> None:
        if schedule in self._pending:
            self._pending.remove(schedule)
        # A failure is as bad as the worst that ran.
        worst = max(self._values.values(), default=0.0)
        news = schedule in self._sites and schedule not in self._values
        self._values[schedule] = worst if seconds is None else math.log(seconds)
        if self._surface is not None and news:
            self._surface.learn(self._sites[schedule], self._values[schedule])
        else:
            self._surface = None

    def _promising(self, anew: bool = False) -> list[Any]:
        """The schedule with the least bound, if there is any left to choose."""
        if anew or self._surface is None or len(self._values) >= self._due:
            self._surface = self._model()
        free = [s for s in self._sites if s not in self._ground.taken]
        if not free:
            return []
        bound = self._surface.bound(_DOUBT, [self._sites[s] for s in self._pending])
        return [min(free, key=lambda s: bound[self._sites[s]])]

    def _model(self) -> Surface:
        """A surface over other schedules, with rates fitted to what is known by now."""
        ground, known = self._ground, len(self._values)
        self._due = known + max(_FEW, round(_GROWTH * known))
        fastest = heapq.nsmallest(_FASTEST, self._values, key=self._values.__getitem__)
        near = [s for f in fastest for s in ground.steps(f) if ground.why_not(s) is None]
        schedules = dict.fromkeys([*self._values, *self._pending, *near, *ground.sample(_CHOICE)])
        self._sites = {s: site for site, s in enumerate(schedules)}
        values = np.array([*self._values.values()])
        points = np.array([ground.space.point(s) for s in schedules], dtype=np.float64)
        at = points / np.maximum(1, [len(d) - 1 for d in ground.space.domains.values()])
        newest = slice(max(0, known - _NEWEST), known)
        self._rates, self._noise = fitted(at[newest], values[newest], self._rates, self._noise)
        surface = Surface(at, self._rates, self._noise)
        for site, value in enumerate(values):
            surface.learn(site, value)
        return surface


class Surface:
    """Values at some of the sites `at` (sites x fields), and from them what all may be.

    Each value learnt adds a row to the whitened covariances: those of its site with all sites,
    given the rows before. They are the rows of inverse(L) C, with C the covariances of the sites
    learnt with all sites and L the Cholesky factor of those among each other.
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

    def bound(self, doubt: float, pending: Sequence[int] = ()) -> Floats:
        """What each site is expected to have, less `doubt` standard deviations.

        Sites `pending` have values that nobody knows yet, but will before the next choice.
        """
        # Not the likeliest mean: a search that stays in one place makes others look as good as it.
        mean = statistics.fmean(self._values)
        rest = self._whitened - mean * self._ones
        expected = mean + rest @ self._white
        white = self._white
        for site in pending:
            white = np.vstack([white, self._row(site, white)[2]])
        variance = np.maximum(0.0, 1 - np.sum(white * white, axis=0))
        return np.asarray(expected - doubt * np.sqrt(variance * (rest @ rest) / len(rest)))

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

"""The model of a space's times, against the textbook's formulas, and searches that it guides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from fastrun.search_spaces.space import Space
from fastrun.tuner.search.gaussian_process import GaussianProcessSampler, Surface, fitted
from fastrun.tuner.search.study import ScheduleStudy


@dataclass(frozen=True)
class Triple:
    a: int
    b: int
    idle: int


def odd_corner_is_missing(s: Triple) -> bool:
    return s.a < 25 or s.b < 25


def make() -> Space:
    return Space(
        Triple, {"a": range(30), "b": range(30), "idle": range(4)}, [odd_corner_is_missing]
    )


def seconds(s: Triple) -> float:
    return 1e-3 * math.exp(abs(s.a - 21) / 30 + 2 * abs(s.b - 5) / 30)


def test_the_surface_is_that_of_gaussian_processes() -> None:
    draw = np.random.default_rng(0)
    at, rates, noise = draw.random((12, 3)), np.array([1.0, 3.0, 0.2]), 0.01
    values = draw.normal(size=5)
    surface = Surface(at, rates, noise)
    for site, value in enumerate(values):
        surface.learn(site, value)

    def covariance(ours: slice, others: slice) -> np.ndarray:
        return np.exp(-(np.abs(at[ours, None] - at[None, others]) @ rates))

    def variance(sites: slice) -> np.ndarray:
        known = covariance(sites, sites) + noise * np.eye(sites.stop)
        cross = covariance(sites, slice(0, 12))
        return 1 - np.sum(cross * np.linalg.solve(known, cross), axis=0)

    known = covariance(slice(0, 5), slice(0, 5)) + noise * np.eye(5)
    rest = values - values.mean()
    weighted = np.linalg.solve(known, rest)
    expected = values.mean() + covariance(slice(0, 12), slice(0, 5)) @ weighted
    spread = rest @ weighted / 5
    assert surface.bound(0.0) == pytest.approx(expected)
    doubt = np.sqrt(variance(slice(0, 5)) * spread)
    assert surface.bound(2.0) == pytest.approx(expected - 2 * doubt)
    doubt = np.sqrt(variance(slice(0, 7)) * spread)
    assert surface.bound(1.0, pending=[5, 6]) == pytest.approx(expected - doubt)


def test_rates_tell_which_fields_matter() -> None:
    draw = np.random.default_rng(1)
    at = draw.random((60, 2))
    values = np.abs(at[:, 0] - 0.4)
    rates, noise = np.ones(2), 1e-3
    for _ in range(4):
        rates, noise = fitted(at, values, rates, noise)
    assert rates[0] > 5 * rates[1]
    assert 1e-4 <= noise <= 0.3


def study(seed: int, space: Space | None = None) -> ScheduleStudy:
    return ScheduleStudy(space or make(), GaussianProcessSampler, seed)


def test_it_finds_the_valley_and_proposes_while_others_are_measured() -> None:
    search, waiting, seen = study(0), [], set()
    for _ in range(60):
        schedule = search.ask()
        assert schedule is not None
        assert schedule not in seen
        assert odd_corner_is_missing(schedule)
        seen.add(schedule)
        waiting.append(schedule)
        if len(waiting) == 4:
            first = waiting.pop(0)
            search.tell(first, [1e3 * seconds(first)])
    best = min(seen, key=seconds)
    assert abs(best.a - 21) <= 2
    assert abs(best.b - 5) <= 1


def test_what_is_being_measured_is_not_proposed_for_again() -> None:
    """Without counting it as observed, the next proposal would be its neighbour."""
    apart = []
    for seed in range(8):
        search = study(seed)
        for _ in range(12):
            schedule = search.ask()
            search.tell(schedule, [1e3 * seconds(schedule)])
        pending, nxt = search.ask(), search.ask()
        apart.append(abs(pending.a - nxt.a) + abs(pending.b - nxt.b))
    assert sorted(apart)[len(apart) // 2] > 1


def test_failures_are_kept_away_from() -> None:
    search, failed = study(3), 0
    for _ in range(80):
        schedule = search.ask()
        fails = schedule.b < 15
        failed += fails
        search.tell(schedule, None if fails else [1e3 * seconds(schedule)])
    assert failed < 30


def test_history_is_where_it_begins() -> None:
    search = study(4)
    for a in range(0, 24, 4):
        for b in range(0, 24, 4):
            search.tell(Triple(a, b, 0), [1e3 * seconds(Triple(a, b, 0))])
    found = []
    for _ in range(12):
        found.append(search.ask())
        search.tell(found[-1], [1e3 * seconds(found[-1])])
    assert min(map(seconds, found)) < 1.15e-3


def test_a_space_is_exhausted() -> None:
    space = Space(Triple, {"a": range(4), "b": range(4), "idle": [0]})
    search = study(0, space)
    found = []
    while (schedule := search.ask()) is not None:
        search.tell(schedule, [1.0])
        found.append(schedule)
    assert sorted(map(space.point, found)) == sorted(map(space.point, space))

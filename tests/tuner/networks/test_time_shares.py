"""How a run's seconds are shared by its search and the finals of networks, on a simulated clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastrun.tuner.networks import time_shares
from fastrun.tuner.networks.time_shares import FINALS, TimeShares
from fastrun.tuner.search.budget import Budget


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_shares, "monotonic", lambda: clock.now)
    return clock


def taking(parts: Iterator[float], clock: Clock, factor: float = 1.0) -> list[float]:
    """The seconds of finals that take `factor` times as long as they should."""
    found = []
    for seconds in parts:
        found.append(seconds)
        clock.now += factor * max(seconds, 0.0)
    return found


def test_finals_have_equal_parts_with_a_limit_and_without(clock: Clock) -> None:
    bound = TimeShares(Budget(seconds=60.0), 2, clock.now)
    clock.now += 6.0  # targets are read
    assert bound.of_search().seconds == pytest.approx((1 - FINALS) * 60.0 - 6.0)
    clock.now += 30.0
    assert taking(bound.of_finals(30.0), clock) == pytest.approx([12.0, 12.0])
    free = TimeShares(Budget(trials=4), 3, clock.now)
    assert free.of_search() == Budget(trials=4)
    clock.now += 30.0
    part = 30.0 * FINALS / (1 - FINALS) / 3
    assert taking(free.of_finals(30.0), clock) == pytest.approx([part, part, part])


def test_what_a_final_leaves_or_overruns_changes_those_behind_it(clock: Clock) -> None:
    shares = TimeShares(Budget(seconds=40.0), 3, clock.now)
    clock.now += 10.0
    assert taking(shares.of_finals(10.0), clock, 0.5) == pytest.approx([10.0, 12.5, 18.75])
    late = TimeShares(Budget(seconds=40.0), 2, clock.now)
    clock.now += 45.0
    assert all(seconds <= 0 for seconds in late.of_finals(40.0))


def test_without_networks_the_search_has_all(clock: Clock) -> None:
    shares = TimeShares(Budget(seconds=40.0), 0, clock.now)
    assert shares.of_search().seconds == 40.0
    assert list(shares.of_finals(40.0)) == []

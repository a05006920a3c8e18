"""The coverage of intervals, in simulated races with a known ratio."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from numpy.typing import NDArray

from fastrun.tuner.measure.races import FINAL
from fastrun.tuner.records.statistics import (
    PROCESSES,
    mean_interval,
    ratio_interval,
    rounds_interval,
)

RACES = int(600 * float(os.environ.get("FASTRUN_TEST_SCALE", "1")))
TRUTH = 1.2


def races(effect: float, processes: int = FINAL.processes) -> NDArray[np.float64]:
    """Samples by race, entry, process and round: entry 0 takes `TRUTH` times as long as entry 1.

    Processes change an entry's time by `effect` (a standard deviation). Samples scatter by 0.4 %,
    one in twenty is disturbed, and so is one round in ten of both.
    """
    draw = np.random.default_rng(7)
    shape = RACES, 2, processes, FINAL.rounds
    log = draw.normal(0, effect, (*shape[:3], 1)) + draw.normal(0, 0.004, shape)
    log += (draw.random(shape) < 0.05) * draw.exponential(0.2, shape)
    both = RACES, 1, *shape[2:]
    log += (draw.random(both) < 0.1) * draw.exponential(0.3, both)
    log[:, 0] += math.log(TRUTH)
    return 1e-3 * np.exp(log)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("processes", [FINAL.processes, PROCESSES])
@pytest.mark.parametrize("effect", [0.0, 0.005, 0.01, 0.03])
def test_an_interval_of_95_per_cent_covers_that(
    effect: float, processes: int, paired: bool
) -> None:
    """FASTRUN_TEST_SCALE multiplies the number of races."""
    found = [ratio_interval(*race.tolist(), paired) for race in races(effect, processes)]
    covered = sum(low <= TRUTH <= high for low, high in found) / RACES
    assert 0.93 <= covered <= 0.99


def test_more_processes_say_more() -> None:
    def width(processes: int) -> float:
        found = [ratio_interval(*r.tolist(), True) for r in races(0.01, processes)[:100]]
        return float(np.median([math.log(high / low) for low, high in found]))

    assert width(FINAL.processes) < 0.7 * width(PROCESSES)


def test_bootstraps_of_95_per_cent_cover_that() -> None:
    """Those of rounds and of means: one of 50 % would cover half of the time."""
    draw, n, count = np.random.default_rng(3), 24, RACES // 3
    rounds = np.exp(draw.normal(0, 0.01, (count, 2, n)))
    rounds[:, 0] *= TRUTH
    found = [rounds_interval(*race.tolist()) for race in rounds]
    assert 0.85 <= sum(low <= TRUTH <= high for low, high in found) / count <= 0.99
    found = [mean_interval(values) for values in draw.normal(TRUTH, 0.2, (count, n))]
    assert 0.85 <= sum(low <= TRUTH <= high for low, high in found) / count <= 0.99


def test_too_few_have_no_interval() -> None:
    two = [[1.0, 1.1], [1.0, 1.2]]
    assert math.isnan(ratio_interval(two, two, paired=True)[0])
    assert math.isnan(rounds_interval([1.0] * 4, [2.0] * 4)[0])


def test_without_scatter_the_interval_is_the_ratio() -> None:
    for paired in (True, False):
        found = ratio_interval(
            [[2.0] * 3] * 3, [[1.0] * 3] * 4 if not paired else [[1.0]] * 3, paired
        )
        assert found == pytest.approx((2.0, 2.0))


def test_rounds_cancel_what_disturbs_both() -> None:
    base = [1.0, 2.0, 1.0, 3.0, 1.0, 1.0]
    assert rounds_interval([1.1 * x for x in base], base) == pytest.approx((1.1, 1.1))

"""How sure a ratio of two times is: 95 % intervals by bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ENOUGH = 5
"""Samples below which no interval is worth giving."""

_RESAMPLES = 2000


def ratio_interval(
    slower: Sequence[float], faster: Sequence[float], paired: bool
) -> tuple[float, float]:
    """The 95 % interval of how many times one typical time is the other, by bootstrap.

    Samples that were taken in the same interleaved rounds are drawn in pairs, so that what
    disturbed both cancels. NaN with fewer than `ENOUGH` samples.
    """
    a, b = np.array(slower), np.array(faster)
    if min(len(a), len(b)) < ENOUGH:
        return math.nan, math.nan
    draw = np.random.default_rng(0)
    i = draw.integers(len(a), size=(_RESAMPLES, len(a)))
    j = i if paired else draw.integers(len(b), size=(_RESAMPLES, len(b)))
    low, high = np.quantile(_typical(a[i]) / _typical(b[j]), (0.025, 0.975))
    return float(low), float(high)


def _typical(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """`tuner.record.typical` of every row."""
    faster = np.sort(samples, axis=1)[:, : (samples.shape[1] + 1) // 2]
    return np.asarray(np.median(faster, axis=1))


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of a mean, by bootstrap; NaN with fewer than `ENOUGH` values."""
    found = np.array(values)
    if len(found) < ENOUGH:
        return math.nan, math.nan
    drawn = np.random.default_rng(0).integers(len(found), size=(_RESAMPLES, len(found)))
    low, high = np.quantile(found[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)

"""95 % intervals of ratios of times.

The addresses of memory and code differ from process to process, and times with them. So the
sampling unit is the process: rounds within one process say little about another one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ENOUGH = 5
"""The least number of samples for a bootstrap."""

PROCESSES = 3
"""The least number of processes for an interval: with two, the t-distribution is too wide."""

_RESAMPLES = 2000

# The quantile of 0.975 of Student's t, for 1, 2, 3, ... degrees of freedom.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


def ratio_interval(
    slower: Sequence[Sequence[float]], faster: Sequence[Sequence[float]], paired: bool
) -> tuple[float, float]:
    """The 95 % interval of the ratio of two times, from the samples of each process.

    `paired` says that process i of both is the same process, whose influence then cancels. It is
    Student's t-interval (Welch's if not paired) of the logarithms of each process's typical time.
    NaN with fewer than `PROCESSES` processes.
    """
    if min(len(slower), len(faster)) < PROCESSES:
        return math.nan, math.nan
    a, b = (np.log([typical(samples) for samples in groups]) for groups in (slower, faster))
    if paired:
        middle, variance, freedom = _mean(a - b)
    else:
        (x, u, n), (y, v, m) = _mean(a), _mean(b)
        middle, variance = x - y, u + v
        # Satterthwaite's approximation; without variance any number will do.
        freedom = variance**2 / (u**2 / n + v**2 / m) if variance else n + m
    half = _student(freedom) * math.sqrt(variance)
    return math.exp(middle - half), math.exp(middle + half)


def _mean(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """A mean, the variance of the mean, and its degrees of freedom."""
    n = len(values)
    return float(values.mean()), float(values.var(ddof=1)) / n, n - 1


def _student(freedom: float) -> float:
    """The quantile for the largest tabulated degrees of freedom that are at most `freedom`."""
    return _STUDENT[min(int(freedom + 1e-9), len(_STUDENT)) - 1]


def rounds_interval(slower: Sequence[float], faster: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the ratio of two times of the same rounds, by bootstrap.

    It holds for the processes of these rounds only. That is enough to drop a schedule from a race,
    but not to claim a speed-up. NaN with fewer than `ENOUGH` rounds.
    """
    a, b = np.array(slower), np.array(faster)
    if min(len(a), len(b)) < ENOUGH:
        return math.nan, math.nan
    i = np.random.default_rng(0).integers(len(a), size=(_RESAMPLES, len(a)))
    low, high = np.quantile(_typical(a[i]) / _typical(b[i]), (0.025, 0.975))
    return float(low), float(high)


def _typical(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """`tuner.records.statistics.typical` of every row."""
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


def typical(samples: Sequence[float]) -> float:
    """The median of the faster half of the samples; infinite if there are none.

    Disturbance only adds time, so the slower half describes the machine rather than the code. The
    minimum ignores disturbance too, but it falls with the number of samples, which would favour
    the schedule that is measured most. This is the lower quartile, which does not.
    """
    faster = sorted(samples)[: (len(samples) + 1) // 2]
    return statistics.median(faster) if faster else math.inf


PRACTICAL = 1.03
"""A smaller speed-up than this counts as a tie."""


def interval_verdict(low: float, high: float) -> str:
    """`faster` or `slower` if the interval of a speed-up lies beyond 3 %, else `tie`.

    `unsure` if there is no interval.
    """
    if math.isnan(low):
        return "unsure"
    if low > PRACTICAL:
        return "faster"
    return "slower" if high < 1 / PRACTICAL else "tie"

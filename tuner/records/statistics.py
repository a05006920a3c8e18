"""How sure a ratio of two times is: 95 % intervals.

Processes differ: where memory and code come to lie is drawn anew in each. So a process is what is
drawn, and rounds within one say little about the next.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ENOUGH = 5
"""Samples below which no bootstrap is worth making."""

PROCESSES = 3
"""Processes below which no interval is given: of two, the t-distribution says next to nothing."""

_RESAMPLES = 2000

# The quantile of 0.975 of Student's t, for 1, 2, 3, ... degrees of freedom.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)


def ratio_interval(
    slower: Sequence[Sequence[float]], faster: Sequence[Sequence[float]], paired: bool
) -> tuple[float, float]:
    """The 95 % interval of how many times one time is the other, from the samples of each process.

    `paired` says that process i of both is the same one, so that what it does to both cancels.
    Student's t-interval (Welch's where they are not paired) of the logarithms of what was typical
    in each process. NaN with fewer than `PROCESSES`.
    """
    if min(len(slower), len(faster)) < PROCESSES:
        return math.nan, math.nan
    a, b = (np.log([typical(samples) for samples in groups]) for groups in (slower, faster))
    if paired:
        middle, variance, freedom = _mean(a - b)
    else:
        (x, u, n), (y, v, m) = _mean(a), _mean(b)
        middle, variance = x - y, u + v
        # Satterthwaite's; never more than all there are.
        freedom = variance**2 / (u**2 / n + v**2 / m) if variance else n + m
    half = _student(freedom) * math.sqrt(variance)
    return math.exp(middle - half), math.exp(middle + half)


def _mean(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """A mean, its variance, and the degrees of freedom of that."""
    n = len(values)
    return float(values.mean()), float(values.var(ddof=1)) / n, n - 1


def _student(freedom: float) -> float:
    """The quantile of the largest tabulated number of degrees that is not above `freedom`."""
    return _STUDENT[min(int(freedom + 1e-9), len(_STUDENT)) - 1]


def rounds_interval(slower: Sequence[float], faster: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the ratio of what was timed in the same rounds, by bootstrap.

    It is of the process, or the processes, that these rounds were run in, and no others: enough to
    drop a rival, not to claim a speed-up. NaN with fewer than `ENOUGH` rounds.
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
    """The median of the faster half of timed samples; infinite when there are none.

    Disturbance only ever adds time, so the slower half tells about the machine and not about the
    code. The minimum would ignore it too, but falls as samples are added, which would favour
    whoever was measured most; this is the lower quartile, which does not.
    """
    faster = sorted(samples)[: (len(samples) + 1) // 2]
    return statistics.median(faster) if faster else math.inf


PRACTICAL = 1.03
"""A schedule that is not surely this much faster than another counts as equal to it."""


def in_a_word(low: float, high: float) -> str:
    """`faster` or `slower` where the interval of a speed-up clears 3 %, else `tie`.

    `unsure` where there is no interval.
    """
    if math.isnan(low):
        return "unsure"
    if low > PRACTICAL:
        return "faster"
    return "slower" if high < 1 / PRACTICAL else "tie"

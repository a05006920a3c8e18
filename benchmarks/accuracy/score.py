"""Right answers counted, with intervals, and compared with float32 sample by sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastrun.benchmarks.accuracy.task import Sample
from fastrun.benchmarks.peers import Array, Session

_NORMAL = 1.959964  # the quantile of 0.975 of the normal distribution


@dataclass
class Score:
    """What a network's outputs are worth, counted over samples.

    Of the `labelled` samples, whose answers are known, `right` were right; `only_wrong` were wrong
    here and right in float32, `only_right` the other way round. `signal` and `noise` are the sums
    of squares of float32's outputs and of the differences from them. Of `positions` where the
    first output names a class (one a sample, or one a character), `agreeing` name float32's.
    """

    right: int = 0
    labelled: int = 0
    only_wrong: int = 0
    only_right: int = 0
    signal: float = 0.0
    noise: float = 0.0
    agreeing: int = 0
    positions: int = 0

    @property
    def accuracy(self) -> float:
        """The share of right answers; NaN if none is known."""
        return self.right / self.labelled if self.labelled else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson(self.right, self.labelled)

    @property
    def p_value(self) -> float:
        """How likely a difference from float32 as large as this is by chance; NaN as above."""
        return mcnemar(self.only_wrong, self.only_right) if self.labelled else math.nan

    @property
    def sqnr(self) -> float:
        """The signal to quantisation noise ratio of the outputs against float32's, in decibels."""
        return 10 * math.log10(self.signal / self.noise) if self.noise else math.inf

    @property
    def agreement(self) -> float:
        """The share of positions with float32's class. It is no accuracy: float32 may be wrong."""
        return self.agreeing / self.positions if self.positions else math.nan

    def add(self, sample: Sample, outputs: Sequence[Array], exact: Sequence[Array]) -> None:
        """Count one sample, given its outputs in float32."""
        if sample.right:
            here, there = sample.right(outputs), sample.right(exact)
            self.labelled += 1
            self.right += here
            self.only_wrong += there and not here
            self.only_right += here and not there
        for y, true in zip(outputs, exact, strict=True):
            self.signal += float(np.sum(np.square(true, dtype=np.float64)))
            self.noise += float(np.sum(np.square(np.subtract(y, true, dtype=np.float64))))
        same = outputs[0].argmax(-1) == exact[0].argmax(-1)
        self.agreeing += int(same.sum())
        self.positions += same.size


def scores(
    samples: Iterable[Sample], exact: Session, others: Mapping[str, Session]
) -> dict[str, Score]:
    """The scores of several sessions of a network; `exact` is the one in float32."""
    found = {name: Score() for name in others}
    for sample in samples:
        truth = exact.run(sample.inputs)
        for name, session in others.items():
            found[name].add(sample, session.run(sample.inputs), truth)
    return found


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of which `right` of `count` samples were seen; NaN without any.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if not count:
        return math.nan, math.nan
    share, z2 = right / count, _NORMAL**2 / count
    middle = share + z2 / 2
    half = math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def mcnemar(first: int, second: int) -> float:
    """The exact two-sided p-value of two counts of samples that only one of two networks misses.

    If both networks were equally good, each such sample would be a throw of a fair coin.
    (Q. McNemar, "Note on the sampling error of the difference between correlated proportions",
    1947.)
    """
    count, fewer = first + second, min(first, second)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail / 2**count))

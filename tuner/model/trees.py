"""Boosted trees whose levels each have one question, in NumPy: small to store, fast to ask.

Each tree corrects the sum of those before it (Friedman, "Greedy function approximation: a gradient
boosting machine", Annals of Statistics, 2001). All nodes of a level ask the same question, as in
CatBoost (Prokhorenkova et al., NeurIPS 2018), so the answers of a row are the number of its leaf.
Questions compare a feature with one of its quantiles. Rows come in groups, and only differences
within a group are learnt: what its rows have in common is subtracted after every tree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

# Added to the weight of each leaf, so that a leaf of few rows says little.
_HELD = 2.0


@dataclass(frozen=True)
class Growth:
    """How trees are grown: their number, levels, the share `rate` of the rest that each explains.

    Thresholds are `bins` quantiles at most. Each tree sees the shares `rows` and `columns` of the
    data, drawn with `seed`.
    """

    trees: int = 300
    depth: int = 6
    rate: float = 0.1
    bins: int = 48
    rows: float = 0.6
    columns: float = 0.4
    seed: int = 0


@dataclass(frozen=True)
class Trees:
    """A sum of trees: `features` and `thresholds` (trees x levels), `leaves` (trees x 2^levels).

    A row goes right where its feature is above the threshold.
    """

    features: NDArray[np.int16]
    thresholds: NDArray[np.float32]
    leaves: NDArray[np.float32]

    @classmethod
    def grown(
        cls,
        x: Floats,
        y: Floats,
        weights: Floats,
        groups: NDArray[np.integer[Any]],
        growth: Growth | None = None,
        before: Trees | None = None,
    ) -> Self:
        """Trees that say how `y` differs between rows of a group; errors count by their weights.

        `groups` is the number of each row's group. The trees come behind those of `before`, whose
        errors they correct.
        """
        growth = growth or Growth()
        draw = np.random.default_rng(growth.seed)
        x = np.asarray(x, np.float32)
        cuts = [_quantiles(column, growth.bins) for column in x.T]
        binned = np.stack(
            [np.searchsorted(cut, column) for cut, column in zip(cuts, x.T, strict=True)]
        )
        asked = [feature for feature, cut in enumerate(cuts) if len(cut)]
        rest = np.asarray(y, np.float64) - (before(x) if before else 0.0)
        rest = _within(rest, weights, groups)
        features, thresholds, leaves = [], [], []
        for _ in range(growth.trees):
            columns = draw.choice(asked, max(1, round(growth.columns * len(asked))), replace=False)
            rows = draw.permutation(len(y))[: max(1, round(growth.rows * len(y)))]
            questions, values = _tree(
                binned[np.ix_(columns, rows)], rest[rows], weights[rows], growth
            )
            asks = [(int(columns[column]), bin_) for column, bin_ in questions]
            leaf = np.zeros(len(y), np.int64)
            for feature, bin_ in asks:
                leaf = 2 * leaf + (binned[feature] > bin_)
            rest = _within(rest - values[leaf], weights, groups)
            features.append([feature for feature, _ in asks])
            thresholds.append([_threshold(cuts[feature], bin_) for feature, bin_ in asks])
            leaves.append(values)
        found = cls(
            np.array(features, np.int16),
            np.array(thresholds, np.float32),
            np.array(leaves, np.float32),
        )
        if before is None:
            return found
        both = before.arrays(), found.arrays()
        return cls.of_arrays({x: np.concatenate([part[x] for part in both]) for x in both[0]})

    def __call__(self, x: Floats) -> NDArray[np.float64]:
        """The value of each row; that of a group's differences counts."""
        right = np.asarray(x, np.float32)[:, self.features] > self.thresholds
        powers = 1 << np.arange(self.features.shape[1])[::-1]
        found = self.leaves[np.arange(len(self.leaves)), right @ powers]
        return np.asarray(found.sum(axis=1, dtype=np.float64))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What `of_arrays` reads."""
        names = ("features", "thresholds", "leaves")
        return {name: np.asarray(getattr(self, name)) for name in names}

    @classmethod
    def of_arrays(cls, found: Mapping[str, NDArray[Any]]) -> Self:
        """The trees that `arrays` wrote."""
        return cls(found["features"], found["thresholds"], found["leaves"])


def _within(
    values: NDArray[np.float64], weights: Floats, groups: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """The values without the mean of their group."""
    sums, held = np.bincount(groups, weights * values), np.bincount(groups, weights)
    means = np.divide(sums, held, out=np.zeros_like(sums), where=held > 0)
    return np.asarray(values - means[groups])


def _quantiles(column: Floats, bins: int) -> NDArray[np.float32]:
    """Thresholds that part the values of a column into groups of about the same size."""
    values = np.unique(column)
    if len(values) > bins:
        values = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1), method="nearest"))
    return np.asarray((values[1:] + values[:-1]) / 2, np.float32)


def _threshold(cut: NDArray[np.float32], bin_: int) -> float:
    """Of a question whether a value is above a bin; nothing is above the last one."""
    return float(cut[bin_]) if bin_ < len(cut) else math.inf


def _tree(
    binned: NDArray[Any], rest: Floats, weights: Floats, growth: Growth
) -> tuple[list[tuple[int, int]], NDArray[np.float64]]:
    """The questions (column, bin) of a tree's levels, and the value of each leaf."""
    columns, rows = binned.shape
    bins = growth.bins + 1
    leaf = np.zeros(rows, np.int64)
    pull = weights * rest
    questions = []
    for level in range(growth.depth):
        shape = columns, 1 << level, bins
        first = np.arange(columns)[:, None] * (shape[1] * bins)
        at = (first + leaf * bins + binned).ravel()
        sums, weight = (
            np.bincount(at, np.tile(w, columns), columns * shape[1] * bins).reshape(shape)
            for w in (pull, weights)
        )
        left, left_weight = sums.cumsum(axis=2), weight.cumsum(axis=2)
        right, right_weight = left[:, :, -1:] - left, left_weight[:, :, -1:] - left_weight
        gain = left**2 / (left_weight + _HELD) + right**2 / (right_weight + _HELD)
        column, bin_ = np.unravel_index(np.argmax(gain.sum(axis=1)), (columns, bins))
        questions.append((int(column), int(bin_)))
        leaf = 2 * leaf + (binned[column] > bin_)
    size = 1 << growth.depth
    pulls, held = (np.bincount(leaf, w, size) for w in (pull, weights))
    return questions, growth.rate * pulls / (held + _HELD)

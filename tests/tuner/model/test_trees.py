"""Boosted trees: what they learn, and that files keep them."""

from __future__ import annotations

import io

import numpy as np
import pytest

from fastrun.tuner.model.trees import Growth, Trees

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(2000, 6)).astype(np.float32)
Y = np.where(X[:, 0] > 0.3, 2.0, -1.0) * np.where(X[:, 3] > 0, 1.0, 0.5) + 0.3 * X[:, 1]
ONES = np.ones(len(Y))
ONE_GROUP = np.zeros(len(Y), np.int64)
FEW = Growth(trees=80, depth=4, columns=0.8)


def test_they_learn_what_depends_on_several_features() -> None:
    trees = Trees.grown(X[:1500], Y[:1500], ONES[:1500], ONE_GROUP[:1500], FEW)
    rest = Y[1500:] - trees(X[1500:])
    assert np.var(rest) < 0.05 * np.var(Y)


def test_what_a_group_has_in_common_is_not_learnt() -> None:
    """Groups differ by far more than their rows, and no feature says by how much."""
    groups = np.arange(len(Y)) % 100
    common = 50 * DRAW.normal(size=100)
    trees = Trees.grown(X, Y + common[groups], ONES, groups, FEW)
    rest = Y - trees(X)
    assert np.var(rest) < 0.1 * np.var(Y)


def test_rows_without_weight_are_not_learnt() -> None:
    wrong = X[:, 0] < 0
    weights = np.where(wrong, 0.0, 1.0)
    trees = Trees.grown(X, np.where(wrong, 9.0, Y), weights, ONE_GROUP, FEW)
    assert np.var(Y[~wrong] - trees(X[~wrong])) < 0.05 * np.var(Y)
    assert np.ptp(trees(X)) < 5


def test_a_feature_with_one_value_and_a_question_beyond_all_values_do_no_harm() -> None:
    x = np.stack([np.zeros(40), np.repeat([0.0, 1.0], 20)], axis=1).astype(np.float32)
    grows = Growth(trees=60, depth=3)
    trees = Trees.grown(x, x[:, 1] + 1, np.ones(40), np.zeros(40, np.int64), grows)
    assert trees(x) - trees(x)[0] == pytest.approx(x[:, 1], abs=0.05)


def test_a_file_keeps_them() -> None:
    trees, file = Trees.grown(X, Y, ONES, ONE_GROUP, Growth(trees=5)), io.BytesIO()
    np.savez(file, **trees.arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        assert np.array_equal(Trees.of_arrays(found)(X), trees(X))

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
FEW = Growth(trees=80, depth=4, columns=0.8)


def test_they_learn_what_depends_on_several_features() -> None:
    trees = Trees.grown(X[:1500], Y[:1500], ONES[:1500], FEW)
    rest = Y[1500:] - trees(X[1500:])
    assert np.mean(rest**2) < 0.05 * np.var(Y)


def test_rows_without_weight_are_not_learnt() -> None:
    wrong = X[:, 0] < 0
    trees = Trees.grown(X, np.where(wrong, 9.0, Y), np.where(wrong, 0.0, 1.0), FEW)
    assert trees(X[~wrong]).mean() == pytest.approx(Y[~wrong].mean(), abs=0.1)
    assert trees(X).max() < 4


def test_a_feature_with_one_value_and_a_question_beyond_all_values_do_no_harm() -> None:
    x = np.stack([np.zeros(40), np.repeat([0.0, 1.0], 20)], axis=1).astype(np.float32)
    trees = Trees.grown(x, x[:, 1] + 1, np.ones(40), Growth(trees=60, depth=3))
    assert trees(x) == pytest.approx(x[:, 1] + 1, abs=0.05)


def test_a_file_keeps_them() -> None:
    trees, file = Trees.grown(X, Y, ONES, Growth(trees=5)), io.BytesIO()
    np.savez(file, **trees.arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        assert np.array_equal(Trees.of_arrays(found)(X), trees(X))

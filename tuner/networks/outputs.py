"""Outputs of plans of one network, compared."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.model import Array, Graph

WRONG = 1e-3
"""Outputs that differ by more, as an rms relative to the output's, are not the same."""


def normal_inputs(graph: Graph) -> Mapping[str, NDArray[np.float32]]:
    """Normal values for every input, the same in every process."""
    draw = np.random.default_rng(0)
    return {x: draw.standard_normal(graph.shape(x), np.float32) for x in graph.inputs}


def difference(truth: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The largest difference of an output, an rms relative to the output's.

    What is not finite has to be the same; the difference is infinite where it is not.
    """
    return max((_difference(value, found[name]) for name, value in truth.items()), default=0.0)


def _difference(truth: Array, found: Array) -> float:
    finite = np.isfinite(truth)
    if not np.array_equal(finite, np.isfinite(found)):
        return np.inf
    if not np.array_equal(truth[~finite], found[~finite], equal_nan=True):
        return np.inf
    inside = truth[finite].astype(np.float64)
    error, scale = _rms(found[finite] - inside), _rms(inside)
    if not scale:
        return np.inf if error else 0.0
    return error / scale


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).mean())) if values.size else 0.0

"""Comparison of the outputs of two plans of a network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.model import Array, Graph
from fastrun.tuner.records.record import Errors

WRONG = 1e-3
"""Outputs are the same if their rms difference, relative to the output's rms, is at most this."""

WRONG_QUANTISED = 0.1
"""The same for quantised networks: plans may differ by a step where a value lies between two."""


def limit(graph: Graph) -> float:
    """The largest difference of two right plans of a network."""
    return WRONG_QUANTISED if any(x in graph.tensors for x in graph.grids) else WRONG


def normal_inputs(graph: Graph) -> Mapping[str, NDArray[np.float32]]:
    """Normal values for every input, the same in every process."""
    draw = np.random.default_rng(0)
    return {x: draw.standard_normal(graph.shape(x), np.float32) for x in graph.inputs}


def difference(truth: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The largest `distance` of an output from its true value."""
    return max((distance(value, found[name]) for name, value in truth.items()), default=0.0)


def distance(truth: Array, found: Array) -> float:
    """The rms difference of an array from its true value, relative to the rms of that.

    Values that are not finite must be equal; otherwise the difference is infinite.
    """
    finite = np.isfinite(truth)
    if not np.array_equal(finite, np.isfinite(found)):
        return np.inf
    if not np.array_equal(truth[~finite], found[~finite], equal_nan=True):
        return np.inf
    inside = truth[finite].astype(np.float64)
    if not inside.any():
        return np.inf if found[finite].any() else 0.0
    return Errors.of(found[finite], inside).rms

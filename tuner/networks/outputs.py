"""Comparison of the outputs of two plans of a network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastrun.graph.core.lookups import indices
from fastrun.graph.core.model import Array, Graph
from fastrun.tuner.records.record import Errors

WRONG = 1e-3
"""Outputs are the same if their rms difference, relative to the output's rms, is at most this."""

WRONG_QUANTISED = 0.1
"""The same for quantised networks: plans may differ by a step where a value lies between two."""


def limit(graph: Graph) -> float:
    """The largest difference of two right plans of a network."""
    return WRONG_QUANTISED if any(x in graph.tensors for x in graph.grids) else WRONG


def normal_inputs(graph: Graph) -> Mapping[str, Array]:
    """Normal values for every input, the same in every process.

    Indices are any that the network takes, other integers and truth values are 0 or 1.
    """
    draw, found, looked_up = np.random.default_rng(0), dict[str, Array](), indices(graph)
    for name in graph.inputs:
        tensor = graph.tensor(name)
        found[name] = np.zeros(tensor.shape, tensor.dtype)
        if name in graph.whole:
            own = graph.outside[name]
            entries = looked_up[name].high + 1 if name in looked_up else 2
            found[name] = draw.integers(0, entries, tensor.shape).astype(own)
        elif tensor.dtype.kind == "f":
            found[name] = draw.standard_normal(tensor.shape, np.float32).astype(tensor.dtype)
    return found


def difference(truth: Mapping[str, Array], found: Mapping[str, Array]) -> float:
    """The largest `distance` of an output from its true value."""
    return max((distance(value, found[name]) for name, value in truth.items()), default=0.0)


def distance(truth: Array, found: Array) -> float:
    """The rms difference of an array from its true value, relative to the rms of that.

    Values that are not finite must be equal; otherwise the difference is infinite. For values that
    are no floating-point numbers it is the share of those that differ.
    """
    if isinstance(truth, np.floating):  # of a tensor without axes
        truth, found = np.asarray(truth), np.asarray(found)
    if not isinstance(truth, np.ndarray) or truth.dtype.kind != "f":
        same = np.shape(truth) == np.shape(found)
        return float(np.mean(np.asarray(truth) != np.asarray(found))) if same else np.inf
    finite = np.isfinite(truth)
    if not np.array_equal(finite, np.isfinite(found)):
        return np.inf
    if not np.array_equal(truth[~finite], found[~finite], equal_nan=True):
        return np.inf
    inside = truth[finite].astype(np.float64)
    if not inside.any():
        return np.inf if found[finite].any() else 0.0
    return Errors.of(found[finite], inside).rms

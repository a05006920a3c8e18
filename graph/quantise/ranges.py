"""Decides the grid of a tensor: which values it covers, at the price of cutting off others.

`minmax` covers all values that were seen, `percentile` all but a few, `mse` those for which the
squared error of rounding and cutting off is least.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.grid import Grid, is_scale
from fastrun.graph.core.model import Array
from fastrun.graph.quantise.observe import Histogram
from fastrun.kernels.core.dtype import U8

_STEPS = 255
# The share of values that `percentile` cuts off at each end.
_CUT = 1e-5
# `mse` tries these parts of the range.
_PARTS = np.linspace(0.2, 1.0, 81)


def activation_grid(values: Histogram, method: str, exact: bool = True) -> Grid:
    """The 8-bit grid of a tensor with these values. Zero is on it, as padding needs."""
    return grid_between(*RANGES[method](values), exact)


def grid_between(low: float, high: float, exact: bool = True) -> Grid:
    """The 8-bit grid from `low` or 0 to `high` or 0."""
    return Grid(*_scale(low, high), U8, exact)


def _scale(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of the unsigned grid from `low` or 0 to `high` or 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / _STEPS))
    scale = scale if is_scale(scale) else 1.0  # all values are 0, or nearly
    return scale, int(np.clip(np.rint(-low / scale), 0, _STEPS))


def _minmax(values: Histogram) -> tuple[float, float]:
    return values.low, values.high


def _percentile(values: Histogram) -> tuple[float, float]:
    total = values.counts.cumsum()
    if not total[-1]:
        return values.low, values.high
    first, last = np.searchsorted(total, [_CUT * total[-1], (1 - _CUT) * total[-1]])
    middle = values.values
    return max(values.low, middle[first]), min(values.high, middle[min(last, len(middle) - 1)])


def _mse(values: Histogram) -> tuple[float, float]:
    """The range of the least squared error: of both ends first, then of each end alone."""
    some = values.counts > 0
    x, counts = values.values[some], values.counts[some].astype(np.float64)
    # A bin at the edge may have its middle outside.
    x = x.clip(values.low, values.high)

    def best(ranges: NDArray[np.float64]) -> tuple[float, float]:
        errors = [_squares(x, counts, low, high) for low, high in ranges]
        low, high = ranges[int(np.argmin(errors))]
        return float(low), float(high)

    if not len(x):
        return values.low, values.high
    whole = np.array([values.low, values.high])
    low, high = best(whole * _PARTS[:, None])
    low, _ = best(np.array([(part * values.low, high) for part in _PARTS]))
    _, high = best(np.array([(low, part * values.high) for part in _PARTS]))
    return low, high


def _squares(x: Array, counts: Array, low: float, high: float) -> float:
    scale, zero = _scale(low, high)
    rounded = (np.rint(x / scale) + zero).clip(0, _STEPS)
    return float(np.dot(((rounded - zero) * scale - x) ** 2, counts))


RANGES: dict[str, Callable[[Histogram], tuple[float, float]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
}
"""The methods by name: each gives the least and the largest number of a grid."""

"""Images sampled at computed points, in float64: GridSample on any number of axes of pixels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.model import Array
from fastrun.graph.core.ops import GridSample

Indices = NDArray[np.int64]


def grid_sample(op: GridSample, x: Array, grid: Array) -> Array:
    """Values of images (n, c, *space) at points of a grid (n, *out, axes), as (n, c, *out)."""
    space = x.shape[2:]
    taps = []
    for axis, size in enumerate(space):
        point = grid[..., len(space) - 1 - axis].astype(np.float64)
        at = (point + 1) / 2 * (size - 1) if op.corners else ((point + 1) * size - 1) / 2
        if op.mode != "cubic" and op.padding != "zeros":
            at = _inside(at, size, op.padding, op.corners)
        taps.append(_taps(at, op.mode))
    images = np.arange(len(x)).reshape(-1, *(1,) * len(space))
    found = np.zeros((*grid.shape[:-1], x.shape[1]), np.float64)
    for tap in itertools.product(*taps):
        weight, places = np.ones(grid.shape[:-1]), []
        for (place, share), size in zip(tap, space, strict=True):
            if op.padding == "zeros":
                share = np.where((place >= 0) & (place < size), share, 0)
            else:
                place = np.rint(_inside(place.astype(np.float64), size, op.padding, op.corners))
            weight = weight * share
            places.append(np.clip(place, 0, size - 1).astype(np.int64))
        index: Any = (images, slice(None), *places)
        found += weight[..., None] * x[index]
    moved: Array = np.moveaxis(found, -1, 1)
    return moved


def _taps(at: Array, mode: str) -> list[tuple[Indices, Array]]:
    """The pixels along an axis that points are mixed of, with their shares."""
    if mode == "nearest":
        return [(np.rint(at).astype(np.int64), np.ones(at.shape))]
    low = np.floor(at)
    share, first = at - low, low.astype(np.int64)
    if mode == "linear":
        return [(first, 1 - share), (first + 1, share)]
    return [(first + i, cubic(share - i, -0.75)) for i in range(-1, 3)]


def cubic(distance: Array, a: float) -> Array:
    """The cubic convolution kernel, zero from 2 on (Keys 1981)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    kernel: Array = np.where(d <= 1, near, np.where(d < 2, far, 0))
    return kernel


def _inside(at: Array, size: int, padding: str, corners: bool) -> Array:
    """Coordinates moved into the picture."""
    if padding == "reflection":
        low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        span = high - low
        if span > 0:
            away = np.abs(at - low)
            turns, rest = np.floor(away / span), np.mod(away, span)
            at = np.where(turns % 2 == 0, rest + low, high - rest)
        else:
            at = np.zeros_like(at)
    return np.clip(at, 0, size - 1)

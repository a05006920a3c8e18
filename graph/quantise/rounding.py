"""Rounds the weights of a layer so that its output changes little.

GPTQ (Frantar et al., 2022): the values of a filter are rounded one after another, and the error of
each is made up for by the values that are not rounded yet. How much an error weighs is given by the
second moments H of the layer's input: errors e of a filter's weights change its output by e H e in
the mean square.

Shapes: weights and integers (groups, filters, depth), scales (groups, filters), moments (groups,
depth, depth). Integers lie between -`largest` and `largest`.
"""

from __future__ import annotations

import numpy as np

from fastrun.graph.core.model import Array

# Part of the mean second moment that is added to each one, as in GPTQ.
_DAMPING = 0.01
# Values that are rounded before their errors are spread over all the others.
_BLOCK = 64
# The parts of a filter's largest weight that are tried as the end of its grid.
_PARTS = np.linspace(0.4, 1.0, 61)


def nearest(weights: Array, scales: Array, largest: int) -> Array:
    """The nearest integers, ties to even."""
    integers: Array = np.rint(weights / scales[..., None]).clip(-largest, largest)
    return integers


def whole_scales(weights: Array, largest: int) -> Array:
    """The scales with which the largest weight of each filter becomes the largest integer."""
    scales: Array = np.abs(weights).max(-1) / np.float32(largest)
    return scales


def fitted_scales(weights: Array, moments: Array, largest: int) -> Array:
    """The scales for which rounding to nearest weighs least, errors of different values apart."""
    weigh = np.einsum("gkk->gk", moments)[:, None, :]
    whole = whole_scales(weights, largest)
    best, least = whole, np.full(whole.shape, np.inf)
    for part in _PARTS:
        scales = np.where(whole > 0, whole * np.float32(part), np.float32(1))
        errors = nearest(weights, scales, largest) * scales[..., None] - weights
        error = (weigh * errors**2).sum(-1)
        best, least = np.where(error < least, scales, best), np.minimum(error, least)
    return best


def compensated(weights: Array, scales: Array, moments: Array, patches: int, largest: int) -> Array:
    """The integers by GPTQ; `moments` are means over so many patches.

    Moments of few patches say little about other patches, so they are damped more.
    """
    groups, depth = moments.shape[:2]
    diagonal = np.einsum("gkk->gk", moments)
    mean = diagonal.mean(-1)
    extra = np.where(mean > 0, (_DAMPING + depth / patches) * mean, 1)
    damped = moments + extra[:, None, None] * np.eye(depth)
    # The values of the largest moments are rounded first, while all others can make up for them.
    order = np.argsort(-diagonal, kind="stable", axis=-1)
    each = np.arange(groups)[:, None]
    sorted_moments = damped[each[..., None], order[:, :, None], order[:, None, :]]
    spread = _triangle(sorted_moments).astype(np.float32)
    left = np.take_along_axis(weights / scales[..., None], order[:, None], -1).astype(np.float32)
    integers = np.empty_like(left)
    for first in range(0, depth, _BLOCK):
        last = min(first + _BLOCK, depth)
        errors = np.empty((*left.shape[:2], last - first), np.float32)
        for k in range(first, last):
            integers[:, :, k] = np.rint(left[:, :, k]).clip(-largest, largest)
            error = (left[:, :, k] - integers[:, :, k]) / spread[:, None, k, k]
            left[:, :, k:last] -= error[..., None] * spread[:, None, k, k:last]
            errors[:, :, k - first] = error
        left[:, :, last:] -= errors @ spread[:, first:last, last:]
    back = np.argsort(order, axis=-1)[:, None]
    return np.take_along_axis(integers, back, -1)


def _triangle(moments: Array) -> Array:
    """The upper triangle T whose row k spreads the error of value k over the later ones.

    T' T is the inverse of the moments. If these are J R R' J, where J reverses the order and R is
    a lower triangle, then T is J R^-1 J. That costs a third of inverting them.
    """
    factor = np.linalg.cholesky(moments[:, ::-1, ::-1])
    return _inverse(factor)[:, ::-1, ::-1]


def _inverse(lower: Array) -> Array:
    """The inverse of lower triangles, by halves."""
    size = lower.shape[-1]
    if size <= _BLOCK:
        return np.linalg.inv(lower)
    half, found = size // 2, np.zeros_like(lower)
    first, last = slice(half), slice(half, size)
    found[:, first, first] = _inverse(lower[:, first, first])
    found[:, last, last] = _inverse(lower[:, last, last])
    found[:, last, first] = -found[:, last, last] @ lower[:, last, first] @ found[:, first, first]
    return found

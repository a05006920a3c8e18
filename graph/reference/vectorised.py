"""Operators that ONNX's reference implementation computes one element at a time, in whole arrays.

They give its results, and take its place among `corrected.CORRECTED`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from fastrun.graph.core.model import Array
from fastrun.graph.reference.numerics import gather_nd, top_k

_REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _attribute(operator: OpRun, given: dict[str, Any], name: str, default: Any) -> Any:
    """An attribute, as the evaluator gives it or as it was set when the operator was made."""
    value = given.get(name)
    value = getattr(operator, name, None) if value is None else value
    return default if value is None else value


class TopK(OpRun):
    """Of equal values the first ones come first."""

    op_domain = ""

    def _run(self, x: Array, *counts: Array, **given: Any) -> tuple[Array, Array]:
        axis = _attribute(self, given, "axis", -1)
        k = int(np.reshape(counts[0] if counts else _attribute(self, given, "k", 1), ()))
        indices = top_k(x, axis, k, bool(_attribute(self, given, "largest", 1)))
        return np.take_along_axis(x, indices, axis), indices


class GatherND(OpRun):
    """Slices at places that are given by the first indices."""

    op_domain = ""

    def _run(self, x: Array, indices: Array, **given: Any) -> tuple[Array]:
        return (gather_nd(x, indices, _attribute(self, given, "batch_dims", 0)),)


class ScatterElements(OpRun):
    """Values at places along one axis, put there or reduced with what is there."""

    op_domain = ""

    def _run(self, x: Array, indices: Array, updates: Array, **given: Any) -> tuple[Array]:
        axis = _attribute(self, given, "axis", 0)
        reduction = _REDUCTIONS.get(_attribute(self, given, "reduction", "none"))
        places: list[Array] = [*np.indices(indices.shape, sparse=True)]
        found = x.copy()
        places[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
        if reduction is None:
            found[tuple(places)] = updates
        else:
            reduction.at(found, tuple(places), updates)
        return (found,)


class Scatter(ScatterElements):
    """The name of ScatterElements before opset 11, which ONNX's own lacks."""


class Col2Im(OpRun):
    """Windows, each a column, added up where they lie in an image."""

    op_domain = ""

    def _run(self, x: Array, image: Array, block: Array, **given: Any) -> tuple[Array]:
        space, kernel = [*map(int, image)], [*map(int, block)]
        rank = len(space)
        steps, gaps = (
            tuple(_attribute(self, given, name, None) or (1,) * rank)
            for name in ("strides", "dilations")
        )
        pads = tuple(_attribute(self, given, "pads", None) or (0,) * 2 * rank)
        sizes = [s + a + b for s, a, b in zip(space, pads, pads[rank:], strict=False)]
        counts = [
            (size - (k - 1) * gap - 1) // step + 1
            for size, k, gap, step in zip(sizes, kernel, gaps, steps, strict=True)
        ]
        n, c = x.shape[0], x.shape[1] // math.prod(kernel)
        columns = x.reshape(n, c, *kernel, *counts)
        padded = np.zeros((n, c, *sizes), x.dtype)
        for tap in itertools.product(*map(range, kernel)):
            begins = [i * gap for i, gap in zip(tap, gaps, strict=True)]
            where = tuple(
                slice(b, b + (count - 1) * step + 1, step)
                for b, count, step in zip(begins, counts, steps, strict=True)
            )
            column: Any = (slice(None), slice(None), *tap)
            around: Any = (..., *where)
            padded[around] += columns[column]
        inside: Any = (..., *(slice(a, a + s) for a, s in zip(pads, space, strict=False)))
        return (padded[inside],)


class DeformConv(OpRun):
    """A convolution that reads each tap where its offsets move it, between four pixels."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        weights: Array,
        offset: Array,
        bias: Array | None = None,
        mask: Array | None = None,
        **given: Any,
    ) -> tuple[Array]:
        kernel, (n, c, h, w) = weights.shape[2:], x.shape
        taps = math.prod(kernel)
        steps, gaps = (
            tuple(_attribute(self, given, name, None) or (1, 1))
            for name in ("strides", "dilations")
        )
        pads = tuple(_attribute(self, given, "pads", None) or (0, 0, 0, 0))
        groups = _attribute(self, given, "group", 1)
        sets = _attribute(self, given, "offset_group", 1)
        out = offset.shape[2:]
        moved = offset.reshape(n, sets, *kernel, 2, *out)
        places = []
        for axis in (0, 1):
            base = np.arange(out[axis]) * steps[axis] - pads[axis]
            tap = np.arange(kernel[axis]) * gaps[axis]
            grid = base[:, None] if axis == 0 else base
            places.append(moved[:, :, :, :, axis] + grid + np.expand_dims(tap, _BEHIND[axis]))
        parts = x.reshape(n, sets, c // sets, h * w)
        seen = np.zeros((n, sets, c // sets, taps * math.prod(out)), x.dtype)
        corners = [np.floor(place) for place in places]
        for down, right in itertools.product((0, 1), repeat=2):
            y, column = corners[0] + down, corners[1] + right
            share = (1 - abs(places[0] - y)) * (1 - abs(places[1] - column))
            inside = (y >= 0) & (y < h) & (column >= 0) & (column < w)
            at = np.where(inside, y * w + column, 0).astype(np.int64).reshape(n, sets, 1, -1)
            seen += np.take_along_axis(parts, at, -1) * np.where(inside, share, 0).reshape(at.shape)
        if mask is not None:
            seen *= mask.reshape(n, sets, 1, -1)
        rows = seen.reshape(n, groups, c // groups * taps, math.prod(out))
        found = weights.reshape(groups, -1, rows.shape[2]) @ rows
        found = found.reshape(n, len(weights), *out)
        return ((found if bias is None else found + bias[:, None, None]).astype(x.dtype),)


# Axes of (taps down, taps across, rows, columns) that taps along one axis lack.
_BEHIND = ((1, 2, 3), (0, 2, 3))

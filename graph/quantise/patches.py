"""Collects what the filters of a layer see on calibration data: moments of sampled patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.grid import Grid, weight_axis
from fastrun.graph.core.model import Array, Node, Shape
from fastrun.graph.core.ops import Conv
from fastrun.graph.core.shapes import pair


@dataclass(frozen=True)
class Filters:
    """The weights of a layer as matrices, a row for each filter: (groups, filters, depth).

    `shape` is that of the weights. The depth is the number of values of a patch of one group.
    """

    node: Node
    shape: Shape

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.node.op.groups if isinstance(self.node.op, Conv) else 1

    @property
    def depth(self) -> int:
        """Values of a patch, those of one group of channels."""
        return math.prod(self._rows[1:])

    @property
    def count(self) -> int:
        """All filters, that is, output channels."""
        return self._rows[0]

    @property
    def _rows(self) -> Shape:
        """The shape of the weights with output channels first."""
        return self.shape[::-1] if weight_axis(self.node.op) else self.shape

    def matrices(self, weights: Array) -> Array:
        """The weights as matrices."""
        rows = weights.T if weight_axis(self.node.op) else weights
        return rows.reshape(self.groups, -1, self.depth)

    def weights(self, matrices: Array) -> Array:
        """Matrices as weights."""
        rows = matrices.reshape(self._rows)
        return np.ascontiguousarray(rows.T) if weight_axis(self.node.op) else rows

    def patches(self, x: Array, count: int, draw: np.random.Generator) -> Array:
        """Up to `count` patches of the layer's input, drawn at random: (patches, groups, depth)."""
        op = self.node.op
        if not isinstance(op, Conv):
            return x[draw.permutation(len(x))[:count], None]
        rank = len(op.stride)
        kernel, stride, dilation = (pair(v, 1) for v in (self.shape[2:], op.stride, op.dilation))
        begins, ends = pair(op.padding[:rank], 0), pair(op.padding[rank:], 0)
        pictures = x.reshape(*x.shape[:2], -1, x.shape[-1])
        inner = pictures.shape[2:]
        sizes = [
            (n + begin + end - (k - 1) * d - 1) // s + 1
            for n, begin, end, k, d, s in zip(
                inner, begins, ends, kernel, dilation, stride, strict=True
            )
        ]
        places = draw.permutation(len(x) * math.prod(sizes))[:count]
        n, *corner = np.unravel_index(places, (len(x), *sizes))
        found = np.empty((len(places), x.shape[1], *kernel), np.float32)
        for offset in np.ndindex(*kernel):
            at = [
                place * s + k * d - begin
                for place, s, k, d, begin in zip(
                    corner, stride, offset, dilation, begins, strict=True
                )
            ]
            outside = np.any([(i < 0) | (i >= size) for i, size in zip(at, inner, strict=True)], 0)
            y, across = (i.clip(0, size - 1) for i, size in zip(at, inner, strict=True))
            found[:, :, *offset] = pictures[n, :, y, across]
            found[outside, :, *offset] = 0
        return found.reshape(len(places), self.groups, -1)


class Moments:
    """Moments of a layer's patches, as they are and rounded to the grid of the input.

    `count` is the number of patches. If `second` is given, the second moments of rounded patches
    are collected too.
    """

    def __init__(self, filters: Filters, grid: Grid, second: bool) -> None:
        self._grid = grid
        groups, depth = filters.groups, filters.depth
        self.count = 0
        self._sum, self._rounded_sum = np.zeros((groups, depth)), np.zeros((groups, depth))
        self._squares = np.zeros((groups, depth, depth), np.float32) if second else None

    def add(self, patches: Array) -> None:
        """Count patches, of shape (patches, groups, depth)."""
        rounded = self._grid.rounded(patches).astype(np.float32)
        self.count += len(patches)
        self._sum += patches.sum(0, dtype=np.float64)
        self._rounded_sum += rounded.sum(0, dtype=np.float64)
        if self._squares is not None:
            by_group = rounded.transpose(1, 2, 0)
            self._squares += by_group @ by_group.transpose(0, 2, 1)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean patch: (groups, depth)."""
        return self._sum / self.count

    @property
    def rounded_mean(self) -> NDArray[np.float64]:
        """The mean rounded patch."""
        return self._rounded_sum / self.count

    @property
    def second(self) -> Array | None:
        """The mean products of two values of a rounded patch: (groups, depth, depth)."""
        return None if self._squares is None else self._squares / np.float32(self.count)

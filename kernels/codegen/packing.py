"""Reorder weights into panels, in the order in which the micro-kernel reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.dot import Dot, table_room
from fastrun.kernels.codegen.half import encoded, joined
from fastrun.kernels.codegen.tiling import Tiles
from fastrun.kernels.core.dtype import F32


def pack_panels(
    weights: NDArray[Any],
    groups: int,
    block: int,
    lanes: int,
    panels: list[Tiles],
    dot: Dot | None = None,
) -> NDArray[Any]:
    """Weights (oc, c/groups, kh, kw) in reading order: group, panel, term of K, output channel.

    A panel is `size` vectors of `lanes` output channels; missing channels are zero. With a `dot`
    the terms are its groups of channels, and the weights get its type, with scales in front of
    f16 (see `half`). In front of weights of a dot with an offset, or of centred ones, are the
    tables of `table_room`, as int32.

    Raises:
        ValueError: weights of a channel differ too much to be centred.
    """
    group = dot.group if dot else 1
    dtype = dot.types.weights if dot else F32
    oc, c, kh, kw = weights.shape
    per_group = weights.reshape(groups, oc // groups, c, kh, kw)
    vectors = panels[-1].start + panels[-1].size * panels[-1].count
    filled = np.zeros((groups, vectors * lanes, c, kh, kw), per_group.dtype)
    filled[:, : oc // groups] = per_group
    channels = groups * vectors * lanes
    tables = []
    if dot and dot.centred:
        middles = _middles(filled.reshape(channels, -1))
        filled = filled - middles.reshape(groups, -1, 1, 1, 1)
        tables = [middles]
    elements, front = encoded(filled.reshape(-1, c, kh, kw), dtype)
    if dot and dot.offset:
        sums = filled.reshape(channels, -1).sum(axis=1, dtype=np.int32)
        tables = [dot.offset * sums, *tables]
    if dot and tables:
        both = np.zeros((len(tables), table_room(dot, channels) // len(tables)), np.int32)
        both[:, :channels] = tables
        front = both.reshape(-1).view(np.float32)
    pieces = []
    for filters in elements.reshape(filled.shape):
        terms = np.concatenate(
            [_terms(filters[:, first : first + block], group) for first in range(0, c, block)]
        )
        for run in panels:
            for i in range(run.count):
                first = (run.start + i * run.size) * lanes
                panel = terms[:, first : first + run.size * lanes]
                if dot:
                    panel = dot.order(panel.reshape(len(terms), run.size, lanes, group))
                pieces.append(panel.reshape(-1))
    return joined(front, np.concatenate(pieces))


def _middles(weights: NDArray[Any]) -> NDArray[np.int32]:
    """For each channel (row) the number less which its weights are int8."""
    low, high = weights.min(axis=1).astype(np.int32), weights.max(axis=1).astype(np.int32)
    if (high - low > 255).any():
        raise ValueError("weights of nine bits differ by more than 255 in a channel")
    found: NDArray[np.int32] = (low + high + 1) // 2
    return found


def _terms(filters: NDArray[Any], group: int) -> NDArray[Any]:
    """(oc, channels of a block, kh, kw) -> (kh * kw * groups of channels, oc, group)."""
    oc, c, kh, kw = filters.shape
    whole = np.zeros((oc, -(-c // group) * group, kh, kw), filters.dtype)
    whole[:, :c] = filters
    ordered = whole.transpose(2, 3, 1, 0).reshape(-1, group, oc)
    return ordered.transpose(0, 2, 1)

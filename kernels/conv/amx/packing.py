"""Weights as tiles, in the order in which products read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.tiling import Tiles
from fastrun.kernels.conv.amx.schedule import Window
from fastrun.kernels.conv.amx.sums import CHANNELS, WORD
from fastrun.kernels.core.dtype import BF16, U8
from fastrun.kernels.core.layout import Array


def pack(
    weights: NDArray[Any], groups: int, window: Window, panels: Sequence[Tiles]
) -> NDArray[Any]:
    """Weights (oc, c / groups, kh, kw) as (group, panel, step of K, term, tile, word, channel).

    Steps are those of all taps of a chunk of channels, then those of the next chunk. Missing
    channels are zero.
    """
    oc, per_group = len(weights), len(weights) // groups
    if window.kernel != weights.shape[2:]:  # a row of the filter counts as channels
        weights = weights.transpose(0, 3, 1, 2).reshape(oc, window.channels, *window.kernel)
    channels, vectors = window.chunks * window.per_chunk, panels[-1].end
    filled = np.zeros((groups, vectors * CHANNELS, *window.kernel, channels), weights.dtype)
    ordered = weights.reshape(groups, per_group, window.channels, *window.kernel)
    filled[:, :per_group, ..., : window.channels] = ordered.transpose(0, 1, 3, 4, 2)
    parts = [filled] if window.dtype is U8 else split(filled, window.terms)
    word = WORD // window.dtype.bytes()
    pieces = []
    for part in parts:
        # group, tile, channel, tap, chunk, word, element
        shape = groups, vectors, CHANNELS, -1, window.chunks, window.width // WORD, word
        ordered = part.reshape(shape).transpose(0, 1, 4, 3, 5, 2, 6)
        pieces.append(ordered.reshape(groups, vectors, window.steps, -1, CHANNELS, word))
    found = []
    stacked = np.stack(pieces, axis=3)  # group, tile, step, term, word, channel, element
    for group in stacked:
        for run in panels:
            for first in range(run.start, run.end, run.size):
                panel = group[first : first + run.size]  # tile, step, term, ...
                found.append(panel.transpose(1, 2, 0, 3, 4, 5).reshape(-1))
    return np.concatenate(found)


def split(values: Array, terms: int) -> list[NDArray[np.uint16]]:
    """Float32 numbers as sums of so many of bf16, the largest first."""
    found, rest = list[NDArray[np.uint16]](), values
    for _ in range(terms):
        found.append(BF16.encode(rest))
        rest = rest - BF16.decode(found[-1])
    return found

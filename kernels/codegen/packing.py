"""Reorder weights into panels, in the order in which the micro-kernel reads them."""

from __future__ import annotations

import numpy as np

from fastrun.kernels.codegen.tiling import Tiles
from fastrun.kernels.core.layout import Array


def pack_panels(weights: Array, groups: int, block: int, lanes: int, panels: list[Tiles]) -> Array:
    """Weights (oc, c/groups, kh, kw) in reading order: group, panel, term of K, output channel.

    A panel is `size` vectors of `lanes` output channels; missing channels are zero.
    """
    oc, c, kh, kw = weights.shape
    per_group = weights.reshape(groups, oc // groups, c, kh, kw)
    vectors = panels[-1].start + panels[-1].size * panels[-1].count
    filled = np.zeros((groups, vectors * lanes, c, kh, kw), np.float32)
    filled[:, : oc // groups] = per_group
    pieces = []
    for group in filled:
        terms = np.concatenate(
            [
                # (oc, channels of the block, kh, kw) -> (kh, kw, channels, oc)
                group[:, first : first + block].transpose(2, 3, 1, 0).reshape(-1, vectors * lanes)
                for first in range(0, c, block)
            ]
        )
        for run in panels:
            for i in range(run.count):
                first = (run.start + i * run.size) * lanes
                pieces.append(terms[:, first : first + run.size * lanes].reshape(-1))
    return np.concatenate(pieces)

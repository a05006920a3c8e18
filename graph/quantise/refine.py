"""Chooses the ranges of tensors by what rounding them does to the outputs of the network.

The squared error of a tensor says nothing of what its values are for: a few large ones that are cut
off may matter most, or not at all. So each range is widened and narrowed while the network's
outputs come closer to those in float32, on examples and with nothing else rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import monotonic

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Graph
from fastrun.graph.quantise.effects import Effects
from fastrun.graph.quantise.observe import Batch, Histogram
from fastrun.graph.quantise.progress import Progress
from fastrun.graph.quantise.ranges import grid_between

EXAMPLES = 8
"""Examples whose outputs are compared, at most."""

# A range is changed if its loss is a larger part of those of all, by the first examples.
_SHARE, _FIRST = 0.004, 2
# Both ends, or one of them, become so many times as far from zero.
_FACTORS = (0.6, 0.75, 0.87, 1.15, 1.35, 1.6, 2.0)
# A lower loss that is worth another range: examples are few.
_WORTH = 0.9


def refined(
    graph: Graph,
    groups: Sequence[Sequence[str]],
    histograms: Sequence[Histogram],
    grids: Sequence[Grid],
    data: Sequence[Batch],
    progress: Progress,
    ends: float = math.inf,
) -> list[Grid]:
    """Other grids for the tensors of each group, of which less is lost in the outputs.

    The groups that lose most come first, until the moment `ends` of `time.monotonic`.

    Raises:
        UnsupportedError: a node cannot be run.
    """
    found = [*grids]
    pairs = zip(groups, grids, strict=True)
    advice = {name: replace(grid, exact=False) for names, grid in pairs for name in names}
    effects = Effects(replace(graph, grids=advice), [*advice], data[:: -(-len(data) // EXAMPLES)])

    def loss(i: int, grid: Grid, examples: int | None) -> float:
        return effects.loss(dict.fromkeys(groups[i], grid), examples)

    late_first = sorted(range(len(groups)), key=lambda i: -min(map(effects.step, groups[i])))
    losses = {i: loss(i, grids[i], _FIRST) for i in late_first if monotonic() < ends}
    least = _SHARE * sum(losses.values())
    chosen = sorted((i for i in losses if losses[i] > least), key=lambda i: -losses[i])
    for done, i in enumerate(chosen):
        if monotonic() > ends:
            break
        progress("ranges by what they do to the outputs", done, len(chosen))
        found[i] = _best(grids[i], histograms[i], partial(loss, i))
    return found


def _best(grid: Grid, values: Histogram, loss: Callable[[Grid, int | None], float]) -> Grid:
    """The grid of the least loss among those of other ranges, both ends first, then each alone.

    What the first examples show to be much worse is not looked at on all of them.
    """
    best, least, first = grid, _WORTH * loss(grid, None), loss(grid, _FIRST)
    tried = {_ends(grid)}
    for down, up in ((1, 1), (1, 0), (0, 1)):
        low, high = _ends(best)
        for factor in _FACTORS:
            below, above = max(low * factor**down, values.low), min(high * factor**up, values.high)
            other = grid_between(below, above)
            if _ends(other) in tried:
                continue
            tried.add(_ends(other))
            other_first = loss(other, _FIRST)
            if other_first < 2 * first and (found := loss(other, None)) < least:
                best, least, first = other, found, other_first
    return best


def _ends(grid: Grid) -> tuple[float, float]:
    low, high = ((bound - int(grid.zero)) * float(grid.scale) for bound in grid.dtype.range)
    return low, high

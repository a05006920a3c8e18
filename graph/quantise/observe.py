"""Collects the values that tensors take on calibration data, as histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu

Batch = Mapping[str, NDArray[np.float32]]

# Bins of a histogram: 16 to 32 for each step of an 8-bit grid over all values.
_BINS = 8192
# Values of a tensor that one batch adds to its histogram.
_VALUES = 1 << 17
# Batches that are looked at even if there is no time.
_LEAST = 8


class Histogram:
    """How often a tensor takes which values; `low` and `high` are the least and the largest.

    The bins are equally wide and lie around zero. When a value lies outside, pairs of bins become
    one, so that the histogram covers twice the range.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.counts = np.zeros(_BINS, np.int64)
        self._limit = 0.0  # the bins cover -limit to limit

    @property
    def values(self) -> NDArray[np.float64]:
        """The values in the middle of the bins."""
        width = 2 * self._limit / _BINS
        return np.linspace(-self._limit + width / 2, self._limit - width / 2, _BINS)

    def add(self, values: Array) -> None:
        """Count values: all of them, or some that are drawn at random if there are many."""
        flat = values.reshape(-1)
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        if flat.size > _VALUES:
            # The same places for every batch of a shape.
            flat = flat[np.random.default_rng(flat.size).integers(0, flat.size, _VALUES)]
        self._cover(max(-self.low, self.high))
        if self._limit:
            at = ((flat + self._limit) * (_BINS / (2 * self._limit))).astype(np.int64)
            self.counts += np.bincount(at.clip(0, _BINS - 1), minlength=_BINS)

    def _cover(self, largest: float) -> None:
        if not self._limit:
            self._limit = largest
        while largest > self._limit:
            quarter, pairs = _BINS // 4, self.counts.reshape(-1, 2).sum(1)
            self.counts = np.pad(pairs, quarter)
            self._limit *= 2


class Observer:
    """Runs a network in float32, by heuristics, to give the values of the tensors `names`.

    Raises:
        UnsupportedError: a node cannot be run.
    """

    def __init__(self, graph: Graph, names: Iterable[str]) -> None:
        self._names = tuple(dict.fromkeys(names))
        computed = [name for name in self._names if name not in graph.inputs]
        wider = replace(graph, outputs=tuple(dict.fromkeys((*graph.outputs, *computed))))
        cpu = Cpu.host()
        plan, arrangement = make_plan(wider, heuristic_choices(cpu), cpu)
        self._executable = Executable.of(arrangement, cpu, 1, plan)

    def __call__(self, batch: Batch) -> dict[str, Array]:
        """The values by name.

        Raises:
            InputError: the batch does not fit the inputs, or a value is not finite.
        """
        known = {**batch, **self._executable.run(batch)}
        for name in self._names:
            if not np.isfinite(known[name]).all():
                raise InputError(
                    f"calibration: {name!r} has values that are not finite in float32: "
                    "look for the cause in the calibration data or in the model"
                )
        return {name: known[name] for name in self._names}


def observe(
    graph: Graph, data: Iterable[Batch], groups: Sequence[Sequence[str]], ends: float = math.inf
) -> tuple[list[Histogram], int]:
    """A histogram of all values of the tensors of each group, and of how many batches they are.

    Those of the data that are `timely`. Raises as `Observer`.
    """
    found, count = [Histogram() for _ in groups], 0
    observer = Observer(graph, chain.from_iterable(groups))
    for batch in timely(data, ends):
        values, count = observer(batch), count + 1
        for histogram, names in zip(found, groups, strict=True):
            for name in names:
                histogram.add(values[name])
    return found, count


def timely(data: Iterable[Batch], ends: float) -> Iterator[Batch]:
    """The batches until the moment `ends` of `time.monotonic`, but at least eight."""
    for i, batch in enumerate(data):
        if i >= _LEAST and monotonic() > ends:
            return
        yield batch

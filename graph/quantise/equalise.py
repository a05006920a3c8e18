"""Evens out the ranges of channels, where layers on both sides can make up for it.

A tensor has one grid for all its channels, so a channel of small values has few steps. `channels`
says which of them can be divided by a factor that the weights of layers make up for: the float32
network stays the same (Nagel et al., 2019, "Data-free quantization through weight equalization and
bias correction"). Weights have a scale for each output channel, so for the layers in front the
factors cost nothing. For those behind, larger weights of some input channels leave fewer steps to
the others. So the ranges of channels and weights share the difference (Xiao et al., 2023,
"SmoothQuant"), in the proportion for which the expected error is least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.ops import Binary
from fastrun.graph.core.shapes import is_depthwise
from fastrun.graph.quantise.channels import FIXED, Channels, Labels, linked
from fastrun.graph.quantise.observe import Batch, Observer, timely
from fastrun.graph.quantise.scope import Scope

Numbers = NDArray[np.float64]

# The smallest factor. A channel that was hardly used may have larger values on other data.
_LEAST = 1 / 16
# Powers of the ranges of channels and of weights that factors may have.
_POWERS = [(a, b) for a in (0.25, 0.5, 0.75, 1.0) for b in (0.0, 0.25, 0.5)]
# A lower expected error that is worth other weights.
_WORTH = 0.95
# Steps of activations, and the largest integer of weights.
_STEPS, _LARGEST = 255, 127


@dataclass(frozen=True)
class _Reader:
    """A layer or a sum that reads channels, and what rounding these and its weights adds to it.

    `labels` are those of the channels, `squares` their mean squares. `gains` are the sums of the
    squared weights that each of them meets. `weights` (filters, channels) are the largest
    magnitudes over a filter's `taps`; None where their rounding does not depend on factors, as in
    a depthwise layer or a sum.
    """

    labels: Labels
    squares: Numbers
    gains: Numbers
    weights: Numbers | None = None
    taps: int = 1

    def noise(self, factors: Numbers, step: float) -> float:
        """The expected squared error relative to the output, but for a constant.

        `factors` divide channels, by their labels; `step` is that of the tensor's grid then.
        """
        own = factors[self.labels]
        noise = step**2 * float(np.dot(own**2, self.gains))
        if self.weights is not None:
            steps = (self.weights * own).max(1) / _LARGEST
            noise += float(np.dot(steps, steps)) * self.taps * float((self.squares / own**2).sum())
        return noise / max(float(np.dot(self.gains, self.squares)), 1e-30)


def equalised(scope: Scope, data: Sequence[Batch], ends: float = math.inf) -> Graph:
    """The graph with other weights and biases in the same places, which computes the same.

    `timely` data count. Raises as `Observer`.
    """
    graph, channels = scope.graph, linked(scope)
    groups = [[x for x in group if channels.of(x) is not None] for group in scope.groups]
    groups = [group for group in groups if group]
    if not groups:
        return graph
    names = [name for group in groups for name in group]
    peaks, squares = _observed(graph, names, data, ends)
    readers = {name: [*_readers(graph, channels, name, squares[name])] for name in names}
    factors = _factors(channels, groups, peaks, readers)
    return _changed(graph, channels, factors) if (factors != 1).any() else graph


def _observed(
    graph: Graph, names: Sequence[str], data: Sequence[Batch], ends: float
) -> tuple[dict[str, Numbers], dict[str, Numbers]]:
    """The largest magnitude and the mean square of each channel."""
    counts = {name: graph.shape(name)[1] for name in names}
    peaks = {name: np.zeros(count) for name, count in counts.items()}
    squares = {name: np.zeros(count) for name, count in counts.items()}
    observer = Observer(graph, names)
    batches = 0
    for batch in timely(data, ends):
        batches += 1
        for name, values in observer(batch).items():
            others = tuple(i for i in range(values.ndim) if i != 1)
            peaks[name] = np.maximum(peaks[name], np.abs(values).max(others))
            squares[name] += np.square(values).mean(others)
    return peaks, {name: sums / batches for name, sums in squares.items()}


def _readers(graph: Graph, channels: Channels, name: str, squares: Numbers) -> Iterator[_Reader]:
    """The layers and sums that read a tensor."""
    labels, layers = channels.labels[name], {node.output for node in channels.layers}
    for node in graph.readers.get(name, ()):
        if node.output not in layers or node.inputs[0] != name:
            if node.output in layers or isinstance(node.op, Binary):
                yield _Reader(labels, squares, np.ones(len(labels)))
            continue
        weights = graph.constants[node.inputs[1]].astype(np.float64)
        flat = weights.reshape(*weights.shape[:2], -1)
        if is_depthwise(graph, node):
            yield _Reader(labels, squares, (flat**2).sum((1, 2)))
        else:
            gains, largest = (flat**2).sum((0, 2)), np.abs(flat).max(2)
            yield _Reader(labels, squares, gains, largest, flat.shape[2])


def _factors(
    channels: Channels,
    groups: Sequence[Sequence[str]],
    peaks: Mapping[str, Numbers],
    readers: Mapping[str, Sequence[_Reader]],
) -> Numbers:
    """The factor of each label: for each set of channels that meet, those of the least error."""
    names = [name for group in groups for name in group]
    count = 1 + max(int(channels.labels[name].max()) for name in names)
    ranges, used, parts = np.zeros(count), np.zeros(count), np.arange(count)
    for name in names:
        labels = channels.labels[name]
        np.maximum.at(ranges, labels, peaks[name])
        for reader in readers[name]:
            if reader.weights is not None:
                np.maximum.at(used, labels, reader.weights.max(0))
        met = np.unique(parts[labels[labels != FIXED]])
        parts[np.isin(parts, met)] = met[0]
    factors = np.ones(count)
    for part in np.unique(parts[np.unique(np.concatenate([channels.labels[x] for x in names]))]):
        if part == FIXED:
            continue
        members = np.flatnonzero(parts == part)
        own = [g for g in groups if any(np.isin(channels.labels[x], members).any() for x in g)]

        def noise(tried: Numbers, own: Sequence[Sequence[str]] = own) -> float:
            found = 0.0
            for group in own:
                step = max(float((peaks[x] / tried[channels.labels[x]]).max()) for x in group)
                found += sum(r.noise(tried, step / _STEPS) for x in group for r in readers[x])
            return found

        least = _WORTH * noise(factors)
        for a, b in _POWERS:
            tried = factors.copy()
            weighty = np.where(used[members] > 0, used[members], 1.0)
            tried[members] = _relative(ranges[members] ** a / weighty**b)
            if (error := noise(tried)) < least:
                least, best = error, tried
                factors = best
    return factors


def _relative(ranges: Numbers) -> Numbers:
    """Factors for ranges, relative to the largest; 1 for channels that are always 0."""
    relative = ranges / (ranges.max() or 1.0)
    return np.where(relative > 0, relative.clip(_LEAST, 1.0), 1.0)


def _changed(graph: Graph, channels: Channels, factors: Numbers) -> Graph:
    """The graph whose channels are divided by the factors of their labels."""
    constants: dict[str, Array] = dict(graph.constants)
    for node in channels.layers:
        weights = constants[node.inputs[1]]
        ones = (1,) * (weights.ndim - 2)
        behind = factors[channels.labels[node.output]]
        before = factors[channels.labels[node.inputs[0]]]
        if is_depthwise(graph, node):
            scaled = weights * (before / behind).reshape(-1, 1, *ones)
        elif len(before) == weights.shape[1]:
            scaled = weights * before.reshape(1, -1, *ones) / behind.reshape(-1, 1, *ones)
        else:  # in groups, so that its input is fixed
            scaled = weights / behind.reshape(-1, 1, *ones)
        constants[node.inputs[1]] = scaled.astype(np.float32)
        if bias := node.input(2):
            values = constants[bias]
            flat = values.reshape(-1) / behind
            constants[bias] = flat.reshape(values.shape).astype(np.float32)
    return replace(graph, constants=constants)

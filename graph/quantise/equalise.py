"""Evens out the ranges of channels between a depthwise convolution and its neighbours.

A tensor has one grid for all its channels, so a channel of small values has few steps. If nothing
but a layer reads the tensor, each channel can be divided by a factor that the layer's weights make
up for: the float32 network stays the same (Nagel et al., 2019, "Data-free quantization through
weight equalization and bias correction"). Weights of a depthwise layer have a scale for each
channel, so for them the factors cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.model import Array, Graph, Node
from fastrun.graph.core.ops import Conv
from fastrun.graph.core.shapes import is_depthwise
from fastrun.graph.quantise.observe import Batch, Observer, timely
from fastrun.graph.quantise.scope import Scope
from fastrun.kernels.core.problem import slope

# The smallest factor. A channel that was hardly used may have larger values on other data.
_LEAST = 1 / 16


@dataclass(frozen=True)
class _Pair:
    """Two convolutions one behind the other, with nothing between them."""

    first: Node
    second: Node


def equalised(scope: Scope, data: Sequence[Batch], ends: float = math.inf) -> Graph:
    """The graph with other weights and biases in the same places, which computes the same.

    Pairs are changed if one of the two is depthwise and the activation between them is linear for
    positive factors: none, ReLU, or leaky ReLU. `timely` data count. Raises as `Observer`.
    """
    graph, pairs = scope.graph, [*_pairs(scope)]
    if not pairs:
        return graph
    peaks = {pair.first.output: np.zeros(0) for pair in pairs}
    observer = Observer(graph, peaks)
    for batch in timely(data, ends):
        for name, values in observer(batch).items():
            peak = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != 1))
            peaks[name] = np.maximum(peaks[name], peak) if peaks[name].size else peak
    constants = dict(graph.constants)
    for pair in pairs:
        _equalise(graph, constants, pair, peaks[pair.first.output])
    return replace(graph, constants=constants)


def _pairs(scope: Scope) -> Iterator[_Pair]:
    graph = scope.graph
    layers = {node.output for node in scope.layers}
    for first in scope.layers:
        readers = graph.readers.get(first.output, ())
        if len(readers) != 1 or graph.uses[first.output] != 1 or readers[0].output not in layers:
            continue
        second = readers[0]
        if not isinstance(first.op, Conv) or not isinstance(second.op, Conv) or first.input(3):
            continue
        depthwise = is_depthwise(graph, first) or is_depthwise(graph, second)
        dense = is_depthwise(graph, second) or second.op.groups == 1
        linear = first.op.activation in ("", "relu") or slope(first.op.activation) is not None
        own = all(graph.uses[x] == 1 for x in (*first.inputs[1:3], second.inputs[1]) if x)
        if depthwise and dense and linear and own and second.inputs[0] == first.output:
            yield _Pair(first, second)


def _equalise(graph: Graph, constants: dict[str, Array], pair: _Pair, peaks: Array) -> None:
    """Divide the channels between two convolutions by factors; `peaks` are their largest values."""
    first, second = pair.first, pair.second
    weights = constants[second.inputs[1]]
    if is_depthwise(graph, second):
        factors = _factors(peaks)
        wide = factors.reshape(-1, *(1,) * (weights.ndim - 1))
    else:
        used = np.abs(weights).max(axis=tuple(i for i in range(weights.ndim) if i != 1))
        # The tensor and the weights share the difference.
        factors = _factors(np.sqrt(peaks / np.where(used > 0, used, 1)))
        wide = factors.reshape(1, -1, *(1,) * (weights.ndim - 2))
    constants[second.inputs[1]] = (weights * wide).astype(np.float32)
    for name in filter(None, first.inputs[1:3]):
        values = constants[name]
        flat = values.reshape(len(factors), -1) / factors[:, None]
        constants[name] = flat.reshape(values.shape).astype(np.float32)


def _factors(ranges: Array) -> NDArray[np.float64]:
    """The ranges relative to the largest; 1 for channels that are always 0."""
    relative = ranges.astype(np.float64) / (ranges.max() or 1.0)
    return np.where(relative > 0, relative.clip(_LEAST, 1.0), 1.0)

"""Quantises a network: what is quantised, the grids of activations, the weights layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Array, Graph, Node, unused
from fastrun.graph.quantise.equalise import equalised
from fastrun.graph.quantise.observe import Batch, Observer, observe
from fastrun.graph.quantise.patches import Filters, Moments
from fastrun.graph.quantise.ranges import activation_grid
from fastrun.graph.quantise.rounding import compensated, fitted_scales, nearest, whole_scales
from fastrun.graph.quantise.scope import Scope, find_scope
from fastrun.kernels.core.dtype import S8

BITS = (8, 7, 6, 5, 4)
ROUNDINGS = ("gptq", "nearest")

# Patches of a layer that are looked at, over all calibration data.
_PATCHES = 8192
# Second moments of deeper filters would fill the memory: their weights are rounded to nearest.
_DEEPEST = 8192
# Numbers of second moments that are collected at a time.
_NUMBERS = 1 << 26
# A bias is at most so many steps, so that sums of products can be added within 32 bits.
_LARGEST_BIAS = 2**28
# Products of two scales stay normal float32 numbers.
_LEAST_SCALE = 2.0**-100


def calibrated(graph: Graph, data: Sequence[Batch], ranges: str = "mse") -> Graph:
    """The optimised graph with advised grids for all tensors that may be rounded to 8 bits.

    Weights have grids too, to which they are not rounded yet.

    Raises:
        UnsupportedError: there is nothing to quantise, or a node cannot be run.
        InputError: `data` does not fit the inputs, or leads to values that are not finite.
    """
    scope = find_scope(graph)
    grids = _activation_grids(scope, data, ranges)
    for node in scope.layers:
        filters = Filters(node, scope.graph.shape(node.inputs[1]))
        weights = filters.matrices(scope.graph.constants[node.inputs[1]])
        scales = _safe(whole_scales(weights, 127), 0.0, grids[node.inputs[0]])
        grids[node.inputs[1]] = Grid(scales.reshape(-1), 0, S8)
    return replace(scope.graph, grids={x: replace(g, exact=False) for x, g in grids.items()})


def quantise(
    graph: Graph,
    data: Sequence[Batch],
    *,
    bits: int = 8,
    ranges: str = "mse",
    rounding: str = "gptq",
    keep: Collection[str] = (),
) -> Graph:
    """An optimised graph in 8-bit integers, with weights of `bits` bits.

    `data` are inputs like those in use. Ranges of activations are chosen by `ranges`, one of
    `RANGES`; weights are rounded by `rounding`, one of `ROUNDINGS`. Biases are corrected so that
    the mean outputs of layers stay as they are (Nagel et al., 2019, "Data-free quantization").
    The nodes named in `keep` stay in float32. With fewer than 7 bits the first and the last
    layers keep 8.

    Raises:
        GraphError: there is no node of a name in `keep`.
        UnsupportedError: there is nothing to quantise, or a node cannot be run.
        InputError: `data` does not fit the inputs, or leads to values that are not finite.
    """
    scope = find_scope(graph, keep)
    scope = replace(scope, graph=equalised(scope, data))
    grids = _activation_grids(scope, data, ranges)
    edit = _Layers(scope.graph, grids)
    for layers in _portions(scope):
        moments = _moments(scope.graph, layers, data, grids, rounding == "gptq")
        for node in layers:
            own = 8 if bits < 7 and node.output in scope.ends else bits
            edit.quantise(node, moments[node.output], own)
    return edit.done()


def _activation_grids(scope: Scope, data: Sequence[Batch], ranges: str) -> dict[str, Grid]:
    histograms = observe(scope.graph, data, scope.groups)
    return {
        name: activation_grid(histogram, ranges)
        for names, histogram in zip(scope.groups, histograms, strict=True)
        for name in names
    }


def _portions(scope: Scope) -> Iterator[list[Node]]:
    """The layers, so many at a time that their second moments fit into the memory."""
    portion, numbers = list[Node](), 0
    for node in scope.layers:
        filters = Filters(node, scope.graph.shape(node.inputs[1]))
        own = filters.groups * min(filters.depth, _DEEPEST) ** 2
        if portion and numbers + own > _NUMBERS:
            yield portion
            portion, numbers = [], 0
        portion.append(node)
        numbers += own
    yield portion


def _moments(
    graph: Graph,
    layers: Sequence[Node],
    data: Sequence[Batch],
    grids: dict[str, Grid],
    second: bool,
) -> dict[str, Moments]:
    """The moments of the patches that layers see in float32, by the layers' outputs."""
    found, filters = dict[str, Moments](), dict[str, Filters]()
    for node in layers:
        own = filters[node.output] = Filters(node, graph.shape(node.inputs[1]))
        grid = grids[node.inputs[0]]
        found[node.output] = Moments(own, grid, second and own.depth <= _DEEPEST)
    observer = Observer(graph, [node.inputs[0] for node in layers])
    each = -(-_PATCHES // len(data))
    draw = np.random.default_rng(0)
    for batch in data:
        values = observer(batch)
        for node in layers:
            x = values[node.inputs[0]]
            found[node.output].add(filters[node.output].patches(x, each, draw))
    return found


class _Layers:
    """A graph whose layers are quantised one after another."""

    def __init__(self, graph: Graph, grids: dict[str, Grid]) -> None:
        self._graph = graph
        self._grids = dict(grids)
        self._constants = dict(graph.constants)
        self._nodes: dict[str, Node] = {}

    def quantise(self, node: Node, moments: Moments, bits: int) -> None:
        """Round the weights and the bias of a layer, and correct the bias."""
        filters = Filters(node, self._graph.shape(node.inputs[1]))
        weights = filters.matrices(self._graph.constants[node.inputs[1]])
        count = len(weights) * weights.shape[1]
        bias = np.zeros(count)
        if node.input(2):
            bias += self._graph.constants[node.inputs[2]].reshape(-1)
        x, largest, second = self._grids[node.inputs[0]], 2 ** (bits - 1) - 1, moments.second
        least = np.abs(bias).reshape(weights.shape[:2])
        if second is None:
            scales = _safe(whole_scales(weights, largest), least, x)
            integers = nearest(weights, scales, largest)
        else:
            scales = _safe(fitted_scales(weights, second, largest), least, x)
            integers = compensated(weights, scales, second, moments.count, largest)
        rounded = (integers * scales[..., None].astype(np.float64)).astype(np.float32)
        bias += np.einsum("gok,gk->go", weights, moments.mean).reshape(-1)
        bias -= np.einsum("gok,gk->go", rounded, moments.rounded_mean).reshape(-1)
        steps = np.multiply(x.scale, scales.reshape(-1), dtype=np.float64).astype(np.float32)
        corrected = (np.rint(bias / steps) * steps).astype(np.float32)
        names = (
            self._put(node.inputs[1], f"{node.name}.weights", filters.weights(rounded)),
            self._put(node.input(2), f"{node.name}.bias", corrected),
        )
        self._grids[names[0]] = Grid(scales.reshape(-1), 0, S8)
        inputs = (node.inputs[0], *names, *node.inputs[3:])
        self._nodes[node.output] = replace(node, inputs=inputs)

    def done(self) -> Graph:
        """The quantised graph."""
        nodes = tuple(self._nodes.get(node.output, node) for node in self._graph.nodes)
        return self._graph.with_nodes(nodes, self._graph.tensors, self._constants, self._grids)

    def _put(self, old: str, name: str, values: Array) -> str:
        """Add a constant in the place of an old one, whose name it gets if nothing else reads it.

        Returns its name.
        """
        if not old or self._graph.uses[old] > 1:
            old = unused(name, self._constants, self._graph.tensors)
        self._constants[old] = values
        return old


def _safe(scales: Array, bias: Array | float, x: Grid) -> NDArray[np.float32]:
    """Scales large enough that biases fit into 32 bits, and with that of x into float32."""
    least = np.maximum(np.abs(bias) / _LARGEST_BIAS, _LEAST_SCALE) / x.scale
    enough: NDArray[np.float32] = np.maximum(scales, least).astype(np.float32)
    return enough

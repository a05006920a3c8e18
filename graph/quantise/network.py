"""Quantises a network: what is quantised, the grids of activations, the weights layer by layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from fastrun.graph.core.advised import Advised
from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Array, Graph, Node, unused
from fastrun.graph.quantise.control import close_enough
from fastrun.graph.quantise.equalise import equalised
from fastrun.graph.quantise.observe import Batch, Observer, observe
from fastrun.graph.quantise.patches import Filters, Moments
from fastrun.graph.quantise.progress import Progress, silent
from fastrun.graph.quantise.ranges import RANGES, activation_grid
from fastrun.graph.quantise.refine import refined
from fastrun.graph.quantise.rounding import compensated, fitted_scales, nearest, whole_scales
from fastrun.graph.quantise.scope import Scope, find_scope
from fastrun.kernels.core.dtype import S8

BITS = (8, 7, 6, 5, 4)
ROUNDINGS = ("gptq", "nearest")
REFINED = "outputs"
"""The choice of ranges by what they do to the outputs of the network."""
CHOICES = (*RANGES, REFINED)
"""The names of ways to choose ranges."""

# Patches of a layer that are looked at, over all calibration data.
_PATCHES = 8192
# Second moments of deeper filters would fill the memory: their weights are rounded to nearest.
_DEEPEST = 8192
# Numbers of second moments that are collected at a time.
_NUMBERS = 1 << 26
# A bias is at most so many steps, so that sums of products can be added within 32 bits.
_LARGEST_BIAS = 2**28
# Shares of the time for calibration after which even channels must be known, then ranges, then
# better ones.
_EVEN, _RANGES, _REFINED = 0.15, 0.4, 0.65
# Products of two scales stay normal float32 numbers.
_LEAST_SCALE = 2.0**-100


def calibrated(
    graph: Graph,
    data: Sequence[Batch],
    bits: Sequence[int] = (8,),
    progress: Progress = silent,
    seconds: float = math.inf,
) -> Advised:
    """The optimised network with advised grids for all tensors that may be rounded to 8 bits.

    Weights are rounded to each of these numbers of bits, the largest first, as by `quantise`; to
    the nearest number if none has less than 8, where GPTQ gains nothing and takes longest. The
    first of the data are used, as many as `seconds` allow and at least eight.

    Raises:
        UnsupportedError: there is nothing to quantise, or a node cannot be run.
        InputError: `data` does not fit the inputs, or leads to values that are not finite.
    """
    scope, grids, used = _prepared(find_scope(graph), data, REFINED, progress, seconds)
    data = data[:used]
    edits = {b: _Layers(scope.graph, grids) for b in bits}
    _round(scope, data, grids, edits, min(bits) < 8, progress)
    return scope.advised({b: edit.done() for b, edit in edits.items()})


def quantise(
    graph: Graph,
    data: Sequence[Batch],
    *,
    bits: int = 8,
    ranges: str = REFINED,
    rounding: str = "gptq",
    keep: Collection[str] = (),
    min_sqnr: float = -math.inf,
    progress: Progress = silent,
) -> Graph:
    """An optimised graph in 8-bit integers, with weights of `bits` bits.

    `data` are inputs like those in use. Ranges of activations are chosen by `ranges`, one of
    `CHOICES`; weights are rounded by `rounding`, one of `ROUNDINGS`. Biases are corrected so that
    the mean outputs of layers stay as they are (Nagel et al., 2019, "Data-free quantization").
    The nodes named in `keep` stay in float32, and so many others that each output's signal to
    quantisation noise ratio on the data is at least `min_sqnr` decibels. With fewer than 7 bits the
    first and the last layers keep 8.

    Raises:
        GraphError: there is no layer of a name in `keep`.
        UnsupportedError: there is nothing to quantise, no layer can be in integers with `min_sqnr`,
            or a node cannot be run.
        InputError: `data` does not fit the inputs, or leads to values that are not finite.
    """
    scope, grids, _ = _prepared(find_scope(graph, keep), data, ranges, progress)
    edit = _Layers(scope.graph, grids)
    _round(scope, data, grids, {bits: edit}, rounding == "gptq", progress)
    if min_sqnr == -math.inf:
        return edit.done()
    return close_enough(graph, scope, edit.done(), data, min_sqnr, progress)


def _prepared(
    scope: Scope,
    data: Sequence[Batch],
    ranges: str,
    progress: Progress,
    seconds: float = math.inf,
) -> tuple[Scope, dict[str, Grid], int]:
    """The scope with even channels and constants of each layer's own, and its tensors' grids.

    Also of how many of the data the grids are.
    """
    begin = monotonic()
    progress("ranges of tensors", 0, 1)
    scope = _with_own_constants(scope)
    scope = replace(scope, graph=equalised(scope, data, begin + _EVEN * seconds))
    graph, groups = scope.graph, scope.groups
    histograms, used = observe(graph, data, groups, begin + _RANGES * seconds)
    refining = ranges == REFINED
    found = [activation_grid(x, "mse" if refining else ranges) for x in histograms]
    if refining:
        ends = begin + _REFINED * seconds
        found = refined(graph, groups, histograms, found, data[:used], progress, ends)
    own = zip(groups, found, strict=True)
    return scope, {name: grid for names, grid in own for name in names}, used


def _with_own_constants(scope: Scope) -> Scope:
    """The scope of a graph in which each layer has weights and a bias that nothing else reads."""
    graph, layers = scope.graph, {node.output: node for node in scope.layers}
    constants, tensors = dict(graph.constants), dict(graph.tensors)

    def own(old: str, name: str, values: Array) -> str:
        if old and graph.uses[old] == 1:
            return old
        new = unused(name, constants, tensors)
        constants[new] = values
        return new

    for output, node in layers.items():
        filters = Filters(node, graph.shape(node.inputs[1]))
        old = node.inputs[1], node.input(2)
        bias = np.zeros(filters.count, np.float32) if not old[1] else constants[old[1]]
        weights = own(old[0], f"{node.name}.weights", constants[old[0]])
        inputs = node.inputs[0], weights, own(old[1], f"{node.name}.bias", bias), *node.inputs[3:]
        layers[output] = replace(node, inputs=inputs)
    nodes = tuple(layers.get(node.output, node) for node in graph.nodes)
    graph = graph.with_nodes(nodes, tensors, constants, graph.grids)
    return replace(scope, graph=graph, layers=[*layers.values()])


def _round(
    scope: Scope,
    data: Sequence[Batch],
    grids: Mapping[str, Grid],
    edits: Mapping[int, _Layers],
    compensating: bool,
    progress: Progress,
) -> None:
    """Round the weights of all layers to the bits of each edit."""
    done, doing = 0, f"weights rounded{' by GPTQ' if compensating else ''}, layer"
    for layers in _portions(scope):
        progress(doing, done, len(scope.layers))
        moments = _moments(scope.graph, layers, data, grids, compensating, progress)
        for node in layers:
            progress(doing, done, len(scope.layers))
            for bits, edit in edits.items():
                own = 8 if bits < 7 and node.output in scope.ends else bits
                edit.quantise(node, moments[node.output], own)
            done += 1


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
    grids: Mapping[str, Grid],
    second: bool,
    progress: Progress,
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
    for i, batch in enumerate(data):
        progress("what layers see, batch", i, len(data))
        values = observer(batch)
        for node in layers:
            x = values[node.inputs[0]]
            found[node.output].add(filters[node.output].patches(x, each, draw))
    return found


class _Layers:
    """A graph whose layers are quantised one after another."""

    def __init__(self, graph: Graph, grids: Mapping[str, Grid]) -> None:
        self._graph = graph
        self._grids = dict(grids)
        self._constants = dict(graph.constants)

    def quantise(self, node: Node, moments: Moments, bits: int) -> None:
        """Round the weights and the bias of a layer, and correct the bias."""
        filters = Filters(node, self._graph.shape(node.inputs[1]))
        x, weights, bias = node.inputs[:3]
        exact = filters.matrices(self._graph.constants[weights])
        offsets = self._graph.constants[bias].reshape(-1).astype(np.float64)
        grid, largest, second = self._grids[x], 2 ** (bits - 1) - 1, moments.second
        least = np.abs(offsets).reshape(exact.shape[:2])
        if second is None:
            scales = _safe(whole_scales(exact, largest), least, grid)
            integers = nearest(exact, scales, largest)
        else:
            scales = _safe(fitted_scales(exact, second, largest), least, grid)
            integers = compensated(exact, scales, second, moments.count, largest)
        rounded = (integers * scales[..., None].astype(np.float64)).astype(np.float32)
        offsets += np.einsum("gok,gk->go", exact, moments.mean).reshape(-1)
        offsets -= np.einsum("gok,gk->go", rounded, moments.rounded_mean).reshape(-1)
        steps = np.multiply(grid.scale, scales.reshape(-1), dtype=np.float64).astype(np.float32)
        corrected = (np.rint(offsets / steps) * steps).astype(np.float32)
        self._constants[weights] = filters.weights(rounded)
        self._constants[bias] = corrected.reshape(self._graph.constants[bias].shape)
        self._grids[weights] = Grid(scales.reshape(-1), 0, S8)

    def done(self) -> Graph:
        """The quantised graph."""
        return replace(self._graph, constants=self._constants, grids=self._grids)


def _safe(scales: Array, bias: Array | float, x: Grid) -> NDArray[np.float32]:
    """Scales large enough that biases fit into 32 bits, and with that of x into float32."""
    least = np.maximum(np.abs(bias) / _LARGEST_BIAS, _LEAST_SCALE) / x.scale
    enough: NDArray[np.float32] = np.maximum(scales, least).astype(np.float32)
    return enough

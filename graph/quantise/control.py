"""Lets layers stay in float32 until the outputs of a quantised network are close enough to it.

What integers in a layer do to the outputs is measured on examples with nothing else rounded. Those
layers stay first that lose most for the time that integers save. How many of them stay is found by
bisection: each time the whole network is compared with float32 on all calibration data. NNCF and
Neural Compressor, for example, control accuracy in this way, but they go by the loss alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Graph, Node
from fastrun.graph.passes.products import convolve_dense
from fastrun.graph.quantise.observe import Batch
from fastrun.graph.quantise.patches import Filters
from fastrun.graph.quantise.progress import Progress
from fastrun.graph.quantise.refine import EXAMPLES
from fastrun.graph.quantise.scope import Scope, tensors_of
from fastrun.graph.quantise.sensitivity import losses
from fastrun.graph.quantise.simulate import differences
from fastrun.kernels.core.cpu import Cpu

# As many products of float32 take as long as to read or write one number of a tensor.
_MOVE = 16


def close_enough(
    graph: Graph,
    scope: Scope,
    quantised: Graph,
    data: Sequence[Batch],
    least: float,
    progress: Progress,
) -> Graph:
    """The quantised network with so many layers in float32 that each output's SQNR is `least` dB.

    `quantised` has all layers of `scope` in integers; `graph` is the network before.

    Raises:
        UnsupportedError: no layer can be in integers then, or a node cannot be run.
    """
    count = len(scope.layers)
    most, done = 1 + math.ceil(math.log2(count)), 0

    def fits(mixed: Graph) -> bool:
        nonlocal done
        progress("layers that stay in float32, whole networks compared", done, most)
        done += 1
        return min(x.sqnr for x in differences(graph, mixed, data).values()) >= least

    if fits(quantised):
        return quantised
    order = _dearest_first(scope, quantised, data, progress)
    low, high, found = 0, count, None
    while high - low > 1:
        middle = (low + high) // 2
        mixed = without(scope, quantised, order[:middle])
        low, high, found = (low, middle, mixed) if fits(mixed) else (middle, high, found)
    if found is None:
        raise UnsupportedError(
            f"network {graph.name!r}: with any layer in 8 bits an output has an SQNR of less than "
            f"{least:g} dB on the calibration data: ask for less"
        )
    return found


def without(scope: Scope, quantised: Graph, kept: Collection[str]) -> Graph:
    """The quantised network, in which the layers that compute these tensors are in float32."""
    layers = [node for node in scope.layers if node.output not in kept]
    constants, plain = dict(quantised.constants), scope.graph.constants
    for node in scope.layers:
        if node.output in kept:
            constants |= {x: plain[x] for x in node.inputs[1:3]}
    wanted = {*tensors_of(scope.graph, layers), *(node.inputs[1] for node in layers)}
    grids = {x: grid for x, grid in quantised.grids.items() if x in wanted}
    return replace(quantised, constants=constants, grids=grids)


def _dearest_first(
    scope: Scope, quantised: Graph, data: Sequence[Batch], progress: Progress
) -> list[str]:
    """The outputs of the layers, those first that lose most in integers for the time they save."""
    graph = scope.graph
    advised = scope.advised({8: quantised}).each(convolve_dense)
    examples = data[:: -(-len(data) // EXAMPLES)]
    found = losses(advised, examples, Cpu.host(), progress)
    # Each layer has become one convolution, in the same order.
    by_weights = {name: loss for (name, _), loss in found.weights.items()}
    convolutions = [node for node in advised.graph.nodes if node.input(1) in by_weights]
    price = dict[str, float]()
    for node, same in zip(scope.layers, convolutions, strict=True):
        loss = by_weights[same.inputs[1]] + found.tensors[node.inputs[0]]
        price[node.output] = loss / _saved(graph, node)
    return sorted(price, key=lambda x: -price[x])


def _saved(graph: Graph, node: Node) -> float:
    """What integers save in a layer, as a number of products in float32."""
    depth = Filters(node, graph.shape(node.inputs[1])).depth
    read, written = (math.prod(graph.shape(x)) for x in (node.inputs[0], node.output))
    return float(written * depth + _MOVE * (read + written))

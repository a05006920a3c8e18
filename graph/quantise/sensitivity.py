"""Measures what rounding one tensor, or the weights of one layer, does to a network's outputs.

The loss is that of `effects`: the mean square of the change relative to the mean square of the
outputs, and before a softmax that of its input. Errors from different places are nearly
independent, so that their squares add up. Each is measured alone, and for each only what follows it
is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic

import numpy as np

from fastrun.graph.core.advised import Advised
from fastrun.graph.core.model import Array
from fastrun.graph.core.precision import byte_grid
from fastrun.graph.quantise.effects import ROOM, ending_in_scores, loss, observable
from fastrun.graph.quantise.observe import Batch
from fastrun.graph.quantise.progress import Progress, silent
from fastrun.graph.runtime.incremental import Run
from fastrun.kernels.core.cpu import Cpu

# The relative error of weights by which the loss by errors of a layer is measured.
_SHAKE = 1e-2


@dataclass(frozen=True)
class Losses:
    """The loss by rounding a tensor alone, and by rounding weights alone, by their names.

    Weights have a loss for each of the types that may read them, such as `u8s8`. `layers` has the
    loss by an error in a layer's products that is as large as they are, by the names of weights:
    an error of 1e-3 of theirs loses 1e-6 of it.
    """

    tensors: Mapping[str, float]
    weights: Mapping[tuple[str, str], float]
    layers: Mapping[str, float]

    @property
    def whole(self) -> float:
        """The loss if everything is rounded, weights to the fewest bits."""
        worst = dict[str, float]()
        for (name, _), lost in self.weights.items():
            worst[name] = max(lost, worst.get(name, 0.0))
        return sum(self.tensors.values()) + sum(worst.values())


def losses(
    advised: Advised,
    data: Sequence[Batch],
    cpu: Cpu,
    progress: Progress = silent,
    seconds: float = math.inf,
) -> Losses:
    """The losses of all tensors and weights that may be rounded, on examples of inputs.

    Of the examples so many are used as `seconds` allow, and at least one batch.

    Raises:
        UnsupportedError: a node cannot be run.
    """
    graph, begin = ending_in_scores(advised.graph), monotonic()
    names = [x for x in (*graph.inputs, *graph.producers) if byte_grid(graph, x)]
    network, places = observable(graph, names, cpu)
    layer = {name: graph.readers[name][0] for name, _ in advised.weights}
    tensors, layers = dict[str, float](), dict[str, float]()
    weights = dict[tuple[str, str], float]()
    runs = [network.run(data[0])]

    def mean_loss(changed: Callable[[Run], Batch]) -> float:
        return sum(loss(changed(run), run.outputs) for run in runs) / len(runs)

    def reweighed(name: str, values: Mapping[str, Array]) -> float:
        node = layer[name]
        with network.weighing(node.output, values[name], values.get(node.input(2))):
            return mean_loss(lambda run: run.again(network.steps[node.output]))

    def round_tensor(name: str) -> None:
        grid = graph.grids[name]
        tensors[name] = mean_loss(lambda run: run.after({places[name]: grid.rounded}))

    def round_weights(name: str, word: str) -> None:
        weights[name, word] = reweighed(name, advised.weights[name, word].constants)

    def shake(name: str, seed: int) -> None:
        exact = graph.constants[name]
        draw = np.random.default_rng(seed)
        shift = 1 + _SHAKE * draw.standard_normal(exact.shape, np.float32)
        layers[name] = reweighed(name, {name: exact * shift}) / _SHAKE**2

    step = network.steps
    changes = [(step[places[x]], partial(round_tensor, x)) for x in names]
    changes += [(step[layer[x].output], partial(round_weights, x, y)) for x, y in advised.weights]
    changes += [
        (step[node.output], partial(shake, x, i)) for i, (x, node) in enumerate(layer.items())
    ]
    changes.sort(key=lambda change: -change[0])
    behind = sum(1 - i / (1 + max(step.values())) for i, _ in changes)
    once = monotonic()
    runs[0].again(0)
    each = (monotonic() - once) * behind
    count = min((seconds - (once - begin)) / each, ROOM / network.size, len(data))
    runs += [network.run(batch) for batch in data[1 : max(1, math.floor(count))]]
    for i, (_, measure) in enumerate(changes):
        progress("loss by rounding one tensor or weights", i, len(changes))
        measure()
    return Losses(tensors, weights, layers)

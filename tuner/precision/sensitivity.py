"""Measures what rounding one tensor, or the weights of one layer, does to a network's outputs.

The loss is the mean square of the change relative to the mean square of the outputs. Errors from
different places are nearly independent, so that their squares add up. Each is measured alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic

import numpy as np

from fastrun.graph.build.steps import Step
from fastrun.graph.core.advised import Advised
from fastrun.graph.core.model import Array, Graph, Node, unused
from fastrun.graph.core.ops import Binary
from fastrun.graph.core.precision import byte_grid
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.quantise.network import Progress, silent
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu

Batch = Mapping[str, Array]

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
        for (name, _), loss in self.weights.items():
            worst[name] = max(loss, worst.get(name, 0.0))
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
    graph, begin = advised.graph, monotonic()
    names = [x for x in (*graph.inputs, *graph.producers) if byte_grid(graph, x)]
    kernels = [*dict.fromkeys(name for name, _ in advised.weights)]
    count = len(names) + len(advised.weights) + len(kernels)
    shaken = _Shaken.of(replace(graph, grids={}), names, cpu)
    truths = [shaken.values(data[0])]
    each = shaken.executable.seconds() * count
    left = seconds - (monotonic() - begin)
    data = data[: max(1, math.floor(min(left / each, len(data))))]
    truths += [shaken.values(batch) for batch in data[1:]]
    tensors, weights = dict[str, float](), dict[tuple[str, str], float]()
    for name in names:
        progress("loss by rounding one tensor or weights", len(tensors), count)
        grid, total = graph.grids[name], 0.0
        for batch, truth in zip(data, truths, strict=True):
            error = (grid.rounded(truth[name]) - truth[name]).astype(np.float32)
            total += shaken.loss(batch, truth, {name: error})
        tensors[name] = total / len(data)
    for (name, word), other in advised.weights.items():
        progress("loss by rounding one tensor or weights", len(tensors) + len(weights), count)
        rounded = shaken.with_constants({x: other.constants[x] for x in advised.changed(name)})
        total = sum(rounded.loss(*both, {}) for both in zip(data, truths, strict=True))
        weights[name, word] = total / len(data)
    layers, draw = dict[str, float](), np.random.default_rng(0)
    for name in kernels:
        done = len(tensors) + len(weights) + len(layers)
        progress("loss by rounding one tensor or weights", done, count)
        exact = graph.constants[name]
        shift = 1 + _SHAKE * draw.standard_normal(exact.shape, np.float32)
        shaken_layer = shaken.with_constants({name: exact * shift})
        total = sum(shaken_layer.loss(*both, {}) for both in zip(data, truths, strict=True))
        layers[name] = total / len(data) / _SHAKE**2
    return Losses(tensors, weights, layers)


@dataclass(frozen=True)
class _Shaken:
    """A network in float32 to whose tensors errors can be added, each by an input of its own.

    `errors` has the names of these inputs.
    """

    graph: Graph
    outputs: tuple[str, ...]
    errors: Mapping[str, str]
    steps: Callable[[Callable[[Step], Step]], Executable]
    executable: Executable

    @classmethod
    def of(cls, graph: Graph, names: Sequence[str], cpu: Cpu) -> _Shaken:
        """The network for these tensors."""
        wider, errors, moved = _with_errors(graph, names)
        plan, arrangement = make_plan(wider, heuristic_choices(cpu), cpu)
        packed: dict[int, Array] = {}

        def made(change: Callable[[Step], Step]) -> Executable:
            steps = tuple(change(x) if isinstance(x, Step) else x for x in arrangement.steps)
            own = {id(step) for step in arrangement.steps}

            def pack(step: Step) -> Array:
                if id(step) not in own:
                    return step.packed()
                if id(step) not in packed:
                    packed[id(step)] = step.packed()
                return packed[id(step)]

            return Executable.of(replace(arrangement, steps=steps), cpu, 1, plan, pack)

        outputs = tuple(moved.get(x, x) for x in graph.outputs)
        return cls(graph, outputs, errors, made, made(lambda step: step))

    def values(self, batch: Batch) -> dict[str, Array]:
        """All tensors that can be shaken, and the outputs, without errors."""
        found = self.executable.run({**batch, **self._silence})
        return {**batch, **found}

    def loss(self, batch: Batch, truth: Batch, errors: Batch) -> float:
        """The loss by errors, by the names of their tensors."""
        given = {self.errors[x]: error for x, error in errors.items()}
        found = self.executable.run({**batch, **self._silence, **given})
        change = sum(
            float(np.square(found[x] - truth[x], dtype=np.float64).sum()) for x in self.outputs
        )
        size = sum(float(np.square(truth[x], dtype=np.float64).sum()) for x in self.outputs)
        return change / max(size, 1e-30)

    def with_constants(self, changed: Mapping[str, Array]) -> _Shaken:
        """The network with other weights and biases of these names."""
        readers = (node for name in changed for node in self.graph.readers[name])
        nodes = {node.output: node for node in readers}

        def change(step: Step) -> Step:
            node = nodes.get(step.output)
            if not node or step.weights is None:
                return step
            weights = changed.get(node.inputs[1])
            if weights is not None:
                step = replace(step, weights=weights.reshape(step.weights.shape))
            bias = changed.get(node.input(2))
            if bias is not None and step.bias is not None:
                step = replace(step, bias=bias.reshape(step.bias.shape))
            return step

        return replace(self, executable=self.steps(change))

    @property
    def _silence(self) -> dict[str, Array]:
        return {x: np.zeros(self.executable.inputs[x], np.float32) for x in self.errors.values()}


def _with_errors(
    graph: Graph, names: Sequence[str]
) -> tuple[Graph, dict[str, str], dict[str, str]]:
    """The network with an input that is added to each tensor, and what each has become."""
    tensors, errors, moved = dict(graph.tensors), dict[str, str](), dict[str, str]()
    nodes = list[Node]()

    def shake(name: str) -> None:
        if name in names:
            errors[name] = unused(f"{name}.error", tensors, graph.constants)
            tensors[errors[name]] = tensors[name]
            moved[name] = unused(f"{name}.shaken", tensors, graph.constants)
            tensors[moved[name]] = tensors[name]
            inputs = name, errors[name]
            nodes.append(Node(moved[name], Binary("add"), inputs, (moved[name],)))

    for name in graph.inputs:
        shake(name)
    for node in graph.nodes:
        nodes.append(replace(node, inputs=tuple(moved.get(x, x) for x in node.inputs)))
        shake(node.output)
    # Tensors are outputs too, so that their values can be seen.
    outputs = dict.fromkeys(
        [*(moved.get(x, x) for x in graph.outputs), *(x for x in names if x not in graph.inputs)]
    )
    wider = replace(
        graph,
        nodes=tuple(nodes),
        tensors=tensors,
        inputs=(*graph.inputs, *errors.values()),
        outputs=tuple(outputs),
    )
    return wider, errors, moved

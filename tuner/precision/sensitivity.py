"""Measures what rounding one tensor, or the weights of one layer, does to a network's outputs.

The loss is the mean square of the change relative to the mean square of the outputs. Errors from
different places are nearly independent, so that their squares add up. Each is measured alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastrun.graph.build.steps import Step
from fastrun.graph.core.model import Array, Graph, Node, unused
from fastrun.graph.core.ops import Binary, Conv
from fastrun.graph.core.precision import byte_grid, integer_weights
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu

Batch = Mapping[str, Array]


@dataclass(frozen=True)
class Losses:
    """The loss by rounding a tensor alone, and by rounding weights alone, by their names."""

    tensors: Mapping[str, float]
    weights: Mapping[str, float]

    @property
    def whole(self) -> float:
        """The loss if everything is rounded."""
        return sum(self.tensors.values()) + sum(self.weights.values())


def losses(
    graph: Graph,
    data: Sequence[Batch],
    cpu: Cpu,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Losses:
    """The losses of all tensors and weights with advised grids, on examples of inputs.

    Raises:
        UnsupportedError: a node cannot be run.
    """
    tensors = [x for x in (*graph.inputs, *graph.producers) if byte_grid(graph, x)]
    weights = [
        node.inputs[1]
        for node in graph.nodes
        if isinstance(node.op, Conv) and integer_weights(graph, node.inputs[1]) is not None
    ]
    count = len(tensors) + len(weights)
    shaken = _Shaken.of(replace(graph, grids={}), tensors, cpu)
    found = dict.fromkeys((*tensors, *weights), 0.0)
    truths = [shaken.values(batch) for batch in data]
    for i, name in enumerate(tensors):
        progress(i, count)
        grid = graph.grids[name]
        for batch, truth in zip(data, truths, strict=True):
            error = (grid.rounded(truth[name]) - truth[name]).astype(np.float32)
            found[name] += shaken.loss(batch, truth, {name: error}) / len(data)
    for i, name in enumerate(dict.fromkeys(weights)):
        progress(len(tensors) + i, count)
        rounded = shaken.with_weights(graph, name)
        for batch, truth in zip(data, truths, strict=True):
            found[name] += rounded.loss(batch, truth, {}) / len(data)
    return Losses({x: found[x] for x in tensors}, {x: found[x] for x in weights})


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
        packed: dict[str, Array] = {}

        def made(change: Callable[[Step], Step]) -> Executable:
            def pack(step: Step) -> Array:
                key = f"{step.output} {step.program.ir_hash}"
                changed = change(step)
                if changed is not step:
                    return changed.packed()
                if key not in packed:
                    packed[key] = step.packed()
                return packed[key]

            return Executable.of(arrangement, cpu, 1, plan, pack)

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

    def with_weights(self, graph: Graph, name: str) -> _Shaken:
        """The network with the weights `name` on their grid."""
        rounded = graph.grids[name].rounded(graph.constants[name])
        outputs = {node.output for node in graph.readers[name]}

        def change(step: Step) -> Step:
            if step.output not in outputs or step.weights is None:
                return step
            return replace(step, weights=rounded.astype(np.float32).reshape(step.weights.shape))

        return replace(self, executable=self.steps(change))

    @property
    def _silence(self) -> dict[str, Array]:
        return {x: np.zeros(self.executable.inputs[x], np.float32) for x in self.errors.values()}


def _square(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


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

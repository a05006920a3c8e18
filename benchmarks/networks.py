"""Our networks and other engines' as whole networks; `fastrun bench` is the command.

Every engine is checked against float64 before it is timed. A call takes its input where it lies
and leaves its output where the engine does, as in a loop over frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fastrun.benchmarks import ours
from fastrun.benchmarks.peers import Array
from fastrun.benchmarks.race import Entrant, calls_of, judged, peer, race
from fastrun.benchmarks.report import Heat
from fastrun.graph import zoo
from fastrun.graph.core.model import Graph
from fastrun.graph.networks import load_network
from fastrun.graph.reference import interpreter as reference
from fastrun.tuner.networks.load import load

ROUNDS = 10
"""Samples of each engine, unless told otherwise."""

WRONG = 1e-3
"""The rms error of a network's output, relative to the output's, that is not timed."""


def check(name: str, threads: Sequence[int], database: str | None) -> None:
    """Plan a network as `heats` will, so that its mistakes are known before anything is timed.

    Raises:
        GraphError: there is no such network or we cannot run it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `heats` has them as notes
        for count in threads:
            load(name, count, database)


def heats(
    name: str, threads: Sequence[int], engines: Sequence[str], rounds: int, database: str | None
) -> list[Heat]:
    """Every engine on one network, once per number of threads.

    Raises:
        GraphError: as `check`.
    """
    graph = load_network(name)
    model = zoo.build(name) if name in zoo.NAMES else onnx.load(name)
    _fix_shapes(model, graph)
    inputs, truth = _truth(graph)
    found = []
    for count in threads:
        entrants = [
            _ours(model, inputs, truth, count, database)
            if engine == ours.NAME
            else peer(engine, model, inputs, truth, count, wrong=WRONG)
            for engine in engines
        ]
        laps = tuple(race(entrants, count, rounds))
        found.append(Heat(Path(name).stem if name not in zoo.NAMES else name, "all", count, laps))
    return found


def _fix_shapes(model: onnx.ModelProto, graph: Graph) -> None:
    """Give the inputs the sizes they have in the graph, where the model leaves them open."""
    for value in model.graph.input:
        if value.name in graph.inputs:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, graph.shape(value.name), strict=True):
                dim.dim_value = size


def _truth(graph: Graph) -> tuple[dict[str, Array], list[NDArray[Any]]]:
    """Seeded inputs, and the outputs in float64."""
    draw = np.random.default_rng(0)
    inputs = {
        name: draw.standard_normal(graph.shape(name), dtype=np.float32) for name in graph.inputs
    }
    found = reference.run(graph, inputs)
    return inputs, [found[name] for name in graph.outputs]


def _ours(
    model: onnx.ModelProto,
    inputs: dict[str, Array],
    truth: Sequence[NDArray[Any]],
    threads: int,
    database: str | None,
) -> Entrant:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        session = ours.Network(model, threads, database)
    note = "; ".join(str(w.message) for w in said)
    entrant = Entrant(ours.NAME, calls_of(session), note=note)
    return judged(entrant, session.run(inputs), truth, WRONG)

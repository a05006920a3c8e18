"""Whole networks on fastrun and on other engines; `fastrun bench` is the command.

Every engine is checked against float64 before it is timed. Calls do not copy inputs or outputs, as
in a loop over the frames of a film.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from fastrun.benchmarks import ours
from fastrun.benchmarks.apart import apart
from fastrun.benchmarks.peers import Array
from fastrun.benchmarks.race import (
    Begin,
    Entry,
    EntryTimes,
    calls_of,
    checked,
    merged,
    peer,
    race_engines,
)
from fastrun.benchmarks.report import EngineRace
from fastrun.graph import zoo
from fastrun.graph.core.model import Graph
from fastrun.graph.networks import find_model, load_network
from fastrun.graph.reference import interpreter as reference
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.machine.probe import peak_flops, probe
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.networks.load import load
from fastrun.tuner.networks.outputs import normal_inputs
from fastrun.tuner.networks.targets import Shapes
from fastrun.tuner.records.record import NO_LIMITS, Limits
from fastrun.tuner.records.units import size

ROUNDS = 10
"""Samples of each engine, by default."""

WRONG = 1e-3
"""A network with a larger rms error, relative to its output, is not timed."""

# Two virtual cores may share a real one for a while. A race waits until every core does this share
# of its measured peak, for so many looks and seconds between them; it is held up to so many times
# until that is so after it as well.
_APART, _LOOKS, _PAUSE, _RACES = 0.9, 20, 0.5, 3


def check(
    name: str,
    threads: Sequence[int],
    database: str | None,
    shapes: Shapes | None = None,
    limits: Limits = NO_LIMITS,
) -> None:
    """Plan a network as `races` does, so that mistakes appear before any engine is timed.

    Raises:
        GraphError: there is no such network, or fastrun cannot run it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `races` turns them into notes
        for count in threads:
            load(
                name,
                count,
                database,
                shapes=shapes,
                max_error=limits.error,
                max_workspace=limits.workspace,
            ).at()


def races(
    name: str,
    threads: Sequence[int],
    engines: Sequence[str],
    rounds: int,
    database: str | None,
    shapes: Shapes | None = None,
    limits: Limits = NO_LIMITS,
    processes: int = 0,
) -> list[EngineRace]:
    """A race of all engines on one network for each number of threads.

    `shapes` gives or overrides the shapes of its inputs, `limits` bind the schedules of fastrun.
    Each engine has so many `processes` of its own, or shares this one with the others.

    Raises:
        GraphError: as `check`.
        ConnectionError: a process ended while its engine was timed.
    """
    graph = load_network(name, shapes)
    model = find_model(name)
    assert isinstance(model, onnx.ModelProto)
    _fix_shapes(model, graph)
    inputs, truth = _truth(graph)
    found = []
    for count in threads:
        makers = [
            functools.partial(_entry, engine, model, inputs, truth, count, database, limits)
            for engine in engines
        ]
        if processes:
            with apart([m for m in makers for _ in range(processes)], count) as entries:
                times, peaks = _race(entries, count, rounds)
            parts = [times[i : i + processes] for i in range(0, len(times), processes)]
            timed = tuple(
                replace(merged(part), engine=engine)
                for engine, part in zip(engines, parts, strict=True)
            )
        else:
            times, peaks = _race([maker() for maker in makers], count, rounds)
            timed = tuple(times)
        subject = name if name in zoo.NAMES else Path(name).stem
        found.append(EngineRace(subject, "all", count, timed, peaks))
    return found


def _race(
    entries: Sequence[Entry], threads: int, rounds: int
) -> tuple[list[EntryTimes], tuple[float, float]]:
    """Times, and each core's FLOP/s just before and after; again if cores were shared after it."""
    for _ in range(_RACES):
        before = _peak_apart(threads)
        times, after = race_engines(entries, threads, rounds), _peak(threads)
        if after > _APART * probe().peak:
            break
    return times, (before, after)


def _peak_apart(threads: int) -> float:
    """`_peak` at a time when no core is shared; if there is none in `_LOOKS` looks, the last."""
    for _ in range(_LOOKS):
        found = _peak(threads)
        if found > _APART * probe().peak:
            break
        time.sleep(_PAUSE)
    return found


def _peak(threads: int) -> float:
    """FLOP/s of each of so many cores at once, now.

    It is less than usual where the clock is low, or where cores are shared: with other programs, or
    two virtual cores with each other.
    """
    return peak_flops(Cpu.host(), Cores.split(threads).timing) / threads


def _fix_shapes(model: onnx.ModelProto, graph: Graph) -> None:
    """Set the sizes of inputs that the model leaves open to those of the graph."""
    for value in model.graph.input:
        if value.name in graph.inputs:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, graph.shape(value.name), strict=True):
                dim.dim_value = size


def _truth(graph: Graph) -> tuple[dict[str, Array], list[NDArray[Any]]]:
    """Random inputs of a fixed seed, and the outputs in float64."""
    inputs = dict(normal_inputs(graph))
    found = reference.run(graph, inputs)
    return inputs, [found[name] for name in graph.outputs]


def _entry(
    engine: str,
    model: onnx.ModelProto,
    inputs: dict[str, Array],
    truth: Sequence[NDArray[Any]],
    threads: int,
    database: str | None,
    limits: Limits,
) -> Entry:
    """An engine with this network, checked."""
    if engine != ours.NAME:
        return peer(engine, model, inputs, truth, threads, wrong=WRONG)
    return _ours(model, inputs, truth, threads, database, limits)


def _ours(
    model: onnx.ModelProto,
    inputs: dict[str, Array],
    truth: Sequence[NDArray[Any]],
    threads: int,
    database: str | None,
    limits: Limits,
) -> Entry:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        begin = Begin()
        session = ours.NetworkSession(model, threads, database, limits)
        found = session.run(inputs)
        start, memory = begin.seconds(), begin.memory()
    notes = [*(str(w.message) for w in said), f"packed weights of {size(session.packed)}"]
    note = "; ".join(notes)
    entry = Entry(ours.NAME, calls_of(session), note=note, start=start, memory=memory)
    return checked(entry, found, truth, WRONG)

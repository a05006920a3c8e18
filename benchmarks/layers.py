"""Single layers on fastrun and on other engines; `fastrun bench --layers` is the command.

Every engine gets the layer in its favourite layout, with packed weights and its own fusion. It is
checked against float64 before it is timed. The cost of calling an empty network from Python is
subtracted from a peer's time. The schedules of fastrun are those of the database, else the
heuristic's (marked *).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrun.benchmarks import ours
from fastrun.benchmarks.one_layer import ADD, INPUT, one_layer
from fastrun.benchmarks.race import peer, race_engines
from fastrun.benchmarks.report import EngineRace
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.native.cache import cache_root
from fastrun.tuner.machine.probe import MachineReport
from fastrun.tuner.measure.operands import Operands, Scratch
from fastrun.tuner.records.units import UNKNOWN, percent
from fastrun.tuner.store.database import Database

ROUNDS = 15
"""Samples of each engine, by default."""

_LIST = Path(__file__).with_name("layers.json")


@dataclass(frozen=True)
class Layer:
    """A convolution that published networks use."""

    name: str
    group: str
    problem: ConvProblem


def published(text: str = "") -> list[Layer]:
    """The layers of `layers.json` whose name, group or problem contains `text`."""
    rows = json.loads(_LIST.read_text())
    layers = [Layer(r["name"], r["group"], ConvProblem.parse(r["problem"])) for r in rows]
    return [x for x in layers if text.lower() in f"{x.group} {x.name} {x.problem}".lower()]


def given(text: str) -> Layer:
    """The layer of a problem's text.

    Raises:
        ProblemError: it is not the text of a problem.
    """
    problem = ConvProblem.parse(text)
    return Layer(str(problem), "given", problem)


def races(
    layer: Layer,
    threads: Sequence[int],
    engines: Sequence[str],
    rounds: int,
    database: Database | None,
    overhead: Mapping[str, float],
) -> list[EngineRace]:
    """A race of all engines on one layer for each number of threads."""
    p = layer.problem
    found = []
    with Scratch() as scratch:
        operands = Operands.make(p, scratch)
        names = ("x", "weights", "bias", "add", "reference")
        arrays = {name: np.array(operands.load(name)) for name in names}
        model = one_layer(p, arrays)
        inputs = {INPUT: arrays["x"], **({ADD: arrays["add"]} if p.add else {})}
        truth = [arrays["reference"]]
        for count in threads:
            entries = [
                ours.layer(operands, count, database)
                if name == ours.NAME
                else peer(name, model, inputs, truth, count, inner=True, overhead=overhead[name])
                for name in engines
            ]
            timed = tuple(race_engines(entries, count, rounds))
            found.append(EngineRace(layer.name, layer.group, count, timed))
    return found


def open_database(url: str | None) -> Database | None:
    """The database at `url`; by default the usual database, if it exists.

    Raises:
        DatabaseError: it cannot be read.
    """
    if url:
        return Database(url, read_only=True)
    return Database() if (cache_root() / "fastrun.db").exists() else None


def columns(
    layers: Sequence[Layer], machine: MachineReport
) -> dict[str, Callable[[EngineRace], str]]:
    """The columns of a table of layers besides times: rates, shares of peak, schedules."""
    flops = {layer.name: layer.problem.flops for layer in layers}

    def rate(raced: EngineRace, engine: str) -> float:
        return flops[raced.subject] / raced.seconds(engine)

    def share(raced: EngineRace) -> str:
        return percent(rate(raced, ours.NAME) / machine.peak_of(raced.threads))

    def schedule(raced: EngineRace) -> str:
        notes = [entry.note for entry in raced.entries if entry.engine == ours.NAME]
        source, _, text = notes[0].partition(": ") if notes else ("", "", UNKNOWN)
        return text.partition("(")[0] + "*" * (source == "heuristic")

    return {
        "ours\nGFLOP/s>": lambda h: f"{rate(h, ours.NAME) / 1e9:.0f}",
        "of\npeak>": share,
        "best peer\nGFLOP/s>": lambda h: f"{rate(h, h.best_peer) / 1e9:.0f}",
        "schedule": schedule,
    }

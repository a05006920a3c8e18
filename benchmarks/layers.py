"""Our kernels and other engines' on single layers.

    python -m benchmarks.layers [--filter TEXT] [--threads 1,2] [--engines ours,...] [--json OUT]

Every engine gets the layer in its favourite layout, with packed weights and its own fusion, and is
checked against float64 before it is timed. What calling an empty network from Python costs is
taken off a peer's time. Our schedules are the database's, else the heuristic's (marked *).
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import ours, report
from benchmarks.one_layer import ADD, INPUT, one_layer
from benchmarks.race import overheads, peer, race
from benchmarks.report import Heat
from kernels.codegen.jit import cache_root
from kernels.core.problem import ConvProblem, ProblemError
from tuner.database import Database, DatabaseError
from tuner.machine import MachineReport, probe
from tuner.operands import Operands, Scratch
from tuner.units import UNKNOWN, percent, plural

LAYERS = Path(__file__).with_name("layers.json")


@dataclass(frozen=True)
class Layer:
    """A convolution that published networks use."""

    name: str
    group: str
    problem: ConvProblem


def read_layers(path: Path, text: str = "") -> list[Layer]:
    """The layers of a file whose name, group or problem contains `text`.

    Raises:
        ValueError: the file is not a list of {"name", "group", "problem"}.
    """
    try:
        rows = json.loads(path.read_text())
        layers = [Layer(r["name"], r["group"], ConvProblem.parse(r["problem"])) for r in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a list of layers: {error}") from None
    return [x for x in layers if text.lower() in f"{x.group} {x.name} {x.problem}".lower()]


def heats(
    layer: Layer,
    threads: Sequence[int],
    engines: Sequence[str],
    rounds: int,
    database: Database | None,
    overhead: Mapping[str, float],
) -> list[Heat]:
    """Every engine on one layer, once per number of threads."""
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
            entrants = [
                ours.layer(operands, count, database)
                if name == ours.NAME
                else peer(name, model, inputs, truth, count, inner=True, overhead=overhead[name])
                for name in engines
            ]
            laps = race(entrants, count, rounds)
            found.append(Heat(layer.name, layer.group, count, tuple(laps)))
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; 2 if it is used wrongly."""
    parser = ArgumentParser(prog="python -m benchmarks.layers", description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=Path, default=LAYERS, help="a file like layers.json")
    parser.add_argument("--filter", default="", help="only layers whose description contains this")
    report.add_options(parser, rounds=15)
    arguments = parser.parse_args(words)
    peers = report.usable(arguments.engines)
    engines = [e for e in arguments.engines if e == ours.NAME or e in peers]
    try:
        layers = read_layers(arguments.layers, arguments.filter)
        database = open_database(arguments.db)
    except (ValueError, OSError, ProblemError, DatabaseError) as error:
        print(error, file=sys.stderr)
        return 2
    machine = probe()
    overhead = overheads(peers)
    report.introduce(peers, overhead)
    found: list[Heat] = []
    for i, layer in enumerate(layers, 1):
        report.notice(f"{i}/{len(layers)} {layer.group}: {layer.name}")
        found += heats(layer, arguments.threads, engines, arguments.rounds, database, overhead)
    flops = {layer.name: layer.problem.flops for layer in layers}
    for count in arguments.threads:
        group = [h for h in found if h.threads == count]
        print(f"\n{plural(count, 'thread')}")
        report.times_table(group, _columns(flops, _peak(machine, count)))
        report.means_table(group)
    report.scaling_table(found)
    report.remarks(found)
    if arguments.json:
        report.write_json(arguments.json, found, arguments)
    return 0


def open_database(url: str | None) -> Database | None:
    """The database at `url`; without one the usual database, if there is any.

    Raises:
        DatabaseError: it cannot be read.
    """
    if url:
        return Database(url, read_only=True)
    return Database() if (cache_root() / "fastrun.db").exists() else None


def _columns(flops: dict[str, int], peak: float) -> dict[str, Callable[[Heat], str]]:
    def rate(heat: Heat, engine: str) -> float:
        return flops[heat.subject] / heat.seconds(engine)

    def schedule(heat: Heat) -> str:
        notes = [lap.note for lap in heat.laps if lap.engine == ours.NAME]
        source, _, text = notes[0].partition(": ") if notes else ("", "", UNKNOWN)
        return text.partition("(")[0] + "*" * (source == "heuristic")

    return {
        "ours\nGFLOP/s>": lambda h: f"{rate(h, ours.NAME) / 1e9:.0f}",
        "of\npeak>": lambda h: percent(rate(h, ours.NAME) / peak),
        "best peer\nGFLOP/s>": lambda h: f"{rate(h, h.best_peer) / 1e9:.0f}",
        "schedule": schedule,
    }


def _peak(machine: MachineReport, threads: int) -> float:
    return machine.peak_all if threads == machine.cores else threads * machine.peak


if __name__ == "__main__":
    sys.exit(main())

"""The winners that come with the package, made anew from databases of tunings.

    python -m fastrun.benchmarks.pretuned [DATABASE ...] [--write]

Prints for this kind of processor which winners of the databases' finals are surely faster than
today's heuristic, in the same layouts, and which of those that come with the package still hold.
With `--write` these become the file of the package.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import chain

import pandas as pd

from fastrun.benchmarks.experiments.command import show
from fastrun.benchmarks.report import introduce
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.measurer import heuristic_text
from fastrun.tuner.records.units import interval, plural, ratio
from fastrun.tuner.records.verdicts import speedup_interval
from fastrun.tuner.report.frames import layer_labels
from fastrun.tuner.store import exchange
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.pretuned import Pair, file_for, holds, kind, worth_shipping
from fastrun.tuner.terminal.exits import ended, leave


def main(words: Sequence[str] | None = None) -> int:
    """Print the winners, and write them."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.pretuned", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("databases", nargs="*", metavar="DATABASE", help="with records of finals")
    parser.add_argument("--write", action="store_true", help="write the file of the package")
    arguments = parser.parse_args(words)
    introduce((), {})
    cpu = Cpu.host()
    path = file_for(cpu)
    records = exchange.read(path)[0] if path.exists() else []
    shipped = len([*worth_shipping(records)])
    for url in arguments.databases:
        with Database(url, read_only=True) as database:
            records += database.records(machine=cpu.fingerprint)
    pairs = [pair for pair in worth_shipping(records) if holding(pair, cpu)]
    _print(pairs)
    print(f"{kind(cpu)}: {plural(shipped, 'winner')} before, {len(pairs)} now")
    if arguments.write:
        exchange.write(path, "jsonl", list(chain.from_iterable(pairs)), [])
    return 0


def holding(pair: Pair, cpu: Cpu) -> bool:
    """Whether today's heuristic is the one that the winner beat, and both have the same code."""
    usual = heuristic_text(ConvProblem.parse(pair[0].problem), cpu)
    return pair[0].schedule == usual and all(map(holds, pair))


def _print(pairs: Sequence[Pair]) -> None:
    labels = layer_labels([ConvProblem.parse(usual.problem) for usual, _ in pairs])
    rows = [
        {
            "layer": label,
            "threads": best.threads,
            "speedup": usual.seconds_per_call / best.seconds_per_call,
            "low": (ends := speedup_interval(usual, best))[0],
            "high": ends[1],
            "schedule": best.schedule,
        }
        for label, (usual, best) in zip(labels, pairs, strict=True)
    ]
    show(
        {
            "layer": lambda r: r.layer,
            "threads>": lambda r: str(r.threads),
            "faster>": lambda r: ratio(r.speedup),
            "95 %\ninterval>": lambda r: interval(r.low, r.high),
            "winner": lambda r: r.schedule,
        }
    )(pd.DataFrame(rows))


if __name__ == "__main__":
    leave(ended("pretuned", main))

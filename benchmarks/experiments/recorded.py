"""How well models order recorded schedules of networks, or of a machine, that were left out.

    python -m fastrun.benchmarks.experiments.recorded NETWORK ... --data DB ... [--machine FILE ...]
        [--before MODEL] [--folds N] [--csv FOLDER]

Measures nothing. Data may be of this processor and of others, whose manifests are `--machine`. For
each processor and each group of its networks three models learn without their shapes: from its own
data, from that of the others, and from both. Each orders the schedules that were measured together.
The table has the time of the best of them over that of the first choice (top 1), and of the fastest
among the first five (top 5), which a search that begins so would find. Chance is the expectation of
a random order. With `--before` an earlier model stands for the others' data, and the model of both
starts from it.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastrun.benchmarks.experiments.command import show, write_csv
from fastrun.benchmarks.experiments.left_out import (
    Data,
    data_options,
    folds_of,
    read_machine,
    read_records,
    shape,
)
from fastrun.benchmarks.report import introduce
from fastrun.kernels.codegen.dot import has
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import applicable
from fastrun.tuner.model.cost_model import CostModel, Times
from fastrun.tuner.model.features import ALGORITHMS, VECTORS
from fastrun.tuner.records.statistics import mean_interval
from fastrun.tuner.records.units import interval
from fastrun.tuner.terminal.exits import ended, leave

HEURISTIC, CHANCE = "heuristic", "chance"

# Groups of fewer schedules say little about an order.
_LEAST, _FIRST = 5, 5


def main(words: Sequence[str] | None = None) -> int:
    """Learn, order and print."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.experiments.recorded",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK")
    data_options(parser)
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="groups (default 5)")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write the table to a file here")
    arguments = parser.parse_args(words)
    introduce((), {})
    cpus = [Cpu.host(), *map(read_machine, arguments.machine)]
    before = CostModel.load(arguments.before) if arguments.before else None
    records = read_records(arguments.data)
    folds = folds_of(arguments.networks, arguments.folds)
    found = []
    for cpu in cpus:
        others = [x for x in cpus if x is not cpu]
        data = Data.of(records, [cpu, *others], before)
        found += [{"machine": cpu.model} | row for row in rows(data, folds)]
    table = pd.DataFrame(found)
    _print(summary(table))
    write_csv(arguments.csv, "recorded", table)
    return 0


def rows(data: Data, folds: Sequence[Sequence[ConvProblem]]) -> Iterator[dict[str, Any]]:
    """A row for each way to order each group of the processor's data, with and without tiles.

    Shapes of no network are shared out to the folds one after another.
    """
    of_fold = {shape(p): number for number, fold in reversed([*enumerate(folds)]) for p in fold}
    for number, group in enumerate(data.own):
        of_fold.setdefault(shape(group.problem), number % len(folds))
    for number in range(len(folds)):
        groups = [g for g in data.own if of_fold[shape(g.problem)] == number]
        if groups:
            models = data.without(g.problem for g in groups).models()
            for group in groups:
                yield from _of_group(group, models, ALGORITHMS, "all algorithms")
                if has(data.cpu, "amx-tile"):
                    yield from _of_group(group, models, VECTORS, "without tile registers")


def _of_group(
    group: Times, models: Mapping[str, CostModel], among: Sequence[str], name: str
) -> Iterator[dict[str, Any]]:
    timed = zip(group.schedules, group.seconds, strict=True)
    seconds = {text: s for text, s in timed if _algorithm(text) in among}
    if len(seconds) < _LEAST:
        return
    texts, shares = [*seconds], min(seconds.values()) / np.array([*seconds.values()])
    found = {}
    for way, model in models.items():
        if {_algorithm(text) for text in texts} <= set(model.algorithms):
            order = np.argsort(model.logarithms(group.problem, texts, group.cpu).mean(axis=0))
            found[way] = shares[order[0]], shares[order[:_FIRST]].max()
    usual = _usual(group, among)
    if usual in texts:
        found[HEURISTIC] = (shares[texts.index(usual)],) * 2
    found[CHANCE] = _expected(shares, 1), _expected(shares, _FIRST)
    for way, (first, five) in found.items():
        yield {
            "among": name,
            "problem": str(group.problem),
            "schedules": len(texts),
            "way": way,
            "top_1": first,
            "top_5": five,
            "gain": first / found[HEURISTIC][0] if HEURISTIC in found else math.nan,
        }


def _algorithm(text: str) -> str:
    return text.partition("(")[0]


def _usual(group: Times, among: Sequence[str]) -> str:
    """The heuristic's schedule among some algorithms."""
    p, cpu = group.problem, group.cpu
    template = max((t for t in applicable(p, cpu) if t.name in among), key=lambda t: t.rank(p, cpu))
    return template.text(template.heuristic(p, cpu))


def _expected(shares: NDArray[np.floating[Any]], count: int) -> float:
    """The expected share of the best of so many that are drawn, as a geometric mean."""
    logs, n = np.sort(np.log(shares)), len(shares)
    drawn = [math.comb(i, count - 1) / math.comb(n, count) for i in range(n)]
    return math.exp(float(logs @ drawn))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each processor, set of algorithms and way, over all groups.

    `share` and `low` are the geometric mean and the fifth percentile of top 1, `five` and
    `low_five` those of top 5; `gain` the geometric mean of heuristic / way with its 95 % interval.
    """
    found = []
    for (machine, among, way), part in table.groupby(["machine", "among", "way"], sort=False):
        gains = np.log(part["gain"].dropna()).to_numpy()
        low, high = mean_interval(gains) if len(gains) > 1 else (math.nan, math.nan)
        one, five = np.log(part["top_1"]), np.log(part["top_5"])
        values = {
            "share": one.mean(), "low": one.quantile(0.05),
            "five": five.mean(), "low_five": five.quantile(0.05),
            "gain": gains.mean() if len(gains) else math.nan, "gain_low": low, "gain_high": high,
        }  # fmt: skip
        about = {"machine": machine, "among": among, "way": way, "groups": len(part)}
        found.append(about | {name: float(np.exp(x)) for name, x in values.items()})
    return pd.DataFrame(found)


_print = show(
    {
        "processor": lambda r: r.machine,
        "among": lambda r: r.among,
        "way": lambda r: r.way,
        "groups>": lambda r: str(r.groups),
        "best /\ntop 1>": lambda r: f"{r.share:.3f}",
        "5th\npercentile>": lambda r: f"{r.low:.3f}",
        "best /\ntop 5>": lambda r: f"{r.five:.3f}",
        "5th\npercentile >": lambda r: f"{r.low_five:.3f}",
        "heuristic\n/ way>": lambda r: f"{r.gain:.3f}",
        "95 %\ninterval>": lambda r: interval(r.gain_low, r.gain_high, 3),
    }
)


if __name__ == "__main__":
    leave(ended("recorded", main))

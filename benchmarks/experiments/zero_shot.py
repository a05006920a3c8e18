"""How good schedules are that a cost model chooses for shapes without any measurement.

    python -m fastrun.benchmarks.experiments.zero_shot NETWORK ... --data DB ... --db FILE
        [--machine FILE ...] [--before MODEL] [--choices FILE] [--folds N] [--seconds S]
        [--avx2] [--csv FOLDER] [--model FILE [--unproposed ALGORITHM ...]]

Each network in turn is left out, or with `--folds` several at once: a model learns from the records
of `--data` without their shapes, and chooses a schedule for each of them. So do the heuristic, the
nearest other shape's winner, and chance. All choices for a shape race each other and the best
schedules known, those of tunings or samples. Which of all is best is decided by half of a race's
rounds, and its time is that of the other half, so that luck makes nothing the best.

Where the data has records of another processor, whose manifest is a `--machine`, or where
`--before` names a model of other processors, two more models choose: one that knows only the
others, and one that knows both. Other processors may have no tile registers, so where this one has
them, all choose a second time among the other algorithms.
`--choices` keeps the choices in a file; races go to the
database `--db`. So the same command continues after `--seconds` of races.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastrun.benchmarks import report
from fastrun.benchmarks.experiments.command import show, write_csv
from fastrun.benchmarks.experiments.left_out import (
    Data,
    data_options,
    folds_of,
    read_machine,
    read_records,
)
from fastrun.benchmarks.experiments.shapes import narrowed, raced
from fastrun.kernels.codegen.dot import has
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import applicable
from fastrun.search_spaces.space import space_for
from fastrun.search_spaces.untried import Untried
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.model.cost_model import CostModel, Times, times
from fastrun.tuner.model.features import ALGORITHMS, VECTORS
from fastrun.tuner.records.record import Record
from fastrun.tuner.records.statistics import mean_interval, typical
from fastrun.tuner.records.units import interval, plural
from fastrun.tuner.search.transfer import suggestions
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.exits import ended, leave

KNOWN, KNOWN_TOO = "best known", "second known"
HEURISTIC, NEAREST, RANDOM = "heuristic", "nearest", "random"

ALL, IN_VECTORS = "all algorithms", "without tile registers"

# Each half of them decides which schedule is best, the other half how fast it is.
_ROUNDS = 10

Choices = dict[str, dict[str, str]]
"""For each problem's text the schedule of each way to choose."""


def main(words: Sequence[str] | None = None) -> int:
    """Choose, race and print."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.experiments.zero_shot",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument("networks", nargs="+", metavar="NETWORK")
    data_options(parser)
    parser.add_argument("--db", required=True, metavar="FILE", help="add the races here")
    parser.add_argument("--choices", type=Path, metavar="FILE", help="keep the choices here")
    parser.add_argument(
        "--folds", type=int, metavar="N", help="leave out networks in N groups (default: singly)"
    )
    parser.add_argument("--seconds", type=float, default=100.0, help="of races (default 100)")
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="learn from all data, write that and no more"
    )
    parser.add_argument(
        "--unproposed", action="append", default=[], choices=ALGORITHMS, metavar="ALGORITHM",
        help="the model that is written proposes none of its schedules",
    )  # fmt: skip
    parser.add_argument("--avx2", action="store_true", help="choose and measure code for AVX2")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write the table to a file here")
    arguments = parser.parse_args(words)
    report.introduce((), {})
    host = Cpu.host()
    cpus = [narrowed(host), host] if arguments.avx2 else [host, narrowed(host)]
    cpus += map(read_machine, arguments.machine)
    before = CostModel.load(arguments.before) if arguments.before else None
    if arguments.model:
        data = times(read_records(arguments.data), cpus)
        proposed = [name for name in ALGORITHMS if name not in arguments.unproposed]
        CostModel.learnt(data, before=before).among(proposed).save(arguments.model)
        return 0
    kept: Path | None = arguments.choices
    if kept and kept.exists():
        chosen: dict[str, Choices] = json.loads(kept.read_text())
    else:
        folds = folds_of(arguments.networks, arguments.folds)
        chosen = choices(Data.of(read_records(arguments.data), cpus, before), folds)
        if kept:
            kept.write_text(json.dumps(chosen, indent=1) + "\n")
    with Database(arguments.db) as database:
        known = {r.problem for r in database.records(machine=cpus[0].fingerprint)}
        entries: defaultdict[Problem, dict[str, None]] = defaultdict(dict)
        for among in chosen.values():
            for text in among.keys() - known:
                entries[ConvProblem.parse(text)] |= dict.fromkeys(among[text].values())
        with Measurer(cpu=cpus[0]) as measurer:
            todo = ((p, [*texts]) for p, texts in entries.items())
            for record in raced(measurer, todo, arguments.seconds, _ROUNDS):
                database.add(record)
        found = database.records(machine=cpus[0].fingerprint)
    for number, (name, among) in enumerate(chosen.items()):
        table = compared(among, found)
        if table.empty:
            report.notice("nothing was raced: give more --seconds")
            return 1
        print(f"{name}: {plural(len(table), 'shape')}, each of a network that was left out")
        _print(table)
        write_csv(arguments.csv, "zero_shot" + "_vectors" * number, table)
    return 0


def choices(data: Data, folds: Sequence[Sequence[ConvProblem]]) -> dict[str, Choices]:
    """The choices for each shape that was measured, among all algorithms and those of vectors.

    All shapes of its fold are left out, whatever follows the convolution; one of several folds
    counts for the first of them.
    """
    measured = {group.problem for group in data.own}
    named: dict[str, Sequence[str]] = {ALL: ALGORITHMS}
    if has(data.cpu, "amx-tile"):
        named[IN_VECTORS] = VECTORS
    known = {name: _winners(data.own, among) for name, among in named.items()}
    found: dict[str, Choices] = {name: {} for name in named}
    for problems in folds:
        wanted = [p for p in problems if p in measured and str(p) not in found[ALL]]
        if not wanted:
            continue
        rest = data.without(problems)
        models = rest.models()
        for name, among in named.items():
            winners = {p: best for p, (best, *_) in _winners(rest.own, among).items()}
            for p in wanted:
                if p in known[name]:
                    ways = _choices(p, data.cpu, models, winners, among)
                    best = dict(zip((KNOWN, KNOWN_TOO), known[name][p], strict=False))
                    found[name][str(p)] = best | ways
    return found


def _choices(
    p: ConvProblem,
    cpu: Cpu,
    models: Mapping[str, CostModel],
    winners: Mapping[Problem, str],
    among: Sequence[str],
) -> dict[str, str]:
    """What each way chooses among some algorithms."""
    usual = [t for t in applicable(p, cpu) if t.name in among]
    template = max(usual, key=lambda t: t.rank(p, cpu))
    first = template.text(template.heuristic(p, cpu))
    near = (text for _, text in suggestions(p, winners, cpu))
    drawn = Untried(space_for(template.name, p, cpu), random.Random(str(p)).randrange(1 << 30))
    return {
        HEURISTIC: first,
        **{name: model.among(among).choice(p, cpu, first) for name, model in models.items()},
        NEAREST: next(near, first),
        RANDOM: template.text(drawn.any() or template.heuristic(p, cpu)),
    }


def compared(chosen: Choices, records: Sequence[Record]) -> pd.DataFrame:
    """A row for each shape that was raced: the seconds of each way, infinite for a failure.

    `problem` is its text, `schedules` the number of those raced. Columns with `share of ` have the
    time of the best schedule over that of a way. Shapes are left out of which a schedule was called
    once, because its first call was slow.
    """
    took = {(r.problem, r.schedule): r for r in records if len(r.samples) != 1}
    rows = []
    for text, ways in chosen.items():
        if all((text, schedule) in took for schedule in ways.values()):
            raced = {way: took[text, schedule] for way, schedule in ways.items()}
            seconds = {way: r.seconds_per_call for way, r in raced.items()}
            ran = {r.schedule: r.samples for r in raced.values() if r.samples}
            shares = {
                f"share of {way}": _share(ran, r.schedule) if r.samples else math.nan
                for way, r in raced.items()
            }
            rows.append({"problem": text, "schedules": len(ran), **seconds, **shares})
    return pd.DataFrame(rows)


def _share(ran: Mapping[str, Sequence[float]], schedule: str) -> float:
    """The time of the best schedule over that of a given one, from samples of the same rounds.

    One half of the rounds says which is best, the other half gives the times, and the other way
    round.
    """
    halves = [{name: samples[i::2] for name, samples in ran.items()} for i in (0, 1)]
    found = []
    for deciding, timing in (halves, halves[::-1]):
        best = min(deciding, key=lambda name: typical(deciding[name]))
        found.append(typical(timing[best]) / typical(timing[schedule]))
    return statistics.geometric_mean(found)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each way: how near the best it comes, and how it compares with the heuristic.

    `share` is the geometric mean of its shares, `low_share` their fifth percentile; `gain` the
    geometric mean of the heuristic's time over its own, with its 95 % interval over shapes; `over`
    and `under` count the shapes that are faster or slower than by the heuristic by 3 %.
    """
    rows = []
    columns = map(str, table)
    for way in [x.removeprefix("share of ") for x in columns if x.startswith("share of ")]:
        ran = table[np.isfinite(table[way]) & np.isfinite(table[HEURISTIC])]
        if ran.empty:
            continue
        shares = np.log(ran[f"share of {way}"])
        gains = np.log(ran[HEURISTIC] / ran[way]).to_numpy()
        low, high = mean_interval(gains)
        rows.append(
            {
                "way": way,
                "shapes": len(ran),
                "share": float(np.exp(shares.mean())),
                "low_share": float(np.exp(shares.quantile(0.05))),
                "gain": float(np.exp(gains.mean())),
                "low": float(np.exp(low)),
                "high": float(np.exp(high)),
                "over": int((gains > np.log(1.03)).sum()),
                "under": int((gains < -np.log(1.03)).sum()),
            }
        )
    return pd.DataFrame(rows)


def _print(table: pd.DataFrame) -> None:
    show(
        {
            "way": lambda r: r.way,
            "best / way,\ngeom. mean>": lambda r: f"{r.share:.3f}",
            "5th\npercentile>": lambda r: f"{r.low_share:.3f}",
            "heuristic\n/ way>": lambda r: f"{r.gain:.3f}",
            "95 %\ninterval>": lambda r: interval(r.low, r.high, 3),
            "faster\nby 3 %>": lambda r: str(r.over),
            "slower\nby 3 %>": lambda r: str(r.under),
        }
    )(summary(table))


def _winners(groups: Iterable[Times], among: Sequence[str]) -> dict[Problem, list[str]]:
    """The fastest schedules of each problem, of some algorithms.

    Of every measurement there is one, the largest first.
    """
    found: dict[Problem, list[str]] = {}
    for group in sorted(groups, key=lambda group: len(group.seconds), reverse=True):
        timed = zip(group.seconds, group.schedules, strict=True)
        best = min((x for x in timed if x[1].partition("(")[0] in among), default=None)
        known = found.setdefault(group.problem, []) if best else []
        if best and best[1] not in known:
            known.append(best[1])
    return found


if __name__ == "__main__":
    leave(ended("zero_shot", main))

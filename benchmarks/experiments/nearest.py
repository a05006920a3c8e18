"""Whether the winner of the nearest shape beats the heuristic on a problem without measurements.

    python -m fastrun.benchmarks.experiments.nearest [--db URL] [--filter TEXT] [--csv FOLDER]

Every tuned problem of the database takes the role of the problem without measurements. It gets the
schedule that `tuner.search.transfer` makes of the winner of the nearest other shape. This schedule
races the heuristic's and the tuned one.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastrun.benchmarks import report
from fastrun.benchmarks.experiments.command import show, write_csv
from fastrun.kernels.core.attention import Problem, parse_problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.measure.measurer import Measurer, heuristic_text
from fastrun.tuner.measure.races import FINAL, race
from fastrun.tuner.records.record import Conditions
from fastrun.tuner.records.units import interval, ms, ratio
from fastrun.tuner.records.verdicts import speedup_interval
from fastrun.tuner.report.frames import layer_labels
from fastrun.tuner.search.transfer import distance, suggestions
from fastrun.tuner.store.database import existing
from fastrun.tuner.store.staleness import first_current
from fastrun.tuner.terminal.exits import ended, leave

# Problems no further apart than by their epilogues are the same shape.
_SAME = 1.0


def main(words: Sequence[str] | None = None) -> int:
    """Race, print and write."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.experiments.nearest",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument("--db", metavar="URL", help="database (default: that of the cache folder)")
    parser.add_argument("--filter", default="", help="use only problems whose text contains this")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write the table to a file here")
    arguments = parser.parse_args(words)
    report.introduce((), {})
    table = measured(winners(arguments.db), arguments.filter)
    if not len(table):
        report.notice("no two problems of the database are of one class: tune some first")
        return 1
    columns = {
        "layer": lambda r: r.layer,
        "nearest": lambda r: r.nearest,
        "heuristic\nms>": lambda r: ms(r.heuristic),
        "nearest\nover heur.>": lambda r: ratio(r.gain),
        "95 %\ninterval>": lambda r: interval(r.low, r.high),
        "tuned\nover heur.>": lambda r: ratio(r.tuned_gain),
    }
    show(columns)(table)
    for words_, part in (
        ("all", table),
        ("another schedule than the heuristic's", table[table["schedule"] != table["guess"]]),
    ):
        gains, best = (np.exp(np.log(part[c]).mean()) for c in ("gain", "tuned_gain"))
        print(
            f"{words_}, {len(part)}: the nearest shape's schedule is {gains:.3f} times as fast as "
            f"the heuristic's (geometric mean), the tuned one {best:.3f} times; worst "
            f"{part['gain'].min():.2f}, surely faster by 3 % {(part['low'] > 1.03).sum()} times, "
            f"surely slower {(part['high'] < 1).sum()} times"
        )
    write_csv(arguments.csv, "nearest", table)
    return 0


def winners(url: str | None) -> dict[Problem, str]:
    """The best schedule of every problem that was tuned on one thread, hot."""
    conditions = Conditions.here()
    with existing(url) as database:
        problems = [parse_problem(text) for text in database.best_all(conditions)]
        best = {p: first_current(database.ranking(p, conditions)) for p in problems}
    return {p: record.schedule for p, record in best.items() if record}


def measured(tuned: dict[Problem, str], text: str) -> pd.DataFrame:
    """A row for each problem that has a nearest one."""
    cpu, guesses = Cpu.host(), {}
    for p in tuned:
        others = {q: schedule for q, schedule in tuned.items() if distance(p, q) >= _SAME}
        guess = next(suggestions(p, others, cpu), None)
        if guess is not None and text in str(p):
            guesses[p] = guess
    entries = {
        p: list(dict.fromkeys([heuristic_text(p), schedule, tuned[p]]))
        for p, (_, schedule) in guesses.items()
    }
    with Measurer() as measurer:
        found = {(r.problem, r.schedule): r for r in race(measurer, entries, FINAL)}
    rows = []
    labels = layer_labels(list(tuned))
    names = dict(zip(tuned, labels, strict=True))
    for p, (other, schedule) in guesses.items():
        heuristic, nearest, best = (
            found[str(p), s] for s in (heuristic_text(p), schedule, tuned[p])
        )
        low, high = speedup_interval(heuristic, nearest)
        rows.append(
            {
                "layer": names[p],
                "nearest": names[other],
                "distance": distance(p, other),
                "heuristic": heuristic.seconds_per_call,
                "gain": heuristic.seconds_per_call / nearest.seconds_per_call,
                "low": low,
                "high": high,
                "tuned_gain": heuristic.seconds_per_call / best.seconds_per_call,
                "guess": heuristic_text(p),
                "schedule": schedule,
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    leave(ended("nearest", main))

"""Races between two ways to compute the same layers, each with its best schedule.

Each side of a pair has some schedules. All are checked against float64 and raced in one process.
The fastest of each side then race in fresh processes, because the lowest of several noisy times is
low partly by luck. Only the second race counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.measure.races import FINAL, Entries, Format, race
from fastrun.tuner.records.record import Outcome, Record, Stage
from fastrun.tuner.records.statistics import ENOUGH
from fastrun.tuner.records.verdicts import speedup_interval, verdict
from fastrun.tuner.report.frames import layer_labels

_SWEEP = Format(Stage.RACE, processes=1, rounds=3, block=5e-3)
_FINAL = replace(FINAL, block=5e-3, slow=math.inf)
_QUICK_SWEEP = Format(Stage.RACE, processes=1, rounds=2, block=1e-3)
_QUICK_FINAL = Format(Stage.FINAL, processes=1, rounds=ENOUGH, block=1e-3)

Found = dict[tuple[str, str], Record]


@dataclass(frozen=True)
class Pair:
    """Two sides of one problem: how many times faster is `after` than `before`?

    Each side is the texts of its schedules, of which the fastest is taken. `about` has the columns
    that distinguish the pair from the others of its experiment.
    """

    problem: ConvProblem
    before: Sequence[str]
    after: Sequence[str]
    about: Mapping[str, str | int]

    @property
    def sides(self) -> tuple[Sequence[str], Sequence[str]]:
        return self.before, self.after


@dataclass(frozen=True)
class Findings:
    """The results of an experiment: a table, and the records of all timed schedules."""

    table: pd.DataFrame
    records: Sequence[Record]


def race_pairs(pairs: Sequence[Pair], regime: str = "hot", quick: bool = False) -> Findings:
    """Race all pairs on one thread; a row for each.

    Columns: those of `about`, `problem`, and for both sides seconds per call (`before`, `after`),
    bytes of workspace (`before_bytes`), rms error relative to the output's (`before_error`) and the
    schedule (`before_schedule`); `speedup` with its 95 % interval `low` to `high`, and `verdict`.

    Raises:
        RuntimeError: no schedule of a side can be timed; the message has the reasons.
    """
    sweep, final = (_QUICK_SWEEP, _QUICK_FINAL) if quick else (_SWEEP, _FINAL)
    with Measurer(regime=regime) as measurer:
        choices = [(d.problem, side) for d in pairs for side in d.sides if len(side) > 1]
        swept = raced(measurer, _merged(choices), sweep)
        chosen = [[_best(swept, d.problem, side) for side in d.sides] for d in pairs]
        finalists = [(d.problem, best) for d, best in zip(pairs, chosen, strict=True)]
        finals = raced(measurer, _merged(finalists), final)
    decided = [
        _row(d, *(finals[str(d.problem), schedule] for schedule in best))
        for d, best in zip(pairs, chosen, strict=True)
    ]
    return Findings(pd.DataFrame(decided), [*swept.values(), *finals.values()])


def race_layers(
    problems: Sequence[ConvProblem],
    column: str,
    values: Iterable[str],
    sides: Callable[[ConvProblem, str], tuple[Sequence[str], Sequence[str]]],
    quick: bool,
) -> Findings:
    """Race a pair for each layer and each value of a column; `sides` are its schedules."""
    labelled = list(zip(problems, layer_labels(problems), strict=True))
    return race_pairs(
        [
            Pair(problem, *sides(problem, value), about={"layer": label, column: value})
            for problem, label in labelled
            for value in values
        ],
        quick=quick,
    )


def raced(measurer: Measurer, entries: Entries, form: Format) -> Found:
    """The records of a race, by problem and schedule."""
    if not entries:
        return {}
    return {(r.problem, r.schedule): r for r in race(measurer, entries, form)}


def _merged(parts: Sequence[tuple[ConvProblem, Sequence[str]]]) -> dict[Problem, list[str]]:
    """The distinct schedules of each problem."""
    merged: dict[ConvProblem, dict[str, None]] = {}
    for problem, schedules in parts:
        merged.setdefault(problem, {}).update(dict.fromkeys(schedules))
    return {problem: list(schedules) for problem, schedules in merged.items()}


def _best(swept: Found, problem: ConvProblem, side: Sequence[str]) -> str:
    if len(side) == 1:
        return side[0]
    tried = [swept[str(problem), schedule] for schedule in side]
    timed = [r for r in tried if r.samples]
    if not timed:
        reasons = "; ".join(sorted({f"{r.outcome}: {r.reason}" for r in tried}))
        raise RuntimeError(f"{problem}: no schedule can be timed: {reasons}")
    return min(timed, key=lambda r: r.seconds_per_call).schedule


def _row(pair: Pair, before: Record, after: Record) -> dict[str, object]:
    low, high = speedup_interval(before, after)
    sides = {"before": before, "after": after}
    return {
        **pair.about,
        "problem": str(pair.problem),
        **{name: _seconds(r) for name, r in sides.items()},
        "speedup": _seconds(before) / _seconds(after),
        "low": low,
        "high": high,
        "verdict": verdict(before, after),
        **{f"{name}_bytes": r.workspace for name, r in sides.items()},
        **{f"{name}_error": r.errors.rms if r.errors else math.nan for name, r in sides.items()},
        **{f"{name}_schedule": r.schedule for name, r in sides.items()},
    }


def _seconds(record: Record) -> float:
    return record.seconds_per_call if record.outcome == Outcome.CORRECT else math.nan

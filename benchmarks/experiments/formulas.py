"""The heuristics' cache formulas against a search over the field that they give.

    python -m fastrun.benchmarks.experiments.formulas [--quick] [--json OUT] [--csv FOLDER]

A formula gives one field of a schedule. Only this field is varied, from a quarter to four times the
formula's value, and to the value for everything at once. The best value races the formula's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from fastrun.benchmarks.experiments.command import Column, Part, command, show_pairs
from fastrun.benchmarks.experiments.pairs import Findings, Pair, race_pairs
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule, templates
from fastrun.tuner.records.record import Stage
from fastrun.tuner.report.frames import layer_labels, rows
from fastrun.tuner.terminal.exits import ended, leave

_FACTORS = (1 / 4, 1 / 2, 1, 2, 4)

_SAME = tuple(
    f"conv 1x{c}x{h}x{h} {c}x3x3 s1 p1 bias relu"
    for h, c in ((112, 32), (56, 64), (28, 128), (14, 256), (7, 512), (224, 64), (28, 512))
)
_STRIDED = (
    "conv 1x3x224x224 64x7x7 s2 p3 bias relu",
    "conv 1x64x56x56 128x3x3 s2 p1 bias relu",
    "conv 1x256x14x14 512x3x3 s2 p1 bias relu",
)
_POINTWISE = (
    "conv 1x24x56x56 144x1x1 s1 p0 bias relu",
    "conv 1x64x56x56 256x1x1 s1 p0 bias relu",
    "conv 1x256x56x56 64x1x1 s1 p0 bias relu",
    "conv 1x512x28x28 128x1x1 s1 p0 bias relu",
    "conv 1x256x14x14 1024x1x1 s1 p0 bias relu",
    "conv 1x1024x14x14 256x1x1 s1 p0 bias relu",
    "conv 1x2048x7x7 512x1x1 s1 p0 bias relu",
)


@dataclass(frozen=True)
class Formula:
    """A formula for a `field` of an algorithm's schedule that depends on a cache.

    `everything` is the field's value that makes one block, or one task, of the whole image.
    """

    algorithm: str
    field: str
    layers: tuple[str, ...]
    everything: Callable[[ConvProblem, Any], int]

    def schedules(self, p: ConvProblem) -> tuple[str, list[str]]:
        """The formula's schedule, and the schedules with all values to try, its own included."""
        template, cpu = templates()[self.algorithm], Cpu.host()
        says = template.heuristic(p, cpu)
        value, most = getattr(says, self.field), self.everything(p, says)
        values = {min(most, max(1, round(value * factor))) for factor in _FACTORS} | {most}
        tried = [replace(says, **{self.field: v}) for v in sorted(values)]
        return template.text(says), [template.text(s) for s in tried]

    def value(self, schedule: str) -> int:
        """The field's value in a schedule's text."""
        found: int = getattr(parse_schedule(schedule)[1], self.field)
        return found


FORMULAS = {
    "L1: tiles of a Winograd block": Formula(
        "winograd", "nr_tiles", _SAME, lambda p, s: -(-p.oh // s.mh) * -(-p.ow // s.mw)
    ),
    "L2: pixels that im2col unfolds": Formula(
        "im2col", "block", _STRIDED + _SAME, lambda p, s: p.oh * p.ow
    ),
    "L2: rows of a task of direct": Formula(
        "direct", "rows", _STRIDED + _SAME, lambda p, s: -(-p.oh // s.tile_h)
    ),
    "L2: tiles of a task of pointwise": Formula(
        "pointwise", "tiles", _POINTWISE, lambda p, s: -(-p.h * p.w // s.rows)
    ),
}


def measure(quick: bool = False, names: Sequence[str] = tuple(FORMULAS)) -> Findings:
    """A row for each formula and layer; `before` is the formula's value, `after` the best one.

    `value` is the formula's value, `best` the fastest one.
    """
    pairs = []
    for name in names:
        formula = FORMULAS[name]
        problems = [ConvProblem.parse(text) for text in formula.layers]
        problems = [p for p in problems if p.flops < 3e8][:1] if quick else problems
        for problem, label in zip(problems, layer_labels(problems), strict=True):
            says, tried = formula.schedules(problem)
            about: dict[str, str | int] = {
                "formula": name,
                "layer": label,
                "value": formula.value(says),
            }
            pairs.append(Pair(problem, [says], tried, about))
    found = race_pairs(pairs, quick=quick)
    best = [FORMULAS[r.formula].value(r.after_schedule) for r in rows(found.table)]
    return Findings(found.table.assign(best=best), found.records)


def curves(found: Findings) -> pd.DataFrame:
    """The times of all values: a row for each formula, layer and value.

    `times` is the value in multiples of the formula's, `slower` the time in multiples of the best.
    """
    points = []
    for pair in rows(found.table):
        formula = FORMULAS[pair.formula]
        tried = {
            formula.value(r.schedule): r.seconds_per_call
            for r in found.records
            if (r.stage, r.problem, r.algorithm) == (Stage.RACE, pair.problem, formula.algorithm)
        }
        best = min(tried.values(), default=math.inf)
        points += [
            (pair.formula, pair.layer, value, value / pair.value, seconds / best)
            for value, seconds in sorted(tried.items())
        ]
    return pd.DataFrame(points, columns=["formula", "layer", "value", "times", "slower"])


_ABOUT: dict[str, Column] = {
    "formula": lambda r: r.formula,
    "layer": lambda r: r.layer,
    "says>": lambda r: str(r.value),
    "best>": lambda r: str(r.best),
}

show_table = show_pairs(_ABOUT, "formula", "best", by="formula")

main = command("formulas", __doc__, [Part("formulas", measure, show_table)])

if __name__ == "__main__":
    leave(ended("formulas", main))

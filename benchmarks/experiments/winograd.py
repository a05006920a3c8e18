"""Experiment 3: Winograd in blocks of tiles against naive Winograd of the whole map; accuracy.

    python -m fastrun.benchmarks.experiments.winograd [--quick] [--json OUT] [--csv FOLDER]

The maps are square with 7 to 224 pixels a side, with equal numbers of input and output channels, up
to 4 GFLOP. Naive: the whole map is padded, transformed, packed, multiplied and transformed back, in
NCHW, without any parameter. Engineered: the heuristic's schedule for the same tile. So neither side
is tuned. `python -m fastrun.benchmarks.experiments.formulas` compares other blocks of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pandas as pd

from fastrun.benchmarks.experiments.command import Column, Part, command, show, show_pairs
from fastrun.benchmarks.experiments.pairs import Findings, Pair, race_pairs, raced
from fastrun.kernels.conv import winograd, winograd_naive
from fastrun.kernels.conv.winograd.transform import ALPHA, POINTS, expected_error, sets_of_points
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.measure.races import Format
from fastrun.tuner.records.record import Stage
from fastrun.tuner.terminal.exits import ended, leave

SIZES = (7, 14, 28, 56, 112, 224)
CHANNELS = (32, 64, 128, 256, 512)
TILES = (2, 4, 6)

_MOST = 4e9  # FLOP


def measure(quick: bool = False, channels: Sequence[int] = CHANNELS) -> Findings:
    """A row for each tile, size and number of channels; `before` is naive, `after` engineered."""
    sizes, channels, tiles = ((7, 14), (32,), (6,)) if quick else (SIZES, channels, TILES)
    problems = [(layer(c, size), c, size) for size in sizes for c in channels]
    return race_pairs(
        [
            Pair(
                problem,
                before=[winograd_naive.template.text(winograd_naive.Schedule("NCHW", m))],
                after=[engineered(problem, m)],
                about={"layer": f"{c}@{size}", "m": m, "size": size, "channels": c},
            )
            for problem, c, size in problems
            for m in tiles
            if problem.flops < _MOST
        ],
        quick=quick,
    )


def layer(channels: int, size: int) -> ConvProblem:
    """A 3x3 layer of a ResNet or VGG."""
    return ConvProblem.parse(f"conv 1x{channels}x{size}x{size} {channels}x3x3 s1 p1 bias relu")


def engineered(p: ConvProblem, m: int) -> str:
    """The heuristic's schedule for F(m x m, 3x3)."""
    return winograd.template.text(winograd.heuristic_with_tile(p, Cpu.host(), m, m))


def accuracy(quick: bool = False) -> Findings:
    """A row for each tile, set of points and number of channels: errors against float64.

    Columns `m`, `points`, `channels`, the measured errors `rms` and `max`, and the rms error that
    the heuristic expects (`expected`), all relative to the output's rms.
    """
    channels = (16,) if quick else (16, 64, 256, 512)
    cpu = Cpu.host()
    about = {}
    for c, m in product(channels, range(2, ALPHA - 1)):
        p = layer(c, 28)
        for points in POINTS:
            # If no balanced set is better than the standard one, "balanced" means the standard one.
            if points == "balanced" or points in sets_of_points(m + 1):
                s = replace(winograd.heuristic_with_tile(p, cpu, m, m), points=points)
                about[p, winograd.template.text(s)] = (m, points, c)
    entries: dict[Problem, list[str]] = {}
    for p, schedule in about:
        entries.setdefault(p, []).append(schedule)
    with Measurer() as measurer:
        found = raced(measurer, entries, Format(Stage.RACE, processes=1, rounds=1, block=0.0))
    rows = []
    for (p, schedule), (m, points, c) in about.items():
        errors = found[str(p), schedule].errors
        assert errors, f"{schedule} did not run"
        expected = expected_error(p, (m, m), points)
        rows.append((m, points, c, errors.rms, errors.max, expected))
    columns = ["m", "points", "channels", "rms", "max", "expected"]
    return Findings(pd.DataFrame(rows, columns=columns), list(found.values()))


_ABOUT: dict[str, Column] = {
    "map": lambda r: f"{r.size}x{r.size}",
    "channels>": lambda r: str(r.channels),
    "tile": lambda r: f"F({r.m},3)",
}
_ACCURACY: dict[str, Column] = {
    "tile": lambda r: f"F({r.m},3)",
    "points": lambda r: r.points,
    "channels>": lambda r: str(r.channels),
    "rms\nerror>": lambda r: f"{r.rms:.1e}",
    "largest\nerror>": lambda r: f"{r.max:.1e}",
    "rms\nexpected>": lambda r: f"{r.expected:.1e}",
}

show_table = show_pairs(_ABOUT, "naive", "engineered", by="m", memory=True)
show_accuracy = show(_ACCURACY)

main = command(
    "winograd",
    __doc__,
    [
        Part("winograd", measure, show_table),
        Part("winograd-accuracy", accuracy, show_accuracy),
    ],
)

if __name__ == "__main__":
    leave(ended("winograd", main))

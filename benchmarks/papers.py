"""Tables of papers beside ours: the same layers, each side as a share of its own machine's peak.

Processors of different years cannot be compared in milliseconds. A share of the peak of plain
multiply-adds can; by Winograd it may exceed 1, since operations count as the direct method's.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.measure.measurer import heuristic_text, remeasure
from fastrun.tuner.records.record import Conditions, Record
from fastrun.tuner.records.units import percent, ratio
from fastrun.tuner.store.database import existing
from fastrun.tuner.store.staleness import first_current
from fastrun.tuner.terminal.display import grid, screen


@dataclass(frozen=True)
class Paper:
    """Published rates of layers, in GFLOP/s by the direct method's operations.

    `peak` is that of the threads used there, in GFLOP/s; `about` says with what they were reached.
    """

    title: str
    source: str
    about: str
    peak: float
    layers: Mapping[str, float]


PAPERS: Mapping[str, Paper] = {
    "tvm-winograd": Paper(
        title="Winograd in NCHWc layouts, TVM pull request 2111 (2018)",
        source="https://github.com/apache/tvm/pull/2111",
        about="one thread, 1000 trials of AutoTVM for each layer",
        peak=120.0,
        layers={
            "conv 1x64x56x56 64x3x3 s1 p1": 193.0,
            "conv 1x128x28x28 128x3x3 s1 p1": 221.0,
            "conv 1x256x14x14 256x3x3 s1 p1": 182.0,
            "conv 1x512x7x7 512x3x3 s1 p1": 176.0,
        },
    ),
}
"""The papers by the names of `fastrun bench --paper`."""


@dataclass(frozen=True)
class Row:
    """A layer: the paper's rate and ours, each as a share of the peak there and here."""

    problem: str
    theirs: float
    ours: float
    record: Record

    @property
    def ratio(self) -> float:
        """Our share as a multiple of theirs."""
        return self.ours / self.theirs


def rows(paper: Paper, url: str | None) -> list[Row]:
    """The layers of a paper, measured here on one thread: stored winners, else the heuristic's.

    Raises:
        DatabaseError: the database cannot be read.
    """
    peak, found = probe().peak, list[Row]()
    with existing(url) as database:
        for text, gflops in paper.layers.items():
            p = ConvProblem.parse(text)
            best = first_current(database.ranking(p, Conditions.here()))
            schedule = best.schedule if best else heuristic_text(p)
            record = remeasure(p, schedule, 1, "hot")
            ours = p.flops / record.seconds_per_call / peak
            found.append(Row(text, gflops / paper.peak, ours, record))
    return found


def show(paper: Paper, found: Sequence[Row]) -> None:
    """Print the paper's table beside ours."""
    print(f"{paper.title}: {paper.about}\n{paper.source}")
    heads = ["layer", "theirs\nGFLOP/s>", "of their\npeak>", "ours\nGFLOP/s>", "of our\npeak>",
             "ours /\ntheirs>", "schedule"]  # fmt: skip
    cells = []
    for row in found:
        rate = ConvProblem.parse(row.problem).flops / row.record.seconds_per_call / 1e9
        cells.append(
            [
                row.problem,
                f"{paper.layers[row.problem]:.0f}",
                percent(row.theirs),
                f"{rate:.0f}",
                percent(row.ours),
                ratio(row.ratio),
                row.record.algorithm,
            ]
        )
    grid(screen(), heads, cells)
    mean = statistics.geometric_mean(row.ratio for row in found)
    print(f"geometric mean of the shares: {ratio(mean)}; our peak {probe().peak / 1e9:.0f} GFLOP/s")

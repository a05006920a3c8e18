"""Experiment 2: unfolding straight into packed panels against packing in a step of its own.

    python -m fastrun.benchmarks.experiments.pack [--quick] [--json OUT] [--csv FOLDER]

im2col by blocks on the same register tile, each side at its best of half, once or twice as many
pixels as the formula for L2 says.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.benchmarks.experiments.command import Column, Part, command, show_duels
from fastrun.benchmarks.experiments.duel import Duel, Findings, settle
from fastrun.benchmarks.experiments.im2col import LAYOUTS, NETWORKS, blocks, layers, schedules
from fastrun.tuner.report.frames import layer_labels
from fastrun.tuner.terminal.exits import ended, leave


def measure(quick: bool = False, networks: Sequence[str] = NETWORKS) -> Findings:
    """A row for each layer and layout; `before` packs in a step of its own, `after` is fused."""
    problems = layers(quick, networks)
    labels = layer_labels(problems)
    return settle(
        [
            Duel(
                problem,
                before=schedules(problem, [layout], blocks(problem), fused=False),
                after=schedules(problem, [layout], blocks(problem), fused=True),
                about={"layer": label, "layout": layout},
            )
            for problem, label in zip(problems, labels, strict=True)
            for layout in LAYOUTS
        ],
        quick=quick,
    )


_ABOUT: dict[str, Column] = {"layer": lambda r: r.layer, "layout": lambda r: r.layout}

show_table = show_duels(_ABOUT, "separate", "fused", by="layout")

PARTS = [Part("pack", measure, show_table)]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    return command("pack", __doc__, PARTS, words)


if __name__ == "__main__":
    leave(ended("pack", main))

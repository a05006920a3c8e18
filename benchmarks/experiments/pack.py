"""Experiment 2: unfolding straight into packed panels against a separate packing step.

    python -m fastrun.benchmarks.experiments.pack [--quick] [--json OUT] [--csv FOLDER]

Both sides are im2col in blocks with the same register tile, each with the best of half, once or
twice as many pixels as the formula for the L2 cache gives.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.benchmarks.experiments.command import Column, Part, command, show_pairs
from fastrun.benchmarks.experiments.im2col import LAYOUTS, NETWORKS, blocks, layers, schedules
from fastrun.benchmarks.experiments.pairs import Findings, race_layers
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.terminal.exits import ended, leave


def measure(quick: bool = False, networks: Sequence[str] = NETWORKS) -> Findings:
    """A row for each layer and layout; `before` packs in a separate step, `after` is fused."""

    def sides(p: ConvProblem, layout: str) -> tuple[list[str], list[str]]:
        separate, fused = (schedules(p, [layout], blocks(p), x) for x in (False, True))
        return separate, fused

    return race_layers(layers(quick, networks), "layout", LAYOUTS, sides, quick)


_ABOUT: dict[str, Column] = {"layer": lambda r: r.layer, "layout": lambda r: r.layout}

show_table = show_pairs(_ABOUT, "separate", "fused", by="layout")

main = command("pack", __doc__, [Part("pack", measure, show_table)])

if __name__ == "__main__":
    leave(ended("pack", main))

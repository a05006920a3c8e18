"""The gain of prefetching weights in late layers, whose weights stream from memory.

    python -m fastrun.benchmarks.experiments.prefetch [--quick] [--json OUT] [--csv FOLDER]

In `cold-weights` each call reads another copy of the weights, similar to a network; in `hot`, for
contrast, the same copy. Each side takes the better of both orders of tasks. The side with prefetch
also takes the best of three distances: 16 steps of K, 64 steps, and a whole panel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd

from fastrun.benchmarks.experiments.command import Column, Part, command, show_pairs
from fastrun.benchmarks.experiments.pairs import Findings, Pair, race_pairs
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import templates
from fastrun.tuner.records.record import REGIMES
from fastrun.tuner.terminal.exits import ended, leave

LAYERS = (
    ("3x3 256@14", "direct", "conv 1x256x14x14 256x3x3 s1 p1 bias relu"),
    ("3x3 512@7", "direct", "conv 1x512x7x7 512x3x3 s1 p1 bias relu"),
    ("3x3 512@14", "direct", "conv 1x512x14x14 512x3x3 s1 p1 bias relu"),
    ("3x3 256-512@14 /2", "direct", "conv 1x256x14x14 512x3x3 s2 p1 bias relu"),
    ("3x3 256@14", "winograd", "conv 1x256x14x14 256x3x3 s1 p1 bias relu"),
    ("3x3 512@7", "winograd", "conv 1x512x7x7 512x3x3 s1 p1 bias relu"),
    ("3x3 512@14", "winograd", "conv 1x512x14x14 512x3x3 s1 p1 bias relu"),
    ("1x1 1024-256@14", "pointwise", "conv 1x1024x14x14 256x1x1 s1 p0 bias relu"),
    ("1x1 2048-512@7", "pointwise", "conv 1x2048x7x7 512x1x1 s1 p0 bias relu"),
    ("1x1 512-2048@7", "pointwise", "conv 1x512x7x7 2048x1x1 s1 p0 bias relu"),
    ("1x1 320-1280@7", "pointwise", "conv 1x320x7x7 1280x1x1 s1 p0 bias relu"),
    ("dense 2048-1000", "pointwise", "conv 1x2048x1x1 1000x1x1 s1 p0 bias"),
    ("dense 4096-4096", "pointwise", "conv 1x4096x1x1 4096x1x1 s1 p0 bias relu"),
)


def measure(quick: bool = False) -> Findings:
    """A row for each layer, algorithm and regime; `before` does not prefetch, `after` does."""
    chosen = LAYERS[:1] if quick else LAYERS
    parts = [race_pairs([pair(*x, regime) for x in chosen], regime, quick) for regime in REGIMES]
    table = pd.concat([part.table for part in parts], ignore_index=True)
    return Findings(table, [r for part in parts for r in part.records])


def pair(label: str, algorithm: str, text: str, regime: str) -> Pair:
    """The same orders of tasks on both sides, without and with prefetch."""
    problem, template = ConvProblem.parse(text), templates()[algorithm]
    orders = _ORDERS[algorithm](template.heuristic(problem, Cpu.host()))
    panel = problem.c if algorithm == "winograd" else problem.depth

    def fetching(distance: int) -> list[str]:
        return [template.text(replace(s, prefetch=distance)) for s in orders]

    return Pair(
        problem,
        before=fetching(0),
        after=[s for distance in (16, 64, panel) for s in fetching(distance)],
        about={"layer": label, "algorithm": algorithm, "regime": regime},
    )


def _panels_first_or_last(schedule: Any) -> list[Any]:
    return [replace(schedule, oc_outer=outer) for outer in (False, True)]


_ORDERS: dict[str, Callable[[Any], list[Any]]] = {
    "direct": _panels_first_or_last,
    "pointwise": _panels_first_or_last,
    "winograd": lambda schedule: [replace(schedule, split=s) for s in ("tiles", "channels")],
}

_ABOUT: dict[str, Column] = {
    "layer": lambda r: r.layer,
    "algorithm": lambda r: r.algorithm,
    "regime": lambda r: r.regime,
}

show_table = show_pairs(_ABOUT, "without", "with", by="regime")

main = command("prefetch", __doc__, [Part("prefetch", measure, show_table)])

if __name__ == "__main__":
    leave(ended("prefetch", main))

"""Figures of what a database holds of targets on this machine: `fastrun.plot`.

Every function but `precision` and `steps` takes a `Database`, targets as `fastrun.tune` does, and
the conditions of the measurements: `threads` (default 1) and `regime` ("hot", the default, or
"cold-weights"). It returns a matplotlib Figure. A layer is a distinct convolution of the targets.

Every function but `steps` raises:
    DatabaseError: the database holds no valid measurement of the targets under these conditions,
        or cannot be read; or no front was found.
    ProblemError: a text is that of no problem.
    GraphError: there is no such network or file, or it cannot be used.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

import pandas as pd

from fastrun.graph.runtime.executable import Executable
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.networks.targets import Shapes, Targets, read_target, read_targets
from fastrun.tuner.precision.kept import kept_front
from fastrun.tuner.records.record import Conditions, Outcome
from fastrun.tuner.records.units import plural
from fastrun.tuner.report import layer_plots, plots
from fastrun.tuner.report.frames import (
    algorithms_frame,
    best_frame,
    convergence_frame,
    importance_frame,
    pareto_frame,
    precision_frame,
)
from fastrun.tuner.report.page import gather
from fastrun.tuner.report.style import Figure
from fastrun.tuner.report.summary import Facts
from fastrun.tuner.store.database import Database, DatabaseError
from fastrun.tuner.store.frame import frame

__all__ = [
    "Figure",
    "algorithms",
    "convergence",
    "importance",
    "pareto",
    "precision",
    "roofline",
    "share_of_peak",
    "speedups",
    "steps",
    "trials",
    "tuning_gains",
]


class Where(TypedDict, total=False):
    """The conditions of the measurements, and the shapes of the networks' inputs."""

    threads: int
    regime: str
    shapes: Shapes


def speedups(database: Database, targets: Targets, **where: Unpack[Where]) -> Figure:
    """How many times faster than the naive loop the best schedule of each layer is."""
    return layer_plots.over_naive(_best(_facts(database, targets, where)))


def tuning_gains(database: Database, targets: Targets, **where: Unpack[Where]) -> Figure:
    """How many times faster than the heuristic's schedule the best is, with 95 % intervals."""
    return layer_plots.over_heuristic(_best(_facts(database, targets, where)))


def share_of_peak(database: Database, targets: Targets, **where: Unpack[Where]) -> Figure:
    """Which per cent of the machine's measured peak the best schedule of each layer reaches.

    Rates count the operations of the direct method, so that Winograd may pass 100 %.
    """
    facts = _facts(database, targets, where)
    return layer_plots.share_of_peak(_best(facts), facts.peak)


def roofline(database: Database, targets: Targets, **where: Unpack[Where]) -> Figure:
    """Each layer's GFLOP/s by its FLOP per byte, below the measured peak and reading rates."""
    facts = _facts(database, targets, where)
    return layer_plots.roofline(_best(facts), facts.peak, facts.machine.read_streams)


def algorithms(database: Database, targets: Targets, **where: Unpack[Where]) -> Figure:
    """How many times as long as the best the best schedule of each algorithm takes."""
    facts = _facts(database, targets, where)
    return plots.algorithms(algorithms_frame(facts.decisive), _best(facts))


def convergence(database: Database, targets: Targets, **where: Unpack[Where]) -> Figure:
    """How the best time so far, as a multiple of the best found, falls over a layer's trials."""
    return plots.convergence(convergence_frame(_facts(database, targets, where).records))


def trials(database: Database, targets: Targets, **where: Unpack[Where]) -> Figure:
    """The milliseconds of every correct trial in the order of the search; for one problem."""
    records = _facts(database, targets, where).records
    tried = [r for r in records if r.stage == "screen" and not r.baseline]
    return plots.trials(frame(r for r in tried if r.outcome == Outcome.CORRECT))


def importance(
    database: Database, targets: Targets, least: int = 20, **where: Unpack[Where]
) -> Figure:
    """How much of the variance of log time each parameter of a schedule explains, in per cent.

    Algorithms with fewer than `least` correct trials of a layer are left out.

    Raises:
        DatabaseError: that are all algorithms.
    """
    table = importance_frame(_facts(database, targets, where).records, least)
    if table.empty:
        raise DatabaseError(
            f"no algorithm has {plural(least, 'correct trial')} of one layer: tune longer, or ask "
            "for fewer with `least`"
        )
    return plots.importance(table)


def pareto(database: Database, targets: Targets, **where: Unpack[Where]) -> Figure:
    """What less workspace (KiB) and a smaller rms error cost in time."""
    return plots.pareto(pareto_frame(_facts(database, targets, where).fronts))


def precision(network: str, threads: int = 1) -> Figure:
    """What a smaller loss by rounding costs in time, of the front that `fastrun tune` has found.

    `network` is the float32 network, whose precision was tuned on this machine (`--calibrate`).
    """
    target = read_target(network)
    here = Conditions.here(threads)
    kept = kept_front(target.graph, here.machine, threads) if target.is_network else None
    if kept is None:
        raise DatabaseError(
            f"no precisions of {target.name} were compared on this machine with "
            f"{plural(threads, 'thread')}: `fastrun tune {target.name} --calibrate DATA` first"
        )
    return plots.precision(precision_frame(kept))


def steps(network: Executable, repeats: int = 20) -> Figure:
    """The longest steps of a loaded network in microseconds, measured now in `repeats` runs."""
    return plots.steps(pd.DataFrame(network.profile(repeats=repeats)))


def _facts(database: Database, targets: Targets, where: Where) -> Facts:
    asked = read_targets(targets, where.get("shapes"))
    here = Conditions.here(where.get("threads", 1), where.get("regime", "hot"))
    return gather(database, asked, probe(), here)


def _best(facts: Facts) -> pd.DataFrame:
    return best_frame(facts.found, facts.peak)

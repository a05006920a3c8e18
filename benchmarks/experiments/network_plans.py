"""Experiment 4: the speed-up of whole networks by better algorithms and by tuning, separated.

    python -m fastrun.benchmarks.experiments.network_plans [TARGET ...] [--threads 1,2]
        [--seconds S] [--db FILE] [--quick] [--json OUT] [--csv FOLDER]

Plans of one network race each other in the same processes: naive loops; im2col; the heuristics with
and without Winograd; measured schedules with and without Winograd, and in one layout only; and the
plan that won the network's final. Every plan must compute the same as the heuristics' plan. An
algorithm that is available is no merit of tuning, so comparisons are made with and without
Winograd. With `--seconds`, each network is tuned into the database for so long first.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fastrun.benchmarks.experiments.command import Column, Part, carry_out, options, show
from fastrun.benchmarks.experiments.pairs import Findings
from fastrun.graph.core.model import Graph
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choice, Choose
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import make_plan
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import templates
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.operands import Scratch
from fastrun.tuner.measure.sandbox import Sandbox
from fastrun.tuner.networks.alternatives import ONE_LAYOUT, restricted, same
from fastrun.tuner.networks.costs import costs
from fastrun.tuner.networks.in_place import PickledNetwork, race_plans
from fastrun.tuner.networks.measured_choices import guessed_choices, stored_choices
from fastrun.tuner.networks.stored_plans import stored_plan
from fastrun.tuner.networks.tune import tune_network
from fastrun.tuner.records.record import NO_LIMITS
from fastrun.tuner.records.statistics import ENOUGH, interval_verdict, ratio_interval, typical
from fastrun.tuner.records.units import interval, ms, ratio
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.exits import ended, leave

NETWORKS = ("resnet18", "resnet50", "shufflenetv2", "mobilenetv2")

NAIVE, IM2COL, WITHOUT, HEURISTIC = "naive", "im2col", "heuristic, no Winograd", "heuristic"
TUNED_WITHOUT, TUNED, FINAL = "tuned layers, no Winograd", "tuned layers", "tuned, whole network"

COMPARISONS: Mapping[str, tuple[str, str]] = {
    "all together": (NAIVE, FINAL),
    "methods instead of loops": (NAIVE, WITHOUT),
    "Winograd is available": (WITHOUT, HEURISTIC),
    "tuning, Winograd in neither": (WITHOUT, TUNED_WITHOUT),
    "tuning, Winograd in both": (HEURISTIC, FINAL),
    "tuning and Winograd": (WITHOUT, FINAL),
    "final over layers": (TUNED, FINAL),
    **{f"mixed over {name}": (name, TUNED) for name in ONE_LAYOUT},
}
"""The pairs of plans of which the speed-up of the second over the first is reported."""

_ROUNDS = 12
_SLOW = 4.0  # seconds; a plan whose run takes longer is timed once
_HANG_SECONDS = 1800.0  # a process that times networks for so long counts as hanging
# Schedules of each pair of layouts: enough to contain one without Winograd.
_MANY = 1000


@dataclass(frozen=True)
class PlanRace:
    """The races of an experiment: networks, numbers of threads, and the database of layers.

    Each network is tuned into the database for `seconds` first. Plans race in `processes`
    processes, and naive loops too if `naive` is true.
    """

    networks: Sequence[str]
    threads: Sequence[int]
    database: str | Path | None
    seconds: float = 0.0
    processes: int = 3
    naive: bool = True

    def times(self, quick: bool = False) -> Findings:
        """A row for each network, number of threads and plan.

        Columns: `seconds` of a run, the name of an equal plan (`same`), and all `samples`. Samples
        of one network and number of threads are from the same rounds, except those of naive loops.
        """
        with Database(self.database) as store:
            found = [
                row
                for name in self.networks
                for threads in self.threads
                for row in _plan_rows(self, name, threads, store, quick)
            ]
        return Findings(pd.DataFrame(found), [])


def speedups(times: pd.DataFrame) -> pd.DataFrame:
    """A row for each network, number of threads and comparison of existing plans.

    `before` and `after` are seconds of a run, `speedup` is their ratio with its 95 % interval `low`
    to `high`. `verdict` is as for layers, or `same plan`.
    """
    rows = []
    for (network, threads), members in times.groupby(["network", "threads"], sort=False):
        plans = {row.plan: row for row in members.itertuples(index=False)}
        for name, (first, second) in COMPARISONS.items():
            if first in plans and second in plans:
                compared = _compared(plans[first], plans[second])
                rows.append(
                    {"network": network, "threads": threads, "comparison": name, **compared}
                )
    return pd.DataFrame(rows)


def named_plans(graph: Graph, store: Database, cpu: Cpu, threads: int) -> dict[str, Plan]:
    """The plans that race, by name; without the last one if the network had no final."""
    heuristic = functools.cache(guessed_choices(cpu, threads, NO_LIMITS))
    tuned = functools.cache(stored_choices(store, cpu, threads, NO_LIMITS))
    several = functools.cache(stored_choices(store, cpu, threads, NO_LIMITS, _MANY))
    ways: dict[str, Choose] = {
        NAIVE: _naive,
        IM2COL: restricted(heuristic, _by("im2col")),
        WITHOUT: restricted(heuristic, lambda choice: not _by("winograd")(choice)),
        HEURISTIC: heuristic,
        **{name: restricted(tuned, allowed) for name, allowed in ONE_LAYOUT.items()},
        TUNED_WITHOUT: restricted(several, lambda choice: not _by("winograd")(choice)),
        TUNED: tuned,
    }
    moving = costs(probe(), threads)
    made = {x: make_plan(graph, way, cpu, moving, threads)[0] for x, way in ways.items()}
    if kept := stored_plan(graph, store, cpu, threads, NO_LIMITS):
        made[FINAL] = kept[0]
    return made


def _by(algorithm: str) -> Callable[[Choice], bool]:
    return lambda choice: choice.schedule.startswith(f"{algorithm}(")


def _naive(p: Problem) -> list[Choice]:
    if not isinstance(p, ConvProblem):
        return []
    template = templates()["naive"]
    return [Choice(template.text(template.schedule()), NCHW, NCHW, p.flops / 1e9)]


def _plan_rows(
    asked: PlanRace, name: str, threads: int, store: Database, quick: bool
) -> list[dict[str, object]]:
    """The rows of one network."""
    graph, cpu = optimise(load_network(name)), Cpu.host()
    if asked.seconds:
        tune_network(graph, store, threads, asked.seconds, NO_LIMITS)
    plans = named_plans(graph, store, cpu, threads)
    if not asked.naive:
        del plans[NAIVE]
    # A network without layers for Winograd has the same plan with and without it.
    order = [HEURISTIC, *plans]
    first = {x: next(y for y in order if same(plans[y], plan)) for x, plan in plans.items()}
    racing = {x: plans[x] for x in first.values()}
    samples = raced_plans(graph, racing, threads, 1 if quick else asked.processes, quick)
    return [
        {
            "network": Path(name).stem if Path(name).exists() else name,
            "threads": threads,
            "plan": x,
            "same": y if x != y else "",
            "seconds": typical(samples[y]),
            "samples": samples[y],
        }
        for x, y in first.items()
    ]


def raced_plans(
    graph: Graph, plans: Mapping[str, Plan], threads: int, processes: int, quick: bool
) -> dict[str, list[float]]:
    """Seconds of every run of each plan.

    Raises:
        RuntimeError: a plan does not compute the same as the heuristics' plan.
    """
    cores, samples = Cores.split(threads), {name: list[float]() for name in plans}
    with Scratch() as scratch, Sandbox(cores) as sandbox:
        file = scratch.folder / "graph"
        file.write_bytes(pickle.dumps(graph))
        network = PickledNetwork(file, cores.timing)

        def race(names: Sequence[str], rounds: int, seed: int) -> None:
            sandbox.restart()
            texts = [str(plans[name]) for name in names]
            found = sandbox.call(race_plans, (network, texts, rounds, seed), _HANG_SECONDS)
            for name, times in zip(names, found, strict=True):
                if not times:
                    raise RuntimeError(f"{graph.name}: {name!r} computes another output")
                samples[name] += times

        if NAIVE in plans:
            race([HEURISTIC, NAIVE], 1, 0)
            if not quick and samples[NAIVE][0] < _SLOW:
                samples[NAIVE].clear()
                race([HEURISTIC, NAIVE], ENOUGH, 0)
            samples[HEURISTIC].clear()
        others = [HEURISTIC, *(x for x in plans if x not in (HEURISTIC, NAIVE))]
        for process in range(processes):
            race(others, ENOUGH if quick else _ROUNDS, process)
    return samples


def _by_process(samples: Sequence[float]) -> list[Sequence[float]]:
    return [samples[i : i + _ROUNDS] for i in range(0, len(samples), _ROUNDS)]


def _compared(before: Any, after: Any) -> dict[str, object]:
    """The speed-up between the rows of two plans."""
    if (before.same or before.plan) == (after.same or after.plan):
        low, high, said = 1.0, 1.0, "same plan"
    else:
        paired = len(before.samples) == len(after.samples) and before.plan != NAIVE
        groups = _by_process(before.samples), _by_process(after.samples)
        low, high = ratio_interval(*groups, paired)
        said = interval_verdict(low, high)
    return {
        "before": before.seconds,
        "after": after.seconds,
        "speedup": before.seconds / after.seconds,
        "low": low,
        "high": high,
        "verdict": said,
    }


_TIMES: dict[str, Column] = {
    "network": lambda r: r.network,
    "threads>": lambda r: str(r.threads),
    "plan": lambda r: r.plan,
    "ms>": lambda r: ms(r.seconds),
    "runs>": lambda r: str(len(r.samples)),
    "the same as": lambda r: r.same,
}
_SPEEDUPS: dict[str, Column] = {
    "network": lambda r: r.network,
    "threads>": lambda r: str(r.threads),
    "what": lambda r: r.comparison,
    "before\nms>": lambda r: ms(r.before),
    "after\nms>": lambda r: ms(r.after),
    "faster>": lambda r: ratio(r.speedup),
    "95 %\ninterval>": lambda r: interval(r.low, r.high),
    "verdict": lambda r: r.verdict,
}


def show_tables(times: pd.DataFrame) -> None:
    """Print the times of all plans, the comparisons, and which plans they compare."""
    show(_TIMES)(times)
    compared = speedups(times)
    show(_SPEEDUPS)(compared)
    for name in dict.fromkeys(compared["comparison"]):
        first, second = COMPARISONS[name]
        print(f"{name}: {second} against {first}")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = options("network_plans", __doc__)
    parser.add_argument("networks", nargs="*", metavar="TARGET", help="networks or ONNX files")
    parser.add_argument("--threads", type=_counts, default=(1,), metavar="N,...")
    parser.add_argument("--db", metavar="FILE", help="database (default: in the cache folder)")
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="tune each network for so long first"
    )
    arguments = parser.parse_args(words)
    networks = arguments.networks or (NETWORKS[2:3] if arguments.quick else NETWORKS)
    plan_race = PlanRace(networks, arguments.threads, arguments.db, arguments.seconds)
    return carry_out([Part("network-plans", plan_race.times, show_tables)], arguments)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(","))


if __name__ == "__main__":
    leave(ended("network_plans", main))

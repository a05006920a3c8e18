"""NeoCPU's layouts: whole networks in one layout throughout, and with a layout for each tensor.

Liu et al., "Optimizing CNN Model Inference on CPUs", 2019, https://arxiv.org/abs/1809.02697. The
paper's ablation goes from convolutions in NCHW, over blocked layouts and fewer moves between
layouts, to a global search for the layout of each convolution. Here plans by heuristics race in
turns: the layouts of all tensors are NCHW, NHWC or NCHWc, or free. Nothing else differs.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fastrun.benchmarks.experiments.network_plans import HEURISTIC, raced_plans
from fastrun.graph.core.problems import convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choose
from fastrun.graph.planner import make_plan
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.networks.alternatives import ONE_LAYOUT, restricted
from fastrun.tuner.networks.costs import costs
from fastrun.tuner.networks.measured_choices import guessed_choices
from fastrun.tuner.records.record import NO_LIMITS
from fastrun.tuner.records.statistics import typical
from fastrun.tuner.records.units import ms, percent, ratio
from fastrun.tuner.terminal.display import grid, screen

TITLE = "NeoCPU: Optimizing CNN Model Inference on CPUs (2019)"
SOURCE = "https://arxiv.org/abs/1809.02697"
CLAIM = "up to 3.45x lower latency than the best of other engines, 15 networks on three processors"

DEFAULT = ("resnet18", "resnet50", "vgg16")
"""Those of the paper's fifteen networks that are built in; the others can be given as files."""


@dataclass(frozen=True)
class Ablation:
    """A network: seconds of a run by the name of a plan, and the share of peak of the free plan."""

    network: str
    seconds: dict[str, float]
    share: float


def ablation(name: str, threads: int = 1, quick: bool = False) -> Ablation:
    """Race the plans of one network.

    Raises:
        GraphError: there is no such network, or it cannot be run.
        RuntimeError: plans do not compute the same.
    """
    graph, cpu = optimise(load_network(name)), Cpu.host()
    free = functools.cache(guessed_choices(cpu, threads, NO_LIMITS))
    ways: dict[str, Choose] = {HEURISTIC: free}
    ways |= {plan: restricted(free, allowed) for plan, allowed in ONE_LAYOUT.items()}
    moving = costs(probe(), threads)
    plans = {plan: make_plan(graph, way, cpu, moving, threads)[0] for plan, way in ways.items()}
    samples = raced_plans(graph, plans, threads, 1, quick)
    seconds = {plan: typical(found) for plan, found in samples.items()}
    flops = sum(count * p.flops for p, count, _ in convolutions(graph))
    return Ablation(name, seconds, flops / seconds[HEURISTIC] / probe().peak_of(threads, ""))


def show(found: Sequence[Ablation]) -> None:
    """Print a row for each network, and how much the free choice of layouts gains."""
    print(f"{TITLE}\n{SOURCE}\nthe paper says: {CLAIM}")
    names = list(ONE_LAYOUT)
    heads = ["network", *(f"{name}\nms>" for name in names), "free\nms>"]
    heads += [f"free over\n{name}>" for name in names]
    cells = [
        [
            row.network,
            *(ms(row.seconds[name]) for name in names),
            ms(row.seconds[HEURISTIC]),
            *(ratio(row.seconds[name] / row.seconds[HEURISTIC]) for name in names),
            percent(row.share),
        ]
        for row in found
    ]
    grid(screen(), [*heads, "of our\npeak>"], cells)
    for name in names:
        gains = [row.seconds[name] / row.seconds[HEURISTIC] for row in found]
        print(f"free over {name}: {ratio(statistics.geometric_mean(gains))}")

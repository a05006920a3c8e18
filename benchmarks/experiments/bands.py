"""Two layers in one kernel, a band of rows at a time, against the two kernels one by one.

    python -m fastrun.benchmarks.experiments.bands [--quick] [--json OUT] [--csv FOLDER]

The networks have two layers with the heuristics' schedules. Only the layers' own steps are timed,
without moves of inputs and outputs. `planned` marks the pairs that the planner puts into one
kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx
import pandas as pd

from fastrun.benchmarks.experiments.command import Column, Part, command, show
from fastrun.benchmarks.experiments.pairs import Findings
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.bands import estimate, in_bands, partners
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.tasks import tasks
from fastrun.graph.planner import follow_plan, make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.graph.zoo.writer import Writer
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.timing import Protocol, interleave
from fastrun.tuner.records.statistics import rounds_interval, typical
from fastrun.tuner.records.units import interval, ms, ratio
from fastrun.tuner.terminal.exits import ended, leave


@dataclass(frozen=True)
class Layer:
    """`kernel` x `kernel` filters, max-pooled or, if depthwise, followed by `then` 1x1 filters."""

    label: str
    c: int
    size: int
    oc: int
    kernel: int
    stride: int = 1
    padding: int = 1
    pool: tuple[int, int, int] = (0, 0, 0)  # kernel, stride, padding
    then: int = 0

    def model(self) -> onnx.ModelProto:
        """Both layers; relu between them."""
        net = Writer("pair", (1, self.c, self.size, self.size))
        groups = self.c if self.then else 1
        x = net.conv("first", net.input, self.oc, self.kernel, stride=self.stride,
                     padding=self.padding, groups=groups, bias=True)  # fmt: skip
        x = net.relu("relu", x)
        if self.then:
            return net.model(net.conv("second", x, self.then, 1, bias=True))
        kernel, stride, padding = self.pool
        return net.model(net.max_pool("second", x, kernel, stride, padding=padding, ceil=True))


def _inverted(c: int, size: int, stride: int, oc: int) -> Layer:
    label = f"depthwise {c}@{size}{' /2' * (stride > 1)}, 1x1 {oc}"
    return Layer(label, c, size, c, 3, stride, then=oc)


LAYERS = (
    Layer("3x3 64@16, pool 2x2", 16, 16, 64, 3, pool=(2, 2, 0)),
    Layer("ResNet 7x7 /2, pool 3x3 /2", 3, 224, 64, 7, 2, 3, (3, 2, 1)),
    Layer("SqueezeNet 3x3 /2, pool 3x3 /2", 3, 224, 64, 3, 2, 0, (3, 2, 0)),
    Layer("VGG 3x3 64@224, pool 2x2", 64, 224, 64, 3, pool=(2, 2, 0)),
    Layer("VGG 3x3 128@112, pool 2x2", 128, 112, 128, 3, pool=(2, 2, 0)),
    Layer("VGG 3x3 256@56, pool 2x2", 256, 56, 256, 3, pool=(2, 2, 0)),
    *(
        _inverted(*sizes)
        for sizes in (
            (32, 112, 1, 16), (96, 112, 2, 24), (144, 56, 1, 24), (144, 56, 2, 32),
            (192, 28, 1, 32), (384, 14, 1, 64), (576, 14, 1, 96), (960, 7, 1, 160),
            (32, 112, 1, 64), (128, 56, 1, 128), (256, 28, 1, 256), (512, 14, 1, 512),
        )
    ),
)  # fmt: skip

_PROTOCOL, _ROUNDS, _QUICK_ROUNDS = Protocol(block=5e-3), 25, 5


def measure(quick: bool = False) -> Findings:
    """A row for each pair and number of threads.

    `before` and `after` are the seconds one by one and in bands of `rows` rows, `speedup` their
    ratio with its 95 % interval `low` to `high`.
    """
    threads = [n for n in (1, 2) if n <= len(os.sched_getaffinity(0))]
    chosen: Sequence[Layer] = LAYERS[:1] if quick else LAYERS
    found = [pair_row(x, n, _QUICK_ROUNDS if quick else _ROUNDS) for n in threads for x in chosen]
    return Findings(pd.DataFrame(found), [])


def pair_row(layer: Layer, threads: int, rounds: int) -> dict[str, object]:
    """A row of the table."""
    cpu, graph = Cpu.host(), optimise(load_network(layer.model()))
    plan, arrangement = make_plan(graph, heuristic_choices(cpu), cpu)
    todo = tasks(graph)
    ((output, first),) = partners(graph, todo).items()
    second = next(task for task in todo if task.output == output)
    forms = plan.forms[first.output], plan.forms[output]
    rows, _ = estimate(graph, (first, second), forms, cpu, threads)
    planned = in_bands(graph, todo, plan.forms, cpu, threads)[output].rows
    fused = replace(plan, forms={**plan.forms, output: replace(forms[1], rows=max(1, rows))})
    runs = [
        Executable.of(arrangement, cpu, threads, plan),
        Executable.of(follow_plan(graph, fused, cpu), cpu, threads, fused),
    ]
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, Cores.split(threads).timing)
    timings = interleave([_own_steps(run) for run in runs], rounds, _PROTOCOL, seed=0)
    os.sched_setaffinity(0, everywhere)
    before, after = (timing.samples for timing in timings)
    low, high = rounds_interval(before, after)
    return {
        "layer": layer.label,
        "threads": threads,
        "rows": rows if len(runs[1].steps) < len(runs[0].steps) else 0,
        "planned": bool(planned),
        "before": typical(before),
        "after": typical(after),
        "speedup": typical(before) / typical(after),
        "low": low,
        "high": high,
    }


def _own_steps(executable: Executable) -> Callable[[int], float]:
    """A function: the seconds of all steps but moves in so many runs."""
    computing = [step.computes for step in executable.steps]
    return lambda repeats: float(executable.step_seconds(repeats)[:, computing].sum())


_COLUMNS: dict[str, Column] = {
    "layers": lambda r: r.layer,
    "threads>": lambda r: str(r.threads),
    "one by one\nms>": lambda r: ms(r.before),
    "in bands\nms>": lambda r: ms(r.after),
    "rows>": lambda r: str(r.rows),
    "bands are\nfaster>": lambda r: ratio(r.speedup),
    "95 %\ninterval>": lambda r: interval(r.low, r.high),
    "planned": lambda r: "yes" if r.planned else "no",
}

main = command("bands", __doc__, [Part("bands", measure, show(_COLUMNS))])

if __name__ == "__main__":
    leave(ended("bands", main))

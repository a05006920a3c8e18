"""Mixed precision on tasks with known answers: what every limit of the loss allows.

    python -m fastrun.benchmarks.experiments.fronts [TASK ...] [--agreement] [--limits 0.1,0.5]

For each task layers are timed in float32, 16 and 8 bits, and plans of the front are built and
judged as whole networks. The table has the fastest plan within each limit beside float32 and 8 bits
everywhere. Samples are judged by the right answers, or by agreement with float32, which is stricter
where float32 errs too. No sample that judges has calibrated.
"""

from __future__ import annotations

import functools
import itertools
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastrun.benchmarks import accuracy
from fastrun.benchmarks.accuracy.photos import labelled_crops
from fastrun.benchmarks.accuracy.task import Sample, Task
from fastrun.benchmarks.peers import Array
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.passes.products import convolve_dense
from fastrun.graph.quantise.network import calibrated
from fastrun.graph.quantise.sensitivity import losses
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.networks.costs import costs
from fastrun.tuner.networks.measured_choices import stored_choices
from fastrun.tuner.precision.search import Precision, Validation
from fastrun.tuner.precision.tune import problems_of, worthwhile_bits
from fastrun.tuner.records.record import NO_LIMITS
from fastrun.tuner.records.units import ms, percent, plural, ratio
from fastrun.tuner.report.frames import precision_frame
from fastrun.tuner.report.plots import precision
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.display import grid, screen
from fastrun.tuner.terminal.exits import ended, leave
from fastrun.tuner.terminal.phases import Phases

LIMITS = (0.001, 0.005, 0.01)
SAMPLES = 1000

_SENSED = 8  # inputs on which the loss by each layer is measured


@dataclass(frozen=True)
class Found:
    """The front of a task: what the smallest limit allows, and all that was validated.

    `within` has the number of the chosen plan for each limit.
    """

    precision: Precision
    within: dict[float, int]


def front(
    task: Task,
    samples: Sequence[Sample],
    limits: Sequence[float],
    database: Database,
    trials: int,
    threads: int = 1,
) -> Found:
    """Measure the layers of a task's network, then validate plans for each limit of the loss.

    The samples are judged by their answers; if there is one without, by agreement with float32.

    Raises:
        GraphError: the network cannot be run, or has nothing to round.
    """
    cpu = Cpu.host()
    graph = optimise(load_network(task.model))
    with Phases() as progress:
        bits = worthwhile_bits(cpu)
        advised = calibrated(graph, task.calibration, bits, progress).each(convolve_dense)
        fast_run(
            problems_of(advised, cpu),
            database,
            Budget(None, trials),
            options=SearchOptions(baselines=False),
            measurer=Measurer(threads),
            quiet=True,
        )
        sensed = task.calibration[:: max(1, len(task.calibration) // _SENSED)]
        validation = Validation(
            advised,
            losses(advised, sensed, cpu, progress),
            [sample.inputs for sample in samples],
            functools.partial(_right, samples) if all(x.right for x in samples) else None,
            functools.cache(stored_choices(database, cpu, threads, NO_LIMITS)),
            costs(probe(), threads),
            cpu,
            threads,
            progress,
        )
        for limit in limits:
            validation.look_within(limit)
        found = validation.precision(min(limits))
    points = found.validated

    def fastest(limit: float) -> int:
        keeping = [i for i, point in enumerate(points) if point.lost <= limit]
        return min(keeping, key=lambda i: points[i].seconds)

    return Found(found, {limit: fastest(limit) for limit in limits})


def _right(samples: Sequence[Sample], outputs: Sequence[Array]) -> NDArray[np.bool_]:
    judged = zip(samples, outputs, strict=False)  # the first ones
    return np.array([s.right and s.right([y]) for s, y in judged], bool)


def samples_of(task: Task, count: int, agreement: bool) -> list[Sample]:
    """The samples that judge; of photographs these are crops of those with labels."""
    every = labelled_crops() if task.name == "photos" else task.samples()
    chosen = itertools.islice(every, count)
    return [Sample(x.inputs) for x in chosen] if agreement else [*chosen]


def show(found: Found) -> None:
    """Print the fastest plan within each limit, beside float32 and 8 bits everywhere."""
    points, base = found.precision.validated, found.precision.validated[0]
    whole = max(range(len(points)), key=lambda i: (points[i].layers, -points[i].seconds))
    rows = [
        (
            name, f"{points[i].layers} of {points[i].of}", str(points[i].halves or ""),
            ms(points[i].seconds), ratio(base.seconds / points[i].seconds),
            percent(points[i].lost, 2), f"{points[i].error:.1e}",
        )
        for name, i in (
            ("float32", 0),
            ("8 bits everywhere", whole),
            *((f"within {percent(limit, 1)}", i) for limit, i in found.within.items()),
        )
    ]  # fmt: skip
    judged = "accuracy" if found.precision.labelled else "agreement"
    print(f"{plural(found.precision.samples, 'sample')}, {plural(len(points), 'plan')} validated")
    heads = "", "layers in\n8 bits>", "in 16>", "ms>", "over\nfloat32>", f"lost\n{judged}>", "rms>"
    grid(screen(), heads, rows)


def main(words: Sequence[str] | None = None) -> int:
    """Find the fronts of the tasks, print the tables, write the fronts and their pictures."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.experiments.fronts",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument("tasks", nargs="*", metavar="TASK", default=accuracy.NAMES)
    parser.add_argument("--agreement", action="store_true", help="judge by agreement with float32")
    parser.add_argument(
        "--limits",
        type=lambda text: [float(word.rstrip("%")) / 100 for word in text.split(",")],
        default=LIMITS,
        metavar="L,L",
        help="limits of the loss in per cent (default 0.1,0.5,1)",
    )
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N")
    parser.add_argument("--trials", type=int, default=1, metavar="N", help="for each layer")
    parser.add_argument("--threads", type=int, default=1, metavar="T")
    parser.add_argument("--db", metavar="URL", help="database of records")
    parser.add_argument("--folder", type=Path, metavar="FOLDER", help="write the fronts here")
    arguments = parser.parse_args(words)
    for name in arguments.tasks:
        if reason := accuracy.missing(name):
            print(f"{name} is left out: {reason}")
            continue
        task = accuracy.task(name)
        samples = samples_of(task, arguments.samples, arguments.agreement)
        with Database(arguments.db) as database:
            found = front(
                task, samples, arguments.limits, database, arguments.trials, arguments.threads
            )
        print(f"\n{name}")
        show(found)
        if arguments.folder:
            stem = f"front-{name}{'-agreement' * arguments.agreement}"
            arguments.folder.mkdir(parents=True, exist_ok=True)
            found.precision.save(arguments.folder / f"{stem}.json")
            figure = precision(precision_frame(found.precision.document()))
            figure.savefig(arguments.folder / f"{stem}.png")
    return 0


if __name__ == "__main__":
    leave(ended("fronts", main))

"""TVM's MetaSchedule and our search on the same layers, for equal seconds.

    python -m fastrun.benchmarks.experiments.metaschedule --tvm PYTHON [--seconds S] [--csv FOLDER]

PYTHON is that of an environment with TVM (`pip install apache-tvm==0.27.0.post1
apache-tvm-ffi==0.1.14.post0 xgboost`), which needs nothing of ours. One search runs after the
other; each compiles on all cores and times on one thread. TVM's seconds begin when it has been
imported, ours with the call of `fast_run`. Then the fastest kernel of each is timed again: 20
samples of TVM's evaluator, 15 blocks of ours. TVM multiplies float32 by vectors, so where ours may
use tile registers it searches once more without them.
"""

from __future__ import annotations

import json
import subprocess
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from fastrun.benchmarks import report
from fastrun.benchmarks.experiments import metaschedule_tvm
from fastrun.benchmarks.experiments.command import show, write_csv
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.measurer import Measurer, remeasure
from fastrun.tuner.records.affinity import usable_cores
from fastrun.tuner.records.statistics import typical
from fastrun.tuner.records.units import ms, ratio
from fastrun.tuner.report.frames import layer_labels
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.exits import ended, leave

LAYERS = (
    "conv 1x64x56x56 64x3x3 s1 p1 bias relu",
    "conv 1x256x14x14 256x3x3 s1 p1 bias relu",
    "conv 1x128x28x28 256x3x3 s2 p1 bias relu",
    "conv 1x256x56x56 64x1x1 s1 p0 bias relu",
)


def main(words: Sequence[str] | None = None) -> int:
    """Search with both and print."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.experiments.metaschedule",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument("layers", nargs="*", metavar="LAYER", default=LAYERS)
    parser.add_argument("--tvm", required=True, metavar="PYTHON", help="the Python that has TVM")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each search (default 60)")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write the table to a file here")
    arguments = parser.parse_args(words)
    report.introduce((), {})
    layers = list(map(ConvProblem.parse, arguments.layers))
    cpu = Cpu.host()
    vectors = replace(cpu, features=cpu.features.replace("+amx-", "-amx-"))
    rows = list[dict[str, Any]]()
    for p, label in zip(layers, layer_labels(layers), strict=True):
        found = {"TVM": _theirs(p, arguments.tvm, arguments.seconds)}
        if vectors != cpu:
            found["ours, vectors"] = _ours(p, arguments.seconds, vectors)
        found["ours"] = _ours(p, arguments.seconds, cpu)
        for search, row in found.items():
            faster = found["TVM"]["seconds"] / row["seconds"]
            rows.append({"layer": label, "search": search, **row, "faster": faster})
        report.notice(f"{label}: ours is {ratio(faster)} as fast as TVM's")
    table = pd.DataFrame(rows)
    show(
        {
            "layer": lambda r: r.layer,
            "search": lambda r: r.search,
            "trials>": lambda r: str(r.trials),
            "s>": lambda r: f"{r.took:.0f}",
            "best\nms>": lambda r: ms(r.seconds),
            "faster\nthan TVM>": lambda r: ratio(r.faster),
            "algorithm": lambda r: r.schedule.partition("(")[0],
        }
    )(table)
    write_csv(arguments.csv, "metaschedule", table)
    return 0


def _theirs(p: ConvProblem, python: str, seconds: float) -> dict[str, Any]:
    """The trials of TVM's search, its seconds, and those of a call of its fastest kernel.

    Raises:
        RuntimeError: TVM failed, or found nothing.
    """
    sizes = (p.n, p.c, p.h, p.w, p.oc, p.kernel[0], p.stride[0], p.padding[0])
    words = [str(word) for word in (*sizes, seconds, len(usable_cores()))]
    done = subprocess.run(
        [python, str(metaschedule_tvm.__file__), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout.strip().splitlines()
    if done.returncode or not said:
        raise RuntimeError(f"TVM failed on {p}: {done.stderr.strip()[-500:]}")
    found = json.loads(said[-1])
    if not found["samples"]:
        raise RuntimeError(f"TVM measured nothing on {p} in {seconds:g} s")
    return {
        "trials": found["trials"],
        "took": found["seconds"],
        "seconds": typical(found["samples"]),
        "schedule": "",
    }


def _ours(p: ConvProblem, seconds: float, cpu: Cpu) -> dict[str, Any]:
    """The same of our search for a processor, and the schedule."""
    options, measurer = SearchOptions(baselines=False), Measurer(cpu=cpu)
    with Database("sqlite://") as database:
        summary = fast_run(
            [(p, 1)], database, Budget(seconds), options=options, measurer=measurer, quiet=True
        )
        if summary.interrupted:
            raise KeyboardInterrupt
        best = database.best_all(measurer.conditions)[str(p)]
    again = remeasure(p, best.schedule, 1, "hot")
    return {
        "trials": summary.trials,
        "took": summary.seconds,
        "seconds": again.seconds_per_call,
        "schedule": best.schedule,
    }


if __name__ == "__main__":
    leave(ended("metaschedule", main))

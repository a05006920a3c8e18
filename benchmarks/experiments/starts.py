"""The time in which a network starts from a tuned database: the first time, and again.

    python -m fastrun.benchmarks.experiments.starts [TARGET ...] [--threads N] [--db FILE]
        [--quick] [--json OUT] [--csv FOLDER]

A start is a fresh process that imports, loads and runs once. The first start has to compile all
code, the later ones find it on disk. The files of Python and the database are in the page cache.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from fastrun.benchmarks.experiments.command import Column, Part, carry_out, options, show
from fastrun.benchmarks.experiments.pairs import Findings
from fastrun.kernels.native.cache import cache_root
from fastrun.tuner.records.units import duration
from fastrun.tuner.terminal.exits import ended, leave

_AGAIN = 5

# Prints the seconds of all cores, helpers included, at the end of each stage.
_START = """
import json, os, sys
import numpy as np
from fastrun import load
marks = [sum(os.times()[:4])]
network = load(sys.argv[1], int(sys.argv[2]), sys.argv[3])
marks.append(sum(os.times()[:4]))
network.run({name: np.zeros(shape, np.float32) for name, shape in network.inputs.items()})
print(json.dumps([*marks, sum(os.times()[:4])]), flush=True)
"""


@dataclass(frozen=True)
class Starts:
    """The starts of an experiment: networks, number of threads, database."""

    networks: Sequence[str]
    threads: int
    database: str | None

    def measure(self, quick: bool = False) -> Findings:
        """A row for each network and `start`: `first`, or `again` (the median of several).

        `seconds` is the time until the network has run once, `cpu` the time of all cores. Parts of
        it are `imports` (with the start of Python), `load` and `run`.
        """
        found = []
        for name in self.networks:
            with tempfile.TemporaryDirectory() as folder:
                for report in cache_root().glob("machine-*.json"):
                    shutil.copy(report, folder)
                first = self._start(name, folder)
                again = [self._start(name, folder) for _ in range(1 if quick else _AGAIN)]
            for start, times in (("first", [first]), ("again", again)):
                medians = {x: statistics.median(t[x] for t in times) for x in first}
                found.append({"network": name, "start": start, "starts": len(times), **medians})
        return Findings(pd.DataFrame(found), [])

    def _start(self, name: str, cache: str) -> dict[str, float]:
        database = self.database or str(cache_root() / "fastrun.db")
        words = [sys.executable, "-c", _START, name, str(self.threads), database]
        environment = {**os.environ, "FASTRUN_CACHE": cache}
        begin = time.perf_counter()
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            printed = process.stdout.readline()
            seconds = time.perf_counter() - begin
        if process.returncode:
            raise RuntimeError(f"{name} does not start from {database}: see above")
        imported, loaded, ran = json.loads(printed)
        return {
            "seconds": seconds,
            "cpu": ran,
            "imports": imported,
            "load": loaded - imported,
            "run": ran - loaded,
        }


_COLUMNS: dict[str, Column] = {
    "network": lambda r: r.network,
    "start": lambda r: r.start,
    "n>": lambda r: str(r.starts),
    "seconds>": lambda r: f"{r.seconds:.2f}",
    "all cores>": lambda r: duration(r.cpu),
    "imports>": lambda r: duration(r.imports),
    "load>": lambda r: duration(r.load),
    "run>": lambda r: duration(r.run),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = options("starts", __doc__)
    parser.add_argument("networks", nargs="*", metavar="TARGET", default=["resnet18"])
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--db", metavar="FILE", help="database (default: in the cache folder)")
    arguments = parser.parse_args(words)
    starts = Starts(arguments.networks, arguments.threads, arguments.db)
    return carry_out([Part("starts", starts.measure, show(_COLUMNS))], arguments)


if __name__ == "__main__":
    leave(ended("starts", main))

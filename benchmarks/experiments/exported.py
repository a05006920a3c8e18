"""Exported networks: their sizes for each kind of processor, and what a first run takes.

    python -m fastrun.benchmarks.experiments.exported [MODEL ...] [--target A ...] [--threads N]
        [--quick] [--json OUT] [--csv FOLDER]

Schedules are the heuristics'. A first run is one of the exported C example, from the start of its
process to the end. Where this processor lacks what a target needs, or no C compiler is there, only
sizes are told.
"""

from __future__ import annotations

import runpy
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fastrun.benchmarks.experiments.command import Column, Part, carry_out, options, show
from fastrun.benchmarks.experiments.pairs import Findings
from fastrun.graph import zoo
from fastrun.graph.aot.export import Export, export
from fastrun.graph.core.model import Graph
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.tuner.records.units import duration, size
from fastrun.tuner.terminal.exits import ended, leave

_TARGETS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "aarch64")
_RUNS = 9


@dataclass(frozen=True)
class Exported:
    """The networks and targets of an experiment, and the threads of a run."""

    networks: Sequence[str]
    targets: Sequence[str]
    threads: int

    def measure(self, quick: bool = False) -> Findings:
        """A row for each network and target.

        `code` are the bytes of the shared library, `weights` those of the packed weights and
        `memory` those of a context. `open` are seconds of the function, the median of some calls.
        `first` are CPU seconds of the example and `over` the bytes of its resident memory beyond
        weights and context, the least of some processes. They are NaN where nothing runs.
        """
        found = []
        for name in self.networks:
            graph = optimise(load_network(name))
            for target in self.targets:
                with tempfile.TemporaryDirectory() as folder:
                    done = export(graph, Path(folder), [target], name="net", threads=self.threads)
                    row = {"network": name, "target": target, **self._sizes(done)}
                    found.append(row | self._first_run(done, graph, 2 if quick else _RUNS))
        return Findings(pd.DataFrame(found), [])

    def _sizes(self, done: Export) -> dict[str, float]:
        (built,) = done.targets
        return {
            "code": done.files["libnet.so"],
            "weights": len(built.image.weights),
            "memory": built.image.arena + self.threads * built.image.local,
        }

    def _first_run(self, done: Export, graph: Graph, runs: int) -> dict[str, float]:
        sizes = self._sizes(done)
        opened = _opened(done.folder, self.threads, runs)
        if not opened or not shutil.which("cc") or not shutil.which("make"):
            return {"open": opened or float("nan"), "first": float("nan"), "over": float("nan")}
        subprocess.run(["make", "-s", "example", "CC=cc"], cwd=done.folder, check=True)
        (done.folder / "start.c").write_text(_START)
        subprocess.run(["cc", "-o", "start", "start.c"], cwd=done.folder, check=True)
        used = [_used(done.folder, self.threads) for _ in range(runs)]
        return {
            "open": opened,
            "first": min(seconds for seconds, _ in used),
            "over": min(resident for _, resident in used) - sizes["weights"] - sizes["memory"],
        }


# Starts the example and prints the microseconds of CPU time and the kilobytes that it used. A
# process that Python starts would count Python's memory as its own.
_START = """
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct rusage used;
    int status;
    if (!fork()) {
        freopen("/dev/null", "w", stdout);
        execv(argv[1], argv + 1);
        _exit(127);
    }
    wait4(-1, &status, 0, &used);
    printf("%ld %ld\\n", 1000000 * (used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           used.ru_utime.tv_usec + used.ru_stime.tv_usec, used.ru_maxrss);
    return status != 0;
}
"""


def _opened(folder: Path, threads: int, runs: int) -> float:
    """Seconds of `open`, the median of some contexts; 0 if this processor cannot run the code."""
    net, seconds = runpy.run_path(str(folder / "net.py"))["Net"], []
    for _ in range(runs):
        begin = time.perf_counter()
        try:
            context = net(threads, 0, folder)
        except (RuntimeError, OSError):
            return 0.0
        seconds.append(time.perf_counter() - begin)
        context.close()
    return statistics.median(seconds)


def _used(folder: Path, threads: int) -> tuple[float, float]:
    """CPU seconds and bytes of resident memory of one run of the example."""
    words = ["./start", "./example", str(threads)]
    said = subprocess.run(words, cwd=folder, capture_output=True, check=True, text=True).stdout
    microseconds, kilobytes = map(int, said.split())
    return 1e-6 * microseconds, 1024.0 * kilobytes


_COLUMNS: dict[str, Column] = {
    "network": lambda r: r.network,
    "target": lambda r: r.target,
    "code\nKB>": lambda r: f"{r.code / 1e3:.0f}",
    "weights>": lambda r: size(int(r.weights)),
    "context>": lambda r: size(int(r.memory)),
    "open>": lambda r: duration(r.open),
    "start and\nfirst run>": lambda r: duration(r.first),
    "resident\nbeside>": lambda r: "-" if r.over != r.over else f"{r.over / (1 << 20):.1f} MiB",
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = options("exported", __doc__)
    parser.add_argument("networks", nargs="*", metavar="MODEL", default=list(zoo.NAMES))
    parser.add_argument("--target", nargs="+", default=_TARGETS, metavar="A")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    arguments = parser.parse_args(words)
    exported = Exported(arguments.networks, arguments.target, arguments.threads)
    return carry_out([Part("exported", exported.measure, show(_COLUMNS))], arguments)


if __name__ == "__main__":
    leave(ended("exported", main))

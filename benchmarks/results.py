"""Measures all results of this machine by commands that everybody can run (`make results`).

    python -m fastrun.benchmarks.results [STEP ...] [--db URL] [--effort E] [--quick] [--out FOLDER]

A step is one command. Its output becomes a file that begins with the command and the time; the file
is replaced only if the command succeeds. Without names all steps run in order, because later steps
use the results of earlier ones. That takes hours and needs a quiet machine.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastrun.benchmarks import layers
from fastrun.graph import zoo
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.records.record import now
from fastrun.tuner.report.page import machine_slug
from fastrun.tuner.search.budget import EFFORTS
from fastrun.tuner.terminal.exits import ended, leave

FASTRUN = ("-m", "fastrun")
EXPERIMENTS = ("im2col", "pack", "winograd", "prefetch", "formulas", "bands")

_DATABASE, _QUICK = Path("build/results.db"), Path("build/results")
_LAYER, _NETWORK = "ShuffleNetV2 58-58@28", "shufflenetv2"


@dataclass(frozen=True)
class Step:
    """A command, as the words after `python`, and the file for its output."""

    command: Sequence[str]
    file: str


def steps(folder: Path, database: str, effort: str, quick: bool) -> dict[str, Step]:
    """Every step by its name, in order."""
    stored = ("--db", database)
    threads = range(1, min(2, Cpu.host().cores) + 1)
    listed = ("--threads", ",".join(map(str, threads)))
    few = ("--peers", "none", "--rounds", "2") if quick else ()
    networks = (_NETWORK,) if quick else zoo.NAMES
    single = [str(layer.problem) for layer in layers.published(_LAYER if quick else "")]
    tuned = single if quick else [*networks, *single]
    budget = ("--trials", "2") if quick else ("--effort", effort)

    def bench(name: str, *what: str) -> Step:
        out = ("--json", str(folder / f"{name}.json"))
        return Step((*FASTRUN, "bench", *what, *listed, *few, *out, *stored), f"{name}.txt")

    def experiment(name: str, *more: str) -> Step:
        words = ("--csv", str(folder / "experiments"), *(["--quick"] if quick else []), *more)
        module = f"fastrun.benchmarks.experiments.{name}"
        return Step(("-m", module, *words), f"experiments/{name}.txt")

    one = ("squeezenet1.1", "--engines", "ours", "--rounds", "2", "--samples", "2")
    lowered = one if quick else ("--samples", "1000")
    files = ("--json", str(folder / "precision.json"), "--csv", str(folder / "precision.csv"))
    records, written = str(folder / "records.jsonl.gz"), () if quick else ("--write", "README.md")
    refresh = () if quick else ("--refresh",)
    return {
        "machine": Step((*FASTRUN, "doctor", "--json", *refresh), "machine.json"),
        **{
            f"tune-{n}": Step(
                (*FASTRUN, "tune", *tuned, "--threads", str(n), *budget, *stored), f"tune-{n}.txt"
            )
            for n in threads
        },
        "layers": bench("layers", "--layers", *([_LAYER] if quick else [])),
        "networks": bench("networks", *networks),
        "precision": Step(
            ("-m", "fastrun.benchmarks.precision", *lowered, *listed, *stored, *files),
            "precision.txt",
        ),
        "records": Step((*FASTRUN, "db", "export", records, *stored), "records.txt"),
        "report": Step(
            (*FASTRUN, "report", *(tuned if quick else networks), "--out", str(folder), *stored),
            "report.txt",
        ),
        **{name: experiment(name) for name in EXPERIMENTS},
        "network_plans": experiment("network_plans", *listed, *stored),
        "readme": Step(("-m", "fastrun.benchmarks.readme", str(folder), *written), "summary.md"),
    }


def take(name: str, step: Step, folder: Path) -> int:
    """Run a step's command, write its output, and return its exit code."""
    shown = shlex.join(["fastrun", *step.command[2:]] if step.command[:2] == FASTRUN else
                       ["python", *step.command])  # fmt: skip
    print(f"{name}: {shown[:90]}", flush=True)
    begun, file = now(), folder / step.file
    file.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, *step.command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"{name} failed, {file} is unchanged: {done.stdout.strip()}", file=sys.stderr)
        return done.returncode
    head = f"{shown}\nbegun {begun[:16]} UTC\n\n" if file.suffix == ".txt" else ""
    file.write_text(head + done.stdout)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Run the named steps; stop at the first one that fails."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.results", description=str(__doc__).split("\n")[0]
    )
    names = list(steps(Path(), "", "normal", False))
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=f"some of {', '.join(names)} (default: all)"
    )
    parser.add_argument(
        "--db", metavar="URL", help=f"database of tuned schedules (default {_DATABASE})"
    )
    parser.add_argument(
        "--effort", choices=EFFORTS, default="normal", help="effort of tuning (default normal)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"one small layer, one small network and two trials; results and database in {_QUICK}",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: the folder of the machine in results/"
    )
    arguments = parser.parse_args(words)
    for name in arguments.steps:
        if name not in names:
            parser.error(f"no step {name!r}: there are {', '.join(names)}")
    usual = _QUICK if arguments.quick else Path("results", machine_slug(probe()))
    folder = arguments.out or usual
    folder.mkdir(parents=True, exist_ok=True)
    _DATABASE.parent.mkdir(exist_ok=True)
    database = folder / "quick.db" if arguments.quick else _DATABASE
    planned = steps(folder, str(arguments.db or database), arguments.effort, arguments.quick)
    for name in arguments.steps or names:
        if code := take(name, planned[name], folder):
            return code
    return 0


if __name__ == "__main__":
    leave(ended("results", main))

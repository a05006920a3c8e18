"""Experiments in steps, each of which leaves files: the same command continues a stopped one."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fastrun.benchmarks import report
from fastrun.kernels.native.cache import cache_root
from fastrun.tuner.records.units import plural


@dataclass(frozen=True)
class Step:
    """One measurement: what it is, and the function that makes it and writes its files."""

    about: str
    make: Callable[[], None]


def step_options(name: str, doc: str | None) -> ArgumentParser:
    """The options of an experiment in steps: `work`, `minutes` and `csv`."""
    parser = ArgumentParser(
        prog=f"python -m fastrun.benchmarks.experiments.{name}",
        description=(doc or "").split("\n")[0],
    )
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="begin no step after these (default 60)"
    )
    parser.add_argument(
        "--work", type=Path, default=cache_root() / name, help="folder of the measurements"
    )
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write tables to files here")
    return parser


def carry_on(missing: Iterable[Step], minutes: float) -> None:
    """Make the missing steps, one after the other; none begins after so many minutes."""
    end, steps = time.monotonic() + 60 * minutes, list(missing)
    for number, step in enumerate(steps):
        if time.monotonic() > end:
            left = plural(len(steps) - number, "step")
            report.notice(f"{left} left: run the same command again to continue")
            return
        report.notice(step.about)
        step.make()

"""Layers tuned on an emulated device, whose schedules the same runner then times without a search.

    python -m fastrun.benchmarks.experiments.emulated [--device exec:COMMAND] [--trials N] [--quick]
        [--json OUT] [--csv FOLDER]

The search is that of `fastrun tune --device`: screenings, races, finals. In its middle the runner
is killed once. Then all schedules that it found correct run side by side on the device, in
interleaved rounds, and the fastest of these should be the search's winner. An emulator's times say
nothing about a processor; here both sides have the same.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fastrun.benchmarks.experiments.command import Column, Part, carry_out, options, show
from fastrun.benchmarks.experiments.pairs import Findings
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.device.device import Device
from fastrun.tuner.measure.job import Compiled
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.records.record import Outcome, Record
from fastrun.tuner.records.statistics import rounds_interval, typical
from fastrun.tuner.records.units import interval, ms, ratio
from fastrun.tuner.report.frames import layer_labels
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.progress import Progress
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.exits import ended, leave

_LAYERS = (
    "conv 1x16x14x14 32x3x3 s1 p1 bias relu",
    "conv 1x64x10x10 64x1x1 s1 p0 bias relu",
    "conv 1x32x14x14 32x3x3 s1 p1 g32 bias relu6",
)
_ROUNDS = 10


@dataclass(frozen=True)
class Emulated:
    """An experiment on a `device`, with so many trials for each layer."""

    device: str
    trials: int

    def measure(self, quick: bool = False) -> Findings:
        """A row for each layer.

        `searched` and `direct` are the winners' schedules, `timed` the number of schedules timed
        directly and `seconds` the best time of these. `ratio` is the time of the search's winner
        over that of the direct one, both timed directly, with its 95 % interval from `low` to
        `high`. `lost` is the number of trials that failed while they ran.
        """
        problems = [ConvProblem.parse(text) for text in _LAYERS[: 1 if quick else None]]
        found, records = list[dict[str, object]](), list[Record]()
        for problem, label in zip(problems, layer_labels(problems), strict=True):
            with Database("sqlite://") as database:
                device = Device(self.device)
                fast_run(
                    [(problem, 1)], database, Budget(trials=self.trials), measurer=device,
                    observe=_Killer(self.trials // 2), quiet=True,
                )  # fmt: skip
                made, best = database.records(), database.best(problem, device.conditions)
            correct = [r.schedule for r in made if r.outcome == Outcome.CORRECT and not r.baseline]
            times = self._directly(problem, list(dict.fromkeys(correct)))
            row = _compared(best.schedule if best else "", times)
            row["lost"] = sum(r.outcome == Outcome.RUNTIME for r in made)
            found.append({"layer": label, **row})
            records += made
        return Findings(pd.DataFrame(found), records)

    def _directly(
        self, problem: ConvProblem, schedules: Sequence[str]
    ) -> dict[str, tuple[float, ...]]:
        """The samples of each schedule, in rounds of all of them."""
        with Device(self.device) as device:
            made = [device.compile(problem, schedule).result() for schedule in schedules]
            programs = [program for program in made if isinstance(program, Compiled)]
            protocol = Protocol(slow=math.inf)
            jobs = [device.job(problem, program, protocol=protocol) for program in programs]
            results = device.sandbox.race(jobs, _ROUNDS).result()
        return {
            program.schedule: result.samples
            for program, result in zip(programs, results, strict=True)
        }


def _compared(searched: str, times: Mapping[str, Sequence[float]]) -> dict[str, object]:
    """A schedule among all that were timed directly."""
    direct = min(times, key=lambda schedule: typical(times[schedule]))
    low, high = 1.0, 1.0
    if searched != direct:
        low, high = rounds_interval(times[searched], times[direct])
    return {
        "searched": searched,
        "direct": direct,
        "timed": len(times),
        "seconds": typical(times[direct]),
        "ratio": typical(times[searched]) / typical(times[direct]),
        "low": low,
        "high": high,
    }


class _Killer:
    """Kills the runner once, after so many outcomes of a search, while the next trial runs."""

    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, progress: Progress) -> None:
        self._left -= 1
        if self._left == 0:
            for process in _children():
                os.kill(process, signal.SIGKILL)


def _children() -> list[int]:
    """The processes that this one started for a runner."""
    found = list[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"/runner-" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def _judged(row: Any) -> str:
    """The search's winner among all that were timed directly."""
    if row.searched == row.direct:
        return "the same"
    return f"{ratio(row.ratio)} the best time, {'a tie' if row.low <= 1 else 'slower'}"


_COLUMNS: dict[str, Column] = {
    "layer": lambda r: r.layer,
    "timed>": lambda r: str(r.timed),
    "best\nms>": lambda r: ms(r.seconds),
    "winner of\nthe search": lambda r: r.searched.partition("(")[0],
    "timed directly": lambda r: _judged(r),
    "95 %\ninterval>": lambda r: interval(r.low, r.high),
    "trials\nlost>": lambda r: str(r.lost),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = options("emulated", __doc__)
    parser.add_argument("--device", default="exec:qemu-aarch64", metavar="NAME")
    parser.add_argument("--trials", type=int, default=40, metavar="N", help="for each layer")
    arguments = parser.parse_args(words)
    part = Part("emulated", Emulated(arguments.device, arguments.trials).measure, show(_COLUMNS))
    return carry_out([part], arguments)


if __name__ == "__main__":
    leave(ended("emulated", main))

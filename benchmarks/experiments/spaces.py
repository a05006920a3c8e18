"""Open data: twelve spaces or parts of them, measured completely, in T4 files for replays.

    python -m fastrun.benchmarks.experiments.spaces [--quick] [--only TEXT] [--db URL]
        [--out FOLDER]

The layers are from published networks, on one thread with warm caches. Small spaces are measured
whole. Of others some fields of a schedule are pinned, so that the remaining part can be measured
completely. The metadata of a file has these fields and the share of the space. Schedules that break
a rule of the space are left out. Schedules close to the fastest are measured in several passes
through the space, minutes apart; else the optimum of a thousand noisy times would be decided by
luck. A file is written when its space is complete. With a database, an interrupted run can be
continued.
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import applicable, parse_schedule
from fastrun.search_spaces.space import Space, space_for
from fastrun.tuner.machine.noise import in_words, noise_of, others
from fastrun.tuner.measure.job import Compiled
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.records.environment import Environment, toolchain
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import ALONE, Outcome, Record
from fastrun.tuner.records.units import duration, percent, plural
from fastrun.tuner.search.budget import EFFORTS, Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.store import exchange
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.t4 import write_t4
from fastrun.tuner.terminal.exits import ended, leave

_PROTOCOL = EFFORTS["exhaustive"].protocol

_QUICK = 12  # schedules of a space

_CLOSE = 1.3  # schedules up to this many times slower than the fastest are measured again,
_PASSES = 4  # in so many passes altogether

_AT_ONCE = 8  # schedules whose packed weights are kept at a time


@dataclass(frozen=True)
class Ground:
    """A layer, and the measured part of an algorithm's space, given by the text of its pins."""

    layer: str
    pins: str

    @property
    def algorithm(self) -> str:
        """The template's name."""
        return self.pins.partition("(")[0]

    @property
    def space(self) -> Space:
        """The algorithm's whole space for the layer on this machine."""
        return space_for(self.algorithm, ConvProblem.parse(self.layer), Cpu.host())

    @property
    def runs_here(self) -> bool:
        """Whether this processor has the instructions of the algorithm."""
        able = applicable(ConvProblem.parse(self.layer), Cpu.host())
        return self.algorithm in [template.name for template in able]

    def extent(self) -> dict[str, object]:
        """For a file's metadata: the pins, and the numbers of legal schedules of part and whole."""
        part, whole = (sum(1 for _ in s) for s in (self.space.pinned(self.pins), self.space))
        return {"extent": {"pins": self.pins, "schedules": part, "of": whole}}


GROUNDS = {
    "im2col-resnet-stem": Ground(
        "conv 1x3x224x224 64x7x7 s2 p3 bias relu", "im2col(layout=NHWC, unroll=1|2|4)"
    ),
    "im2col-resnet-14x14": Ground(
        "conv 1x256x14x14 256x3x3 s1 p1 bias relu",
        "im2col(layout=NHWC, unroll=1|4, block=24|48|96|196, kc=16|64|256)",
    ),
    "winograd-resnet-56x56": Ground(
        "conv 1x64x56x56 64x3x3 s1 p1 bias relu",
        "winograd(layout=NHWC, mh=2|4|6, mw=2|4|6, points=balanced, nr_tiles=8|14|21|28|56, "
        "prefetch=0)",
    ),
    "winograd-resnet-14x14": Ground(
        "conv 1x256x14x14 256x3x3 s1 p1 bias relu",
        "winograd(layout=NHWC, mh=2|4|7, mw=2|4|7, points=balanced, nr_tiles=4|8|14|16|49, "
        "prefetch=0)",
    ),
    "depthwise-mobilenetv2-56x56": Ground(
        "conv 1x144x56x56 144x3x3 s1 p1 g144 bias relu6", "depthwise(layout=NHWC)"
    ),
    "depthwise-mobilenetv2-14x14": Ground(
        "conv 1x384x14x14 384x3x3 s1 p1 g384 bias relu6", "depthwise(layout=NHWC|NCHW8c)"
    ),
    "direct-resnet-28x28": Ground(
        "conv 1x64x56x56 128x3x3 s2 p1 bias relu",
        "direct(layout=NCHW16c, unroll=8, oc_outer=no, prefetch=0, kc=)",
    ),
    "pointwise-shufflenet-28x28": Ground(
        "conv 1x24x28x28 58x1x1 s1 p0 bias relu",
        "pointwise(layout=NCHW|NCHW16c, unroll=8, tiles=1|4|16|64, prefetch=0)",
    ),
    "pointwise-int8-resnet-14x14": Ground(
        "conv 1x256x14x14 1024x1x1 s1 p0 bias relu u8s8>u8",
        "pointwise(layout=NHWC, unroll=4, tiles=1|4|16, oc_outer=no, prefetch=0)",
    ),
    "amx-int8-resnet-14x14": Ground("conv 1x256x14x14 256x3x3 s1 p1 bias relu u8s8>u8", "amx()"),
    "planar-first-32x32": Ground("conv 1x3x32x32 16x5x5 s1 p2 bias relu", "planar()"),
    "planar-grouped-28x28": Ground("conv 1x272x28x28 68x1x1 s1 p0 g4 bias relu", "planar()"),
}
"""The spaces by the names of their files. Pins without fields leave the whole space."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = ArgumentParser(
        prog="python -m fastrun.benchmarks.experiments.spaces",
        description=str(__doc__).split("\n")[0],
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"measure {_QUICK} schedules of each space"
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="use only spaces whose name contains this"
    )
    parser.add_argument(
        "--db", metavar="URL", default="sqlite://", help="database (default: in memory)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("results/open-data"),
        metavar="FOLDER",
        help="folder for the files (default results/open-data)",
    )
    arguments = parser.parse_args(words)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if warning := others():
        print(warning, file=sys.stderr)
    for name in (name for name in GROUNDS if arguments.only in name):
        if not GROUNDS[name].runs_here:
            print(f"{name} is left out: the processor cannot run it", flush=True)
            continue
        with Database(arguments.db) as database:
            seconds = measure(GROUNDS[name], database, _QUICK if arguments.quick else None)
            found = results(GROUNDS[name], database)
            runs = database.runs()
        path = arguments.out / f"{name}.json.gz"
        about = GROUNDS[name].extent()
        exchange.write_text(path, write_t4(found, [Environment.host()], runs, about))
        noise = noise_of(found)
        print(
            f"{path}: {plural(len(found), 'result')}, "
            f"{sum(r.outcome == 'correct' for r in found)} correct, {duration(seconds)}, "
            f"{path.stat().st_size >> 10} KiB, noise {percent(noise)}, {in_words(noise)}",
            flush=True,
        )
    return 0


def measure(ground: Ground, database: Database, trials: int | None = None) -> float:
    """Measure all schedules of a ground, or the first `trials`; returns the seconds needed."""
    summary = fast_run(
        [(ConvProblem.parse(ground.layer), 1)],
        database,
        Budget(trials=trials),
        sampler="exhaustive",
        options=SearchOptions(algorithms=[ground.pins], protocol=_PROTOCOL),
    )
    if summary.interrupted:
        raise KeyboardInterrupt
    begin = time.monotonic()
    for done in range(1, _PASSES):
        found = results(ground, database)
        limit = _CLOSE * min((r.seconds_per_call for r in found), default=0.0)
        close = [r for r in found if r.seconds_per_call <= limit]
        _measure_again(database, [r for r in close if len(r.samples) <= done * _PROTOCOL.blocks])
    return summary.seconds + time.monotonic() - begin


def _measure_again(database: Database, records: Sequence[Record]) -> None:
    """Add another screening of each schedule, in the same order, to the database."""
    with Measurer() as measurer:
        database.add_environment(Environment.host(), measurer.run)
        timing = f"screen: {_PROTOCOL}"
        database.add_run(Run(name=measurer.run, command="another screening", timing=timing))
        for first in range(0, len(records), _AT_ONCE):
            programs = []
            for record in records[first : first + _AT_ONCE]:
                problem = ConvProblem.parse(record.problem)
                programs.append(
                    (problem, record.schedule, measurer.compile(problem, record.schedule))
                )
            made = [(p, s, m) for p, s, f in programs if isinstance(m := f.result(), Compiled)]
            jobs = [measurer.job(p, program, protocol=_PROTOCOL) for p, _, program in made]
            found = measurer.sandbox.submit_all(jobs).result()
            for (p, schedule, program), result in zip(made, found, strict=True):
                program.discard()
                database.add(measurer.record(p, schedule, result, program))


def results(ground: Ground, database: Database) -> list[Record]:
    """The screened record of every schedule of the ground, in the order of the space.

    The samples of several screenings are joined. Races are left out, because they measure few
    schedules better than the rest.
    """
    environment = Environment.host()
    problem = ConvProblem.parse(ground.layer)
    stored = database.records(
        problem=str(problem),
        machine=environment.machine,
        threads=1,
        regime="hot",
        toolchain=toolchain(),
    )
    space = ground.space.pinned(ground.pins)
    placed = defaultdict(list)
    for record in stored:
        if record.screened and record.algorithm == ground.algorithm:
            point = space.point(parse_schedule(record.schedule)[1])
            if point is not None:
                placed[point].append(record)
    return [_together(records) for _, records in sorted(placed.items())]


def _together(screenings: Sequence[Record]) -> Record:
    """One record of several screenings; a failure in any of them is the outcome."""
    for record in screenings:
        if record.outcome != Outcome.CORRECT:
            return record
    return replace(
        screenings[0],
        samples=tuple(chain.from_iterable(r.samples for r in screenings)),
        processes=tuple(i for i, r in enumerate(screenings) for _ in r.samples),
        rounds=tuple(ALONE for r in screenings for _ in r.samples),
        noise=statistics.median(r.noise or 0.0 for r in screenings),
    )


if __name__ == "__main__":
    leave(ended("spaces", main))

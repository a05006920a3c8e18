"""Winners that come with the package, measured on processors that the project has met.

A file for each kind of processor has the records of finals in which a schedule surely beat the
heuristic's in the same layouts, in JSON lines: the winner and the heuristic's schedule of each
problem and number of threads. They are only read, and only where a user's own database has nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.records.record import PROTOCOL, Outcome, Record, Stage
from fastrun.tuner.records.verdicts import speedup_interval
from fastrun.tuner.store import exchange
from fastrun.tuner.store.staleness import is_todays_code

FOLDER = Path(__file__).parent
"""Where the files lie."""

SURELY = 1.02
"""The 95 % interval of the speed-up lies above this."""

Pair = tuple[Record, Record]
"""The heuristic's record and the winner's, of one final."""


def kind(cpu: Cpu) -> str:
    """The kind of a processor: LLVM's name of its cores, and the float32 lanes of its vectors.

    Machines of a kind have the same pipelines and first caches; their clocks and the last cache may
    differ.
    """
    return f"{cpu.name}-{cpu.lanes}"


def file_for(cpu: Cpu) -> Path:
    """The file of a kind of processor; the project may have met none of it."""
    return FOLDER / f"{kind(cpu)}.jsonl.gz"


def pretuned(p: Problem, cpu: Cpu, threads: int, heuristic: str) -> Pair | None:
    """The records of `heuristic` and of a schedule that surely beat it on this kind of processor.

    Only a final on so many threads counts, and only one against the heuristic's schedule of today:
    a heuristic that has changed since may be the faster one. None if there is no such record, or
    if the generator or the compiler makes other code today than was measured.
    """
    pair = _shipped(file_for(cpu)).get((str(p), threads))
    if pair is None or pair[0].schedule != heuristic or not all(map(holds, pair)):
        return None
    return pair


def holds(record: Record) -> bool:
    """Whether a record's code is still made, and its times are of today's protocol."""
    return record.protocol == PROTOCOL and is_todays_code(record)


def worth_shipping(records: Iterable[Record]) -> Iterator[Pair]:
    """The pairs of a database that may be shipped: the winners of finals that are surely faster.

    They read and write the heuristic's layouts, so that a network gains what the layer gains. The
    newest final of a problem, regime `hot` and number of threads counts.
    """
    finals = [
        r
        for r in records
        if r.stage == Stage.FINAL
        and r.regime == "hot"
        and r.outcome == Outcome.CORRECT
        and not r.baseline
    ]

    def group(r: Record) -> tuple[str, str, int]:
        return r.problem, r.machine, r.threads

    for _, of_problem in groupby(sorted(finals, key=lambda r: (group(r), r.time)), group):
        known = list(of_problem)
        raced = [r for r in known if r.run == known[-1].run]
        usual = next((r for r in raced if r.heuristic), None)
        if usual:
            alike = [r for r in raced if r.parameters["layout"] == usual.parameters["layout"]]
            best = min(alike, key=lambda r: r.seconds_per_call)
            if best is not usual and speedup_interval(usual, best)[0] > SURELY:
                yield usual, best


@functools.cache
def _shipped(path: Path) -> Mapping[tuple[str, int], Pair]:
    """The pairs of a file; none if there is no such file."""
    if not path.exists():
        return {}
    records, _ = exchange.read(path)
    return {(pair[0].problem, pair[0].threads): pair for pair in worth_shipping(records)}

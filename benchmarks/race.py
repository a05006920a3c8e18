"""Several engines on one model: all are checked, then timed in interleaved rounds."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from fastrun.benchmarks.one_layer import one_layer
from fastrun.benchmarks.peers import Array, LoadError, Session, engine
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import random_operands
from fastrun.tuner.measure.cores import Cores, pin
from fastrun.tuner.measure.timing import Calls, Protocol, Timing, interleave
from fastrun.tuner.records.record import Errors
from fastrun.tuner.records.statistics import typical

BLOCK = 2e-3  # seconds a sample lasts at least

WRONG = 5e-4
"""A layer with a larger rms error, relative to its output, is not timed: it is not float32.

Rounding a layer's operands to bfloat16 gives 1.6e-3.
"""
LOOSE = 2e-5
"""A layer with a larger rms error gets a remark. Winograd F(6,3) can stay below.

Rounding to float16 or TF32 gives 2e-4, as does Winograd with badly chosen points.
"""

_WARM = 5e-3  # seconds; the operating system moves a thread to an idle core in less time
_IDLE_SHARE = 0.1  # a process that uses less than this share of a core is idle
_IDLE_SECONDS = 0.25  # to wait for that, at most


@dataclass(frozen=True)
class Entry:
    """An engine that can be timed; if it cannot, `calls` is None and `note` says why.

    `overhead` are the seconds of a call from Python. They are subtracted from times, but at most
    half of a time. `start` are the seconds of loading and the first run, `memory` the bytes by
    which the process then had grown.
    """

    engine: str
    calls: Calls | None
    errors: Errors | None = None
    overhead: float = 0.0
    note: str = ""
    start: float = math.nan
    memory: int = 0


@dataclass(frozen=True)
class EntryTimes:
    """The times of an `Entry` after the race.

    `samples` are seconds per call of each block, including the overhead; empty if not timed. Those
    of several `processes` follow one another in every round.
    """

    engine: str
    samples: tuple[float, ...]
    repeats: int
    errors: Errors | None
    overhead: float
    note: str
    start: float = math.nan
    memory: int = 0
    processes: int = 1

    @property
    def by_process(self) -> tuple[float, ...]:
        """Typical seconds per call in each of its processes, which took turns in `samples`."""
        return tuple(typical(self.samples[i :: self.processes]) for i in range(self.processes))

    @property
    def against_itself(self) -> float:
        """The time in every second round over that in the others: 1 without noise (A/A test)."""
        rounds = [
            typical(self.samples[i : i + self.processes])
            for i in range(0, len(self.samples), self.processes)
        ]
        return typical(rounds[::2]) / typical(rounds[1::2]) if len(rounds) > 1 else math.nan

    @property
    def seconds(self) -> float:
        """Seconds per call without the overhead; infinite if it was not timed.

        Of several processes the geometric mean counts.
        """
        whole = math.prod(self.by_process) ** (1 / self.processes)
        return max(whole - self.overhead, whole / 2)


def race_engines(
    entries: Iterable[Entry], threads: int, rounds: int, seed: int = 0
) -> list[EntryTimes]:
    """Time all entries that can be timed; each runs one block in every round, in random order."""
    entries = list(entries)
    fit = [e for e in entries if e.calls]
    timings = in_turns([e.calls for e in fit if e.calls], threads, rounds, seed)
    by_entry = dict(zip(map(id, fit), timings, strict=True))
    nothing = Timing((), 0)
    return [
        EntryTimes(e.engine, t.samples, t.repeats, e.errors, e.overhead, e.note, e.start, e.memory)
        for e in entries
        for t in [by_entry.get(id(e), nothing)]
    ]


def merged(times: Sequence[EntryTimes]) -> EntryTimes:
    """The times of one engine in several processes as those of one entry.

    Loading takes the median time and memory. If one process was not timed, none was.
    """
    if not all(t.samples for t in times):
        return next(t for t in times if not t.samples)
    rounds = zip(*(t.samples for t in times), strict=True)
    return replace(
        times[0],
        samples=tuple(sample for one in rounds for sample in one),
        start=statistics.median(t.start for t in times),
        memory=round(statistics.median(t.memory for t in times)),
        processes=len(times),
    )


def in_turns(calls: Sequence[Calls], threads: int, rounds: int, seed: int = 0) -> list[Timing]:
    """`interleave`, with the whole process on `threads` cores."""
    everywhere = set(Cores.split(1).timing) | set(Cores.split(1).compiling)
    pin(Cores.split(threads).timing)
    try:
        return interleave(calls, rounds, Protocol(block=BLOCK), seed)
    finally:
        pin(everywhere)


def peer(
    name: str,
    model: onnx.ModelProto,
    inputs: Mapping[str, Array],
    truth: Sequence[NDArray[Any]],
    threads: int,
    *,
    inner: bool = False,
    overhead: float = 0.0,
    wrong: float = WRONG,
) -> Entry:
    """Another engine with this model, checked against float64 outputs."""
    try:
        begin = Begin()
        session = engine(name).load(model, threads, inner)
        found = session.run(inputs)
        start, memory = begin.seconds(), begin.memory()
    except LoadError as error:
        return Entry(name, None, note=str(error))
    entry = Entry(name, calls_of(session), overhead=overhead, start=start, memory=memory)
    return checked(entry, found, truth, wrong)


class Begin:
    """The moment before an engine loads a network."""

    def __init__(self) -> None:
        self._resident, self._time = _resident(), time.perf_counter()

    def seconds(self) -> float:
        """Seconds since then."""
        return time.perf_counter() - self._time

    def memory(self) -> int:
        """Bytes by which the process has grown since then; memory that it had freed is reused."""
        return max(0, _resident() - self._resident)


def _resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def checked(
    entry: Entry, found: Sequence[Array], truth: Sequence[NDArray[Any]], wrong: float = WRONG
) -> Entry:
    """The entry with its errors; without `calls` if its outputs are wrong."""
    worst = max((Errors.of(y, t) for y, t in zip(found, truth, strict=True)), key=lambda e: e.rms)
    calls, note = entry.calls, entry.note
    if worst.rms > wrong:
        calls, note = None, f"wrong or of low precision: rms error {worst.rms:.1e}"
    return replace(entry, calls=calls, errors=worst, note=note)


def calls_of(session: Session) -> Calls:
    """Blocks of calls of a session. Each begins warm, when the process is idle."""

    def calls(repeats: int) -> float:
        wait_until_idle()
        warm(session.call)
        begin = time.perf_counter()
        for _ in range(repeats):
            session.call()
        return time.perf_counter() - begin

    return calls


def warm(call: Callable[[], object]) -> None:
    """Call until the caches are warm and each thread has its own core."""
    end = time.perf_counter() + _WARM
    call()
    while time.perf_counter() < end:
        call()


def wait_until_idle() -> None:
    """Wait until no thread of this process spins.

    Threads of engines spin after a call, some for 35 ms, on a core that the next engine needs.
    """
    step = 1e-3
    for _ in range(round(_IDLE_SECONDS / step)):
        before = time.process_time()
        time.sleep(step)
        if time.process_time() - before < _IDLE_SHARE * step:
            return


def overheads(names: Iterable[str]) -> dict[str, float]:
    """Seconds of a call of each peer on one thread when there is nothing to compute.

    On small layers this overhead would decide the comparison, but a network has it once for all its
    layers, and fastrun's kernels are called without Python. It does not include waking threads,
    which a network does for every layer.
    """
    nothing = ConvProblem.parse("conv 1x1x1x1 1x1x1")
    operands = random_operands(nothing, 0)
    model, inputs = one_layer(nothing, operands), {"x": operands["x"]}
    found = {}
    for name in names:
        session = engine(name).load(model, 1, inner=True)
        session.run(inputs)
        [timing] = in_turns([calls_of(session)], 1, 20)
        # The least disturbed block counts: subtracting too much would favour the peer.
        found[name] = min(timing.samples)
    return found

"""Several engines on one model: verify all of them, then time them in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
"""The rms error, relative to the output's, from which on a layer is not timed: not float32.

Rounding a layer's operands to bfloat16 gives 1.6e-3.
"""
LOOSE = 2e-5
"""The rms error from which on a layer is remarked on: Winograd F(6,3) can stay below.

Rounding to float16 or TF32 gives 2e-4, as does Winograd with badly chosen points.
"""

_WARM = 5e-3  # seconds, longer than the scheduler takes to move a thread to an idle core
_QUIET = 0.1  # a process that uses less than this share of a core is at rest
_PATIENCE = 0.25  # seconds to wait for that


@dataclass(frozen=True)
class Entrant:
    """An engine ready to be timed, or why it is not: then `calls` is None.

    `overhead` is the seconds per call that belong to calling from Python and are taken off, as
    long as they are not most of the call.
    """

    engine: str
    calls: Calls | None
    errors: Errors | None = None
    overhead: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Lap:
    """How an engine did: an `Entrant` after the race, when its session is gone.

    `samples` are seconds per call of each block, overhead included; none if it was not timed.
    """

    engine: str
    samples: tuple[float, ...]
    repeats: int
    errors: Errors | None
    overhead: float
    note: str

    @property
    def seconds(self) -> float:
        """Seconds per call without the overhead; infinite for who was not timed."""
        whole = typical(self.samples)
        return max(whole - self.overhead, whole / 2)


def race(entrants: Iterable[Entrant], threads: int, rounds: int, seed: int = 0) -> list[Lap]:
    """Time all that can be timed; in every round each runs one block, in random order."""
    entrants = list(entrants)
    fit = {e.engine: e.calls for e in entrants if e.calls}
    timings = in_turns(list(fit.values()), threads, rounds, seed)
    by_engine = dict(zip(fit, timings, strict=True))
    nothing = Timing((), 0)
    return [
        Lap(e.engine, t.samples, t.repeats, e.errors, e.overhead, e.note)
        for e in entrants
        for t in [by_engine.get(e.engine, nothing)]
    ]


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
) -> Entrant:
    """Another engine with this model, verified against float64 outputs."""
    try:
        session = engine(name).load(model, threads, inner)
        found = session.run(inputs)
    except LoadError as error:
        return Entrant(name, None, note=str(error))
    return judged(Entrant(name, calls_of(session), overhead=overhead), found, truth, wrong)


def judged(
    entrant: Entrant, found: Sequence[Array], truth: Sequence[NDArray[Any]], wrong: float = WRONG
) -> Entrant:
    """The entrant with its errors, and without `calls` where its outputs are wrong."""
    worst = max((errors_of(y, t) for y, t in zip(found, truth, strict=True)), key=lambda e: e.rms)
    calls, note = entrant.calls, entrant.note
    if worst.rms > wrong:
        calls, note = None, f"wrong or of low precision: rms error {worst.rms:.1e}"
    return Entrant(entrant.engine, calls, worst, entrant.overhead, note)


def errors_of(found: Array, truth: NDArray[Any]) -> Errors:
    """Errors relative to the truth's rms; infinite if the shapes differ."""
    if found.shape != truth.shape:
        return Errors(np.inf, np.inf, np.inf)
    scale = float(np.sqrt(np.square(truth).mean())) or 1.0
    difference = (found - truth) / scale
    rms = np.sqrt(np.square(difference).mean())
    return Errors(float(np.abs(difference).max()), float(rms), float(difference.mean()))


def calls_of(session: Session) -> Calls:
    """Blocks of calls of a session, each begun at rest and warm."""

    def calls(repeats: int) -> float:
        settle()
        warm(session.call)
        begin = time.perf_counter()
        for _ in range(repeats):
            session.call()
        return time.perf_counter() - begin

    return calls


def warm(call: Callable[[], object]) -> None:
    """Call until the caches are warm and each thread has found a core of its own."""
    end = time.perf_counter() + _WARM
    call()
    while time.perf_counter() < end:
        call()


def settle() -> None:
    """Wait until no thread of this process spins.

    Engines leave their threads waiting for more, some for 35 ms, on a core that the next needs.
    """
    step = 1e-3
    for _ in range(round(_PATIENCE / step)):
        before = time.process_time()
        time.sleep(step)
        if time.process_time() - before < _QUIET * step:
            return


def overheads(names: Iterable[str]) -> dict[str, float]:
    """Seconds that a call of each peer takes when there is nothing to compute, on one thread.

    A network pays this once for all its layers, our own kernels are called without Python, and
    on small layers it would decide the comparison. Waking threads is no part of it: a network
    does that for every layer.
    """
    nothing = ConvProblem.parse("conv 1x1x1x1 1x1x1")
    operands = random_operands(nothing, 0)
    model, inputs = one_layer(nothing, operands), {"x": operands["x"]}
    found = {}
    for name in names:
        session = engine(name).load(model, 1, inner=True)
        session.run(inputs)
        [timing] = in_turns([calls_of(session)], 1, 20)
        # Of the least disturbed block: taking off too much would flatter the peer.
        found[name] = min(timing.samples)
    return found

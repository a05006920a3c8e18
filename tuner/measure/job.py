"""The inputs and outputs of the sandbox: plain data that travels between processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastrun.kernels.core.attention import parse_problem
from fastrun.kernels.core.program import Io, Stage
from fastrun.tuner.measure.operands import Operands
from fastrun.tuner.measure.timing import Protocol, Timing
from fastrun.tuner.records.record import REGIMES, Errors, Outcome


@dataclass(frozen=True)
class ProcessLimits:
    """When a process that runs a schedule is stopped, and when its output counts as wrong."""

    # Largest error of an output, relative to their rms. Of a million outputs of Winograd F(7,3),
    # whose rms error is 1.4e-5, the worst is off by 5e-4. Wrong outputs are off by far more.
    error: float = 1e-3
    memory: int = 4 << 30  # bytes of address space beyond what an idle worker has
    # A call may take `factor` times the time expected of it, or `call` seconds if that is more.
    factor: float = 20.0
    call: float = 0.5
    slack: float = 2.0  # seconds for everything that is not a call of the kernel


@dataclass(frozen=True)
class Compiled:
    """A compiled schedule: machine code and all that is needed to run it.

    `weights` is a .npy file of packed weights, `Path()` if another machine packs them. `seconds`
    are the times that build, compile and pack took.
    """

    problem: str
    schedule: str
    ir_hash: str
    code: bytes
    stages: tuple[Stage, ...]
    io: Io
    weights: Path
    shared_bytes: int = 0
    local_bytes: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict, hash=False)

    def workspace(self, threads: int) -> int:
        """Bytes of workspace of a run on `threads` threads."""
        return self.shared_bytes + threads * self.local_bytes

    def discard(self) -> None:
        """Delete the packed weights. The kernel cannot run any more."""
        if self.weights != Path():
            self.weights.unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """A compiled schedule to be checked and timed. `incumbent` is the best time in seconds so far.

    Raises:
        ValueError: `regime` is none of `REGIMES`.
    """

    program: Compiled
    operands: Operands
    threads: int = 1
    regime: str = "hot"
    protocol: Protocol = field(default_factory=Protocol)
    limits: ProcessLimits = field(default_factory=ProcessLimits)
    incumbent: float = math.inf

    def __post_init__(self) -> None:
        if self.regime not in REGIMES:
            raise ValueError(f"unknown regime {self.regime!r}: use {' or '.join(REGIMES)}")

    def timeout(self, rounds: int = 0) -> float:
        """Seconds after which the job counts as hanging.

        Without an incumbent a call is expected to reach 1 GFLOP/s, as any plain loop does. There
        are at least three calls: to check, to calibrate, and to time.
        """
        flops = parse_problem(self.program.problem).flops
        expected = self.incumbent if math.isfinite(self.incumbent) else flops / 1e9
        call = max(self.limits.call, self.limits.factor * expected)
        return self.limits.slack + (3 + rounds) * call


@dataclass(frozen=True)
class Result:
    """The outcome of a job.

    `samples` are seconds per call of each block; `processes`, `rounds`, `clocks` and `temperatures`
    are as in a record. `repeats` is the number of calls in a block. `complete` is False if the job
    was given up as too slow. `noise` is the largest reading of the canary before and after, or the
    largest share by which a block was disturbed if that is more; None if nothing was timed.
    `seconds` are the times of checking (`verify`) and of timing (`measure`).
    """

    outcome: Outcome
    reason: str = ""
    samples: tuple[float, ...] = ()
    processes: tuple[int, ...] = ()
    rounds: tuple[int, ...] = ()
    clocks: tuple[int, ...] = ()
    temperatures: tuple[float, ...] = ()
    repeats: int = 0
    complete: bool = True
    errors: Errors | None = None
    noise: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, hash=False)

    def timed(
        self, timing: Timing, noise: float, seconds: Mapping[str, float], stable: bool
    ) -> Result:
        """The whole result, if the timed calls gave the same output as the checked one.

        `noise` is the largest reading of the canary; `stable` says whether they did.
        """
        if not stable:
            wrong = "a later call gives another output than the first"
            return replace(self, outcome=Outcome.CORRECTNESS, reason=wrong, seconds=seconds)
        return replace(
            self,
            samples=timing.samples,
            clocks=timing.clocks,
            temperatures=timing.temperatures,
            repeats=timing.repeats,
            complete=timing.complete,
            noise=max(noise, timing.disturbed),
            seconds=seconds,
        )

"""What goes into the sandbox and what comes out: plain data that travels between processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Stage
from fastrun.tuner.measure.operands import Operands
from fastrun.tuner.measure.timing import Protocol
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
    """A candidate's machine code and all that is needed to run it.

    `weights` is a .npy file of packed weights, `Path()` where another machine packs them; `seconds`
    says how long build, compile and pack took.
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
        """Bytes of workspace that a run on this many threads takes."""
        return self.shared_bytes + threads * self.local_bytes

    def discard(self) -> None:
        """Delete the packed weights, which nobody will ask for again."""
        if self.weights != Path():
            self.weights.unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """A candidate to be verified and timed. `incumbent` is the seconds per call to beat.

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
        """Seconds from which on the job hangs.

        Without an incumbent a call is expected to make 1 GFLOP/s, which any honest loop does.
        Three calls happen at least: one to verify, one to calibrate, one to time.
        """
        flops = ConvProblem.parse(self.program.problem).flops
        expected = self.incumbent if math.isfinite(self.incumbent) else flops / 1e9
        call = max(self.limits.call, self.limits.factor * expected)
        return self.limits.slack + (3 + rounds) * call


@dataclass(frozen=True)
class Result:
    """How a candidate ended.

    `samples` are seconds per call of each block, `processes` and `rounds` as in a record; `repeats`
    are the calls of a block; `complete` is
    False where it was given up as too slow. `noise` is the largest reading of the canary
    before and after, or share of a block's time for which the process waited for a core; None where
    nothing was timed. `seconds` says what verify and measure took.
    """

    outcome: Outcome
    reason: str = ""
    samples: tuple[float, ...] = ()
    processes: tuple[int, ...] = ()
    rounds: tuple[int, ...] = ()
    repeats: int = 0
    complete: bool = True
    errors: Errors | None = None
    noise: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, hash=False)

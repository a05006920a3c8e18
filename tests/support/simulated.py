"""A machine that only pretends to measure: a clock that work moves on, and schedules of known cost.

What is tested with it depends on no machine, load or time.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.job import Compiled, Job, Result
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.records.record import Errors, Outcome

T = TypeVar("T")


@dataclass
class Clock:
    """Seconds since it began; `longest` is the longest piece of work that nothing could stop."""

    now: float = 0.0
    longest: float = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        """Let something last so long."""
        self.now += seconds
        self.longest = max(self.longest, seconds)


class SimulatedMeasurer(Measurer):
    """Schedules make 10 to 50 GFLOP/s, naive loops two; all work takes `slow` times as long.

    `noise` is what the canary says of every measurement.
    """

    def __init__(self, clock: Clock, slow: float = 1.0, noise: float = 0.0) -> None:
        super().__init__(cores=Cores((1,), (0, 1)), cpu=Cpu.host())
        self.clock, self.slow, self.noise = clock, slow, noise
        self.seen = set[ConvProblem]()
        self.sandbox = SimulatedSandbox(self)

    def _open(self, stack: ExitStack) -> None:
        self.clock.work(0.5 * self.slow)

    def compile(
        self, problem: ConvProblem, schedule: str, code: bytes | None = None
    ) -> Future[Compiled | Result]:
        """Half of it runs beside the timing."""
        if problem not in self.seen:
            self.seen.add(problem)
            self.clock.work(self.slow * (0.05 + problem.flops / 2e10))
        self.clock.work(0.1 * self.slow)
        parts = {"build": 0.05 * self.slow, "compile": 0.1 * self.slow, "pack": 0.01 * self.slow}
        return done(
            Compiled(
                problem=str(problem), schedule=schedule, ir_hash=f"code of {schedule}", code=b"",
                stages=(), io=cast(Io, None), weights=Path(), seconds=parts,
            )
        )  # fmt: skip

    def job(
        self,
        problem: ConvProblem,
        program: Compiled,
        incumbent: float = 0.0,
        protocol: Protocol | None = None,
    ) -> Job:
        """Without operands."""
        from fastrun.tuner.measure.operands import Operands

        return Job(program, Operands(str(problem)), protocol=protocol or Protocol())

    def call(self, job: Job) -> float:
        """Seconds that a call takes."""
        program = job.program
        rate = 1e10 * (1 + zlib.crc32(program.schedule.encode()) % 1000 / 250)
        if program.schedule.startswith(("naive", "winograd_naive")):
            rate = 2e9
        return self.slow * ConvProblem.parse(program.problem).flops / rate


class SimulatedSandbox:
    """Where that time passes."""

    def __init__(self, measurer: SimulatedMeasurer) -> None:
        self._measurer, self._draw = measurer, random.Random(0)

    def submit_all(self, jobs: Sequence[Job]) -> Future[list[Result]]:
        """One after the other."""
        return done([self._timed(job, 3) for job in jobs])

    def race(
        self, jobs: Sequence[Job], rounds: int, seed: int = 0, drop_every: int = 0
    ) -> Future[list[Result]]:
        """As one piece of work."""
        before, longest = self._measurer.clock.now, self._measurer.clock.longest
        found = [self._timed(job, rounds) for job in jobs]
        clock = self._measurer.clock
        clock.longest = max(longest, clock.now - before)
        return done(found)

    def restart(self) -> None:
        """A new process."""
        self._measurer.clock.work(self._measurer.slow)

    def _timed(self, job: Job, rounds: int) -> Result:
        call, protocol = self._measurer.call(job), job.protocol
        verify = call + 0.01 * self._measurer.slow
        self._measurer.clock.work(verify)
        if call >= protocol.slow:
            rounds = 1
        else:
            block = max(call, protocol.block)
            warm = call if call >= protocol.block else protocol.rewarm * block
            self._measurer.clock.work(2 * block + rounds * (block + warm))
        return Result(
            Outcome.CORRECT,
            samples=tuple(call * self._draw.uniform(1, 1.01) for _ in range(rounds)),
            errors=Errors(1e-6, 1e-7, 0.0),
            noise=self._measurer.noise,
            seconds={"verify": verify},
        )


def done(value: T) -> Future[T]:
    """An answer that is there."""
    future: Future[T] = Future()
    future.set_result(value)
    return future

"""Compiles, checks and times schedules under one set of conditions, and makes records of it.

Searches and races decide which schedules are measured, and when. This file says how, and what a
record contains.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol as Interface
from typing import Self
from uuid import uuid4

from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.registry import every_template, heuristic_choice
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.interrupts import one_interrupt
from fastrun.tuner.measure.job import Compiled, Job, ProcessLimits, Result
from fastrun.tuner.measure.operands import Operands, Scratch
from fastrun.tuner.measure.sandbox import Compiler, Sandbox
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.records.environment import Environment, toolchain
from fastrun.tuner.records.record import ALONE, PROTOCOL, Conditions, Record, Stage

# A measurement is repeated if the canary or its samples deviate by more than this share, because
# the core had other work meanwhile; so many times at most.
DISTURBED = 0.25
RETRIES = 2


class Bench(Interface):
    """Where jobs are checked and timed; `tuner.measure.sandbox.Sandbox` documents it."""

    def submit_all(self, jobs: Sequence[Job]) -> Future[list[Result]]:
        """Check and time the jobs one after the other."""

    def race(
        self, jobs: Sequence[Job], rounds: int, seed: int = 0, drop_every: int = 0
    ) -> Future[list[Result]]:
        """Check all jobs, then time the correct ones in interleaved rounds."""

    def restart(self) -> None:
        """Run later jobs in a fresh process."""


class Measurer:
    """The processes, files and cores of one run; all its records bear the name `run`.

    A context manager. `compile` and `sandbox` return futures; `record` makes records of their
    results. `cpu` is the machine that measures, and `width` the number of calls of the sandbox that
    keep it busy. Ctrl-C raises KeyboardInterrupt only once, so that the run can end in order.

    Raises:
        ValueError: there are more threads than cores.
    """

    width = 1
    sandbox: Bench

    def __init__(
        self,
        threads: int = 1,
        regime: str = "hot",
        limits: ProcessLimits | None = None,
        *,
        cores: Cores | None = None,
        cpu: Cpu | None = None,
    ) -> None:
        self.threads, self.regime = threads, regime
        self.limits = limits or ProcessLimits()
        self.cores, self.cpu = cores or Cores.split(threads), cpu or Cpu.host()
        self.run = uuid4().hex[:12]
        self._toolchain = toolchain()
        self._operands: dict[Problem, Operands] = {}
        self._yielded = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(one_interrupt())
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack) -> None:
        stack.enter_context(self.cores.keep_clear())
        self._scratch = stack.enter_context(Scratch())
        self.compiler = stack.enter_context(Compiler(self.cores, self.cpu, self.limits))
        self.sandbox = stack.enter_context(Sandbox(self.cores, self.limits))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def conditions(self) -> Conditions:
        """The conditions of the next measurement; the regime may change between races."""
        return Conditions(self.cpu.fingerprint, self.threads, self.regime)

    def environments(self) -> Iterator[Environment]:
        """Environments to store with the results; each is yielded once."""
        if not self._yielded:
            self._yielded = True
            yield Environment.host()

    def operands(self, problem: Problem) -> Operands:
        """The problem's inputs and float64 output, made at the first call."""
        if problem not in self._operands:
            self._operands[problem] = Operands.make(problem, self._scratch)
        return self._operands[problem]

    def forget(self, *problems: Problem) -> None:
        """Delete the operands of these problems; of all if none is given."""
        for problem in problems or [*self._operands]:
            self._operands.pop(problem).discard()

    def compile(
        self, problem: Problem, schedule: str, code: bytes | None = None
    ) -> Future[Compiled | Result]:
        """Compile a schedule of the problem: a program, or the reason why there is none.

        `code` is its machine code if another machine has compiled it already.
        """
        return self.compiler.submit(self.operands(problem), schedule, code)

    def job(
        self,
        problem: Problem,
        program: Compiled,
        incumbent: float = math.inf,
        protocol: Protocol | None = None,
    ) -> Job:
        """A job for the sandbox, of a program that `compile` has made."""
        return Job(
            program,
            self.operands(problem),
            threads=self.threads,
            regime=self.regime,
            protocol=protocol or Protocol(),
            limits=self.limits,
            incumbent=incumbent,
        )

    def record(
        self,
        problem: Problem,
        schedule: str,
        result: Result,
        program: Compiled | None,
        stage: Stage = Stage.SCREEN,
    ) -> Record:
        """The record of a result; `program` is None if the schedule did not compile."""
        return Record(
            problem=str(problem),
            schedule=schedule,
            machine=self.cpu.fingerprint,
            threads=self.threads,
            regime=self.regime,
            toolchain=self._toolchain,
            ir_hash=program.ir_hash if program else "",
            outcome=result.outcome,
            reason=result.reason,
            stage=stage,
            samples=result.samples,
            processes=result.processes or (0,) * len(result.samples),
            rounds=result.rounds or (ALONE,) * len(result.samples),
            clocks=result.clocks,
            temperatures=result.temperatures,
            protocol=PROTOCOL,
            errors=result.errors,
            workspace=program.workspace(self.threads) if program else 0,
            seconds={**(program.seconds if program else {}), **result.seconds},
            baseline=is_baseline(schedule),
            heuristic=schedule == heuristic_text(problem, self.cpu),
            run=self.run,
            noise=result.noise,
        )


def is_baseline(schedule: str) -> bool:
    """Whether the schedule's algorithm is a baseline, which serves comparisons only."""
    template = every_template().get(schedule.partition("(")[0])
    return template is not None and template.baseline


@functools.lru_cache(1000)
def heuristic_text(problem: Problem, cpu: Cpu | None = None) -> str:
    """The heuristic's schedule, for this machine unless `cpu` is given."""
    template, schedule = heuristic_choice(problem, cpu or Cpu.host())
    return template.text(schedule)


_PROTOCOL = Protocol(warmup=3, blocks=15)


def remeasure(problem: Problem, schedule: str, threads: int, regime: str) -> Record:
    """Measure one schedule as a search does, with more blocks.

    Raises:
        ValueError: there are more threads than cores.
    """
    with Measurer(threads, regime) as measurer:
        made = measurer.compile(problem, schedule).result()
        if not isinstance(made, Compiled):
            return measurer.record(problem, schedule, made, None)
        job = measurer.job(problem, made, protocol=_PROTOCOL)
        (result,) = measurer.sandbox.submit_all([job]).result()
        return measurer.record(problem, schedule, result, made)

"""Compiles, verifies and times schedules under one set of conditions, and records what comes of it.

A search, a final race and a repetition of one row differ in what they measure and when; how, and
what of it is stored, is said here.
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

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import heuristic_choice, templates
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.interrupts import one_interrupt
from fastrun.tuner.measure.job import Compiled, Job, ProcessLimits, Result
from fastrun.tuner.measure.operands import Operands, Scratch
from fastrun.tuner.measure.sandbox import Compiler, Sandbox
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.records.environment import Environment, toolchain
from fastrun.tuner.records.record import ALONE, PROTOCOL, Conditions, Record, Stage

# A candidate is measured again, so often at most, when the canary or its own samples say that
# somebody else used the core meanwhile.
RETRIES = 2
DISTURBED = 0.25


class Bench(Interface):
    """Where candidates are verified and timed; `tuner.measure.sandbox.Sandbox` says how."""

    def submit_all(self, jobs: Sequence[Job]) -> Future[list[Result]]:
        """Verify and time candidates one after the other."""

    def race(
        self, jobs: Sequence[Job], rounds: int, seed: int = 0, rung: int = 0
    ) -> Future[list[Result]]:
        """Verify all candidates, then time the correct ones in interleaved rounds."""

    def restart(self) -> None:
        """Run what is submitted from now on in a fresh process."""


class Measurer:
    """The processes, scratch files and cores of one run, whose name all its records bear.

    A context. `compile` and `sandbox` answer with futures, `record` makes their answers facts.
    `cpu` is what measures, and `width` how many calls of the sandbox keep it busy. Ctrl-C raises
    KeyboardInterrupt once: what it ends then comes to its end.

    Raises:
        ValueError: more threads than cores.
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
        self._operands: dict[ConvProblem, Operands] = {}
        self._told = False

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
        """Under which it measures now: the regime may change between races."""
        return Conditions(self.cpu.fingerprint, self.threads, self.regime)

    def environments(self) -> Iterator[Environment]:
        """Where results come from, as far as this has not said it before."""
        if not self._told:
            self._told = True
            yield Environment.host()

    def operands(self, problem: ConvProblem) -> Operands:
        """What the problem's candidates are fed and judged by, made when first asked for."""
        if problem not in self._operands:
            self._operands[problem] = Operands.make(problem, self._scratch)
        return self._operands[problem]

    def forget(self) -> None:
        """Delete all operands: what comes next is about other problems."""
        while self._operands:
            self._operands.popitem()[1].discard()

    def compile(
        self, problem: ConvProblem, schedule: str, code: bytes | None = None
    ) -> Future[Compiled | Result]:
        """Make the problem's program with this schedule: a program, or why there is none.

        `code` is its machine code where another machine has compiled it.
        """
        return self.compiler.submit(self.operands(problem), schedule, code)

    def job(
        self,
        problem: ConvProblem,
        program: Compiled,
        incumbent: float = math.inf,
        protocol: Protocol | None = None,
    ) -> Job:
        """What the sandbox is to do with a program that `compile` has made."""
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
        problem: ConvProblem,
        schedule: str,
        result: Result,
        program: Compiled | None,
        stage: Stage = Stage.SCREEN,
    ) -> Record:
        """The outcome as a fact; `program` is None where there was none to run."""
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
    """Whether the schedule's algorithm exists to be compared with."""
    template = templates().get(schedule.partition("(")[0])
    return template is not None and template.baseline


@functools.lru_cache(1000)
def heuristic_text(problem: ConvProblem, cpu: Cpu | None = None) -> str:
    """The schedule that would run without any measuring, on this machine unless on `cpu`."""
    template, schedule = heuristic_choice(problem, cpu or Cpu.host())
    return template.text(schedule)


_PROTOCOL = Protocol(warmup=3, blocks=15)


def remeasure(problem: ConvProblem, schedule: str, threads: int, regime: str) -> Record:
    """The outcome of a schedule, by the measurements of a search but more of them.

    Raises:
        ValueError: more threads than cores.
    """
    with Measurer(threads, regime) as measurer:
        made = measurer.compile(problem, schedule).result()
        if not isinstance(made, Compiled):
            return measurer.record(problem, schedule, made, None)
        job = measurer.job(problem, made, protocol=_PROTOCOL)
        (result,) = measurer.sandbox.submit_all([job]).result()
        return measurer.record(problem, schedule, result, made)

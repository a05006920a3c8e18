"""Processes that may die: one that verifies and times candidates, some that compile them.

Both pools answer with plain futures. Whatever a candidate does to its process, or says in its
place, is a `Result`; an exception from a future is a defect of ours or of the machine, such as a
full disk.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Self, TypeVar

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.compile import CompileError
from fastrun.tuner.measure import worker
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.guarded import STRAYS
from fastrun.tuner.measure.job import Compiled, Job, ProcessLimits, Result
from fastrun.tuner.measure.limits import in_words
from fastrun.tuner.measure.operands import Operands
from fastrun.tuner.measure.process import Died, Garbled, Process
from fastrun.tuner.records.record import Outcome

T = TypeVar("T")

# Processes that may end, one after the other, before they do what they are asked, and the seconds
# that each may take to start.
_STARTS, _START = 3, 60.0


class WorkerDied(RuntimeError):
    """A process did not live to answer. The message says what killed it."""


class _Context:
    """Something whose processes live as long as a `with` block."""

    _workers: _Workers

    def __enter__(self) -> Self:
        self._workers.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.stop()


class Sandbox(_Context):
    """One process, bound to the timing cores, in which candidates are verified and then timed.

    A context. Jobs run one after the other in the order given; one that kills the process costs
    the next a fresh one. Of `limits` the memory counts, which a process is given when it starts;
    the others come with each job.
    """

    def __init__(self, cores: Cores, limits: ProcessLimits | None = None) -> None:
        self._cores = cores
        memory = (limits or ProcessLimits()).memory
        self._workers = _Workers(1, (cores.timing[:1], memory, True))

    def submit(self, job: Job) -> Future[Result]:
        """Verify the candidate, then time it."""
        self._check(job)
        return self._workers.submit(self._run, job)

    def submit_all(self, jobs: Sequence[Job]) -> Future[list[Result]]:
        """Verify and time candidates one after the other, with one turn on the cores for all."""
        for job in jobs:
            self._check(job)
        return self._workers.submit(self._run_all, list(jobs))

    def race(
        self, jobs: Sequence[Job], rounds: int, seed: int = 0, rung: int = 0
    ) -> Future[list[Result]]:
        """Verify all candidates, then time the correct ones in `rounds` interleaved rounds.

        Sample i of every result is of round i; the first job's blocks hold for all. After every
        `rung` rounds, where that is given, those leave that are surely slower than the fastest. If
        the process dies, all share that result.
        """
        for job in jobs:
            self._check(job)
        return self._workers.submit(self._race, list(jobs), rounds, seed, rung)

    def call(self, work: Callable[..., T], arguments: tuple[Any, ...], timeout: float) -> T:
        """Do other work that needs the timing cores, and wait for its answer.

        The annotations of `work` say what it returns, which is plain data (`tuner.measure.plain`).

        Raises:
            WorkerDied: it killed its process, or took longer than `timeout` seconds.
        """
        with self._cores.timing_turn():
            try:
                return self._workers.call(work, arguments, timeout)
            except TimeoutError:
                raise WorkerDied(f"stopped after {timeout:.1f} s") from None
            except (Died, Garbled) as death:
                raise WorkerDied(str(death)) from None

    def restart(self) -> None:
        """Run what is submitted from now on in a fresh process: its memory lies elsewhere."""
        self._workers.submit(self._workers.renew).result()

    def _check(self, job: Job) -> None:
        if job.threads > len(self._cores.timing):
            raise ValueError(f"{job.threads} threads, but {len(self._cores.timing)} cores to time")

    def _run(self, job: Job) -> Result:
        return self._run_all([job])[0]

    def _run_all(self, jobs: list[Job]) -> list[Result]:
        with self._cores.timing_turn():
            return [
                self._guarded(worker.run_one, (job, self._cores.timing), job.timeout(), 1)[0]
                for job in jobs
            ]

    def _race(self, jobs: list[Job], rounds: int, seed: int, rung: int) -> list[Result]:
        timeout = sum(job.timeout(rounds) for job in jobs)
        arguments = jobs, rounds, seed, rung, self._cores.timing
        with self._cores.timing_turn():
            return self._guarded(worker.run_race, arguments, timeout, len(jobs))

    def _guarded(
        self,
        work: Callable[..., list[Result]],
        arguments: tuple[Any, ...],
        timeout: float,
        count: int,
    ) -> list[Result]:
        """So many results: if the process dies all are alike."""
        try:
            found = self._workers.call(work, arguments, timeout)
            if len(found) == count:
                return found
            result = _obituary(Garbled(f"{len(found)} results for {count} candidates"))
        except TimeoutError:
            result = Result(Outcome.TIMEOUT, f"stopped after {timeout:.1f} s")
        except (Died, Garbled) as death:
            result = _obituary(death)
        except MemoryError as error:
            result = Result(Outcome.RUNTIME, f"out of memory: {error}{in_words()}")
        return [result] * count


class Compiler(_Context):
    """Processes, bound to the compiling cores, that build, compile and pack weights. A context."""

    def __init__(
        self, cores: Cores, cpu: Cpu, limits: ProcessLimits | None = None, timeout: float = 30.0
    ) -> None:
        self._cores, self._cpu, self._timeout = cores, cpu, timeout
        memory = (limits or ProcessLimits()).memory
        self._workers = _Workers(len(cores.compiling), (cores.compiling, memory, False))

    def submit(
        self, operands: Operands, schedule: str, code: bytes | None = None
    ) -> Future[Compiled | Result]:
        """Make the operands' problem with this schedule: a program, or why there is none.

        `code` is the program's machine code where another machine has compiled it.
        """
        return self._workers.submit(self._compile, operands, schedule, code)

    def _compile(self, operands: Operands, schedule: str, code: bytes | None) -> Compiled | Result:
        with self._cores.compile_turn() as core:
            try:
                return self._workers.call(
                    worker.compile_on, (core, operands, schedule, self._cpu, code), self._timeout
                )
            except ScheduleError as error:
                return Result(Outcome.CONSTRAINTS, str(error))
            except TimeoutError:
                return Result(Outcome.COMPILE, f"stopped after {self._timeout:.1f} s")
            except (Died, Garbled) as death:
                return Result(Outcome.COMPILE, _obituary(death).reason)
            except (CompileError, MemoryError, *_DEFECTS) as error:
                return Result(Outcome.COMPILE, f"{type(error).__name__}: {error}")


# What a defective generator or weight packing raises. Trouble with files is not among them.
_DEFECTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


# Exceptions that are no builtins and are told apart here.
_KNOWN = {kind.__name__: kind for kind in (ScheduleError, CompileError)}


# Exceptions that are no builtins and are told apart here.
_KNOWN = {kind.__name__: kind for kind in (ScheduleError, CompileError)}


class _Workers:
    """So many processes, and a thread for each that waits for it."""

    def __init__(self, count: int, setup: tuple[tuple[int, ...], int, bool]) -> None:
        self._count, self._setup = count, setup
        # They start the processes too: one is killed when the thread that started it ends.
        self._threads = ThreadPoolExecutor(count)
        self._change, self._closed = threading.Lock(), False
        self._living: set[Process] = set()
        self._idle: SimpleQueue[Process | None] = SimpleQueue()  # None is to be started

    def start(self) -> None:
        self.submit(self._fill).result()

    def stop(self) -> None:
        with self._change:
            self._closed = True
            for process in self._living:
                process.end()
        self._threads.shutdown(cancel_futures=True)
        while self._living:
            self._living.pop().kill()

    def renew(self) -> None:
        """Put a fresh process in the place of an idle one."""
        process = self._idle.get()
        if process:
            process.kill()
        self._put_back(process)

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Do `work` in the next free thread.

        Raises:
            WorkerDied: there can be no more threads.
        """
        try:
            return self._threads.submit(work, *arguments)
        except RuntimeError as error:
            if self._closed:
                raise
            raise WorkerDied(f"{error}{in_words()}") from error

    def call(self, function: Callable[..., T], arguments: tuple[Any, ...], timeout: float) -> T:
        """Call `function` in a process and wait for it.

        Raises:
            TimeoutError: it took too long and its process was killed.
            Died: its process died.
            Garbled: its process said something else than an answer, and was killed.
            WorkerDied: processes die before they do anything.
            CancelledError: this has been stopped.
        """
        while True:
            process = self._ready()
            used = process.answered > 1
            try:
                return process.call(function, arguments, timeout, _KNOWN)
            except (Died, Garbled) as death:
                if self._closed:
                    raise CancelledError from None
                # Where a process has so much time only, others may have spent it.
                if not (used and isinstance(death, Died) and death.code == -signal.SIGXCPU):
                    raise
            finally:
                self._put_back(process)

    def _fill(self) -> None:
        for _ in range(self._count):
            self._put_back(None)

    def _ready(self) -> Process:
        """An idle process that waits for work; in place of one that died meanwhile another."""
        last: Exception | None = None
        for _ in range(_STARTS):
            process = self._idle.get()
            try:
                process = process or self._fresh()
                if process.is_fit():
                    if not process.answered:
                        process.call(worker.enter, self._setup, _START)
                    return process
            except Exception as error:
                last = error
            if process:
                process.kill()
            self._put_back(process)
            if self._closed:
                raise CancelledError
        raise WorkerDied(
            f"worker processes end as soon as they start: {_why(last)}{in_words()}"
        ) from last

    def _put_back(self, process: Process | None) -> None:
        """Make it, or a fresh one where it is no more, an idle one."""
        if process and not process.is_alive:
            self._living.discard(process)
        try:
            self._idle.put(process if process and process.is_alive else self._fresh())
        except (OSError, CancelledError):  # whoever needs one will hear why
            self._idle.put(None)

    def _fresh(self) -> Process:
        with self._change:
            if self._closed:
                raise CancelledError
            process = Process()
            self._living.add(process)
            return process


def _why(error: Exception | None) -> str:
    if isinstance(error, Died):
        return error.said or str(error)
    return f"{type(error).__name__}: {error}" if error else "nobody knows why"


def _obituary(death: Died | Garbled) -> Result:
    code = death.code if isinstance(death, Died) else 0
    if worker.STRAY <= code < worker.STRAY + len(STRAYS):
        return Result(Outcome.CORRECTNESS, STRAYS[code - worker.STRAY])
    limits = in_words() if code == -signal.SIGXCPU else ""
    return Result(Outcome.RUNTIME, f"{death}{limits}")

"""Processes that may die: one that checks and times kernels, and several that compile them.

Both pools return futures. Whatever a kernel does to its process or writes instead of an answer
becomes a `Result`. An exception from a future is a defect of this program or of the machine, such
as a full disk.
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
from fastrun.tuner.measure.operands import Operands
from fastrun.tuner.measure.process import Died, Garbled, Process
from fastrun.tuner.measure.ulimits import small_limits
from fastrun.tuner.records.record import Outcome

T = TypeVar("T")

_STARTS = 3  # processes that may end one after the other before one does its work
_START_SECONDS = 60.0


class WorkerDied(RuntimeError):
    """A process ended before it answered. The message says what killed it."""


class _Context:
    """Its processes live as long as a `with` block."""

    _workers: _Workers

    def __enter__(self) -> Self:
        self._workers.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.stop()


class Sandbox(_Context):
    """One process, bound to the timing cores, in which kernels are checked and then timed.

    A context manager. Jobs run one after the other in the order given. After a job that kills the
    process, the next one gets a fresh process. Only the memory of `limits` is used here, when a
    process starts; the other limits come with each job.
    """

    def __init__(self, cores: Cores, limits: ProcessLimits | None = None) -> None:
        self._cores = cores
        memory = (limits or ProcessLimits()).memory
        self._workers = _Workers(1, (cores.timing[:1], memory, True))

    def submit(self, job: Job) -> Future[Result]:
        """Check the job's kernel, then time it."""
        self._check(job)
        return self._workers.submit(self._run, job)

    def submit_all(self, jobs: Sequence[Job]) -> Future[list[Result]]:
        """Check and time the jobs one after the other, in one turn on the cores."""
        for job in jobs:
            self._check(job)
        return self._workers.submit(self._run_all, list(jobs))

    def race(
        self, jobs: Sequence[Job], rounds: int, seed: int = 0, drop_every: int = 0
    ) -> Future[list[Result]]:
        """Check all jobs, then time the correct ones in `rounds` interleaved rounds.

        Sample i of every result is from round i. The first job's protocol holds for all. After
        every `drop_every` rounds (0: never) kernels leave that are surely slower than the fastest.
        If the process dies, that is the result of all.
        """
        for job in jobs:
            self._check(job)
        return self._workers.submit(self._race, list(jobs), rounds, seed, drop_every)

    def call(self, work: Callable[..., T], arguments: tuple[Any, ...], timeout: float) -> T:
        """Call `work` on the timing cores and return its result.

        Its annotations give the type of the result, which is plain data (`tuner.measure.plain`).

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
        """Run later jobs in a fresh process, whose memory lies elsewhere."""
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

    def _race(self, jobs: list[Job], rounds: int, seed: int, drop_every: int) -> list[Result]:
        timeout = sum(job.timeout(rounds) for job in jobs)
        arguments = jobs, rounds, seed, drop_every, self._cores.timing
        with self._cores.timing_turn():
            return self._guarded(worker.run_race, arguments, timeout, len(jobs))

    def _guarded(
        self,
        work: Callable[..., list[Result]],
        arguments: tuple[Any, ...],
        timeout: float,
        count: int,
    ) -> list[Result]:
        """`count` results; if the process dies, they are all the same."""
        try:
            found = self._workers.call(work, arguments, timeout)
            if len(found) == count:
                return found
            result = death_result(Garbled(f"{len(found)} results for {count} jobs"))
        except TimeoutError:
            result = Result(Outcome.TIMEOUT, f"stopped after {timeout:.1f} s")
        except (Died, Garbled) as death:
            result = death_result(death)
        except MemoryError as error:
            result = Result(Outcome.RUNTIME, f"out of memory: {error}{small_limits()}")
        return [result] * count


class Compiler(_Context):
    """Processes on the compiling cores that build, compile and pack weights. A context manager.

    With `portable` the code can be linked to run elsewhere.
    """

    def __init__(
        self,
        cores: Cores,
        cpu: Cpu,
        limits: ProcessLimits | None = None,
        timeout: float = 30.0,
        portable: bool = False,
    ) -> None:
        self._cores, self._cpu, self._timeout, self._portable = cores, cpu, timeout, portable
        memory = (limits or ProcessLimits()).memory
        self._workers = _Workers(len(cores.compiling), (cores.compiling, memory, False))

    def submit(
        self, operands: Operands, schedule: str, code: bytes | None = None
    ) -> Future[Compiled | Result]:
        """Compile a schedule of the operands' problem: a program, or the reason for none.

        `code` is its machine code if another machine has compiled it already.
        """
        return self._workers.submit(self._compile, operands, schedule, code)

    def _compile(self, operands: Operands, schedule: str, code: bytes | None) -> Compiled | Result:
        with self._cores.compile_turn() as core:
            try:
                asked = core, operands, schedule, self._cpu, code, self._portable
                return self._workers.call(worker.compile_on, asked, self._timeout)
            except ScheduleError as error:
                return Result(Outcome.CONSTRAINTS, str(error))
            except TimeoutError:
                return Result(Outcome.COMPILE, f"stopped after {self._timeout:.1f} s")
            except (Died, Garbled) as death:
                return Result(Outcome.COMPILE, death_result(death).reason)
            except (CompileError, MemoryError, *_DEFECTS) as error:
                return Result(Outcome.COMPILE, f"{type(error).__name__}: {error}")


# Exceptions of a defective generator or weight packing; those of files are not among them.
_DEFECTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)

# Exceptions that are not built in and keep their type across processes.
_KNOWN = {kind.__name__: kind for kind in (ScheduleError, CompileError)}


class _Workers:
    """`count` processes, and for each a thread that waits for it."""

    def __init__(self, count: int, setup: tuple[tuple[int, ...], int, bool]) -> None:
        self._count, self._setup = count, setup
        # These threads start the processes too: a process is killed when its thread ends.
        self._threads = ThreadPoolExecutor(count)
        self._change, self._closed = threading.Lock(), False
        self._living: set[Process] = set()
        self._idle: SimpleQueue[Process | None] = SimpleQueue()  # None is one yet to be started

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
        """Replace an idle process by a fresh one."""
        process = self._idle.get()
        if process:
            process.kill()
        self._put_back(process)

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call `work` in the next free thread.

        Raises:
            WorkerDied: no thread can be started.
        """
        try:
            return self._threads.submit(work, *arguments)
        except RuntimeError as error:
            if self._closed:
                raise
            raise WorkerDied(f"{error}{small_limits()}") from error

    def call(self, function: Callable[..., T], arguments: tuple[Any, ...], timeout: float) -> T:
        """Call `function` in a process and wait for it.

        Raises:
            TimeoutError: it took too long; its process was killed.
            Died: its process died.
            Garbled: its process sent something else than an answer, and was killed.
            WorkerDied: processes end as soon as they start.
            CancelledError: the pool has been stopped.
        """
        while True:
            process = self._ready()
            used = process.answered > 1
            try:
                return process.call(function, arguments, timeout, _KNOWN)
            except (Died, Garbled) as death:
                if self._closed:
                    raise CancelledError from None
                # A limit on CPU time may have been used up by earlier jobs.
                if not (used and isinstance(death, Died) and death.code == -signal.SIGXCPU):
                    raise
            finally:
                self._put_back(process)

    def _fill(self) -> None:
        for _ in range(self._count):
            self._put_back(None)

    def _ready(self) -> Process:
        """An idle process, ready for work; one that died meanwhile is replaced."""
        last: Exception | None = None
        for _ in range(_STARTS):
            process = self._idle.get()
            try:
                process = process or self._fresh()
                if process.is_fit():
                    if not process.answered:
                        process.call(worker.enter, self._setup, _START_SECONDS)
                    return process
            except Exception as error:
                last = error
            if process:
                process.kill()
            self._put_back(process)
            if self._closed:
                raise CancelledError
        raise WorkerDied(
            f"worker processes end as soon as they start: {_why(last)}{small_limits()}"
        ) from last

    def _put_back(self, process: Process | None) -> None:
        """Make the process idle, or a fresh one if it is dead."""
        if process and not process.is_alive:
            self._living.discard(process)
        try:
            self._idle.put(process if process and process.is_alive else self._fresh())
        except (OSError, CancelledError):  # it is raised again when a process is needed
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
    return f"{type(error).__name__}: {error}" if error else "for an unknown reason"


def death_result(death: Died | Garbled) -> Result:
    """The result of a job that ended its process, or made it say something else."""
    code = death.code if isinstance(death, Died) else 0
    if worker.STRAY <= code < worker.STRAY + len(STRAYS):
        return Result(Outcome.CORRECTNESS, STRAYS[code - worker.STRAY])
    limits = small_limits() if code == -signal.SIGXCPU else ""
    return Result(Outcome.RUNTIME, f"{death}{limits}")

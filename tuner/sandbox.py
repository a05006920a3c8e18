"""Processes that may die: one that verifies and times candidates, some that compile them.

Both pools answer with plain futures. Whatever a candidate does to its process is a `Result`; an
exception from a future is a defect of ours or of the machine, such as a full disk.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self, TypeVar

from pebble import ProcessExpired, ProcessPool

from kernels.codegen.jit import CompileError
from kernels.core.cpu import Cpu
from kernels.core.template import ScheduleError
from tuner import worker
from tuner.cores import Cores
from tuner.job import Compiled, Job, Limits, Result
from tuner.operands import Operands
from tuner.record import Outcome
from tuner.spawn import Spawn
from tuner.verify import STRAYS

T = TypeVar("T")

# Pools that may break, one after the other, before they do what they are asked.
_STARTS = 5


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

    def __init__(self, cores: Cores, limits: Limits | None = None) -> None:
        self._cores = cores
        memory = (limits or Limits()).memory
        self._workers = _Workers(1, cores.timing[:1], memory)

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

        Raises:
            WorkerDied: it killed its process, or took longer than `timeout` seconds.
        """
        with self._cores.timing_turn():
            try:
                return self._workers.call(work, arguments, timeout)
            except TimeoutError:
                raise WorkerDied(f"stopped after {timeout:.1f} s") from None
            except ProcessExpired as death:
                raise WorkerDied(_obituary(death).reason) from None

    def restart(self) -> None:
        """Run what is submitted from now on in a fresh process: its memory lies elsewhere."""
        self._workers.submit(self._workers.restart).result()

    def _check(self, job: Job) -> None:
        if job.threads > len(self._cores.timing):
            raise ValueError(f"{job.threads} threads, but {len(self._cores.timing)} cores to time")

    def _run(self, job: Job) -> Result:
        return self._run_all([job])[0]

    def _run_all(self, jobs: list[Job]) -> list[Result]:
        with self._cores.timing_turn():
            return [
                self._guarded(worker.run_one, (job, self._cores.timing), job.timeout())[0]
                for job in jobs
            ]

    def _race(self, jobs: list[Job], rounds: int, seed: int, rung: int) -> list[Result]:
        timeout = sum(job.timeout(rounds) for job in jobs)
        with self._cores.timing_turn():
            found = self._guarded(
                worker.run_race, (jobs, rounds, seed, rung, self._cores.timing), timeout
            )
        return found * len(jobs) if len(found) < len(jobs) else found

    def _guarded(
        self, work: Callable[..., list[Result]], arguments: tuple[Any, ...], timeout: float
    ) -> list[Result]:
        try:
            return self._workers.call(work, arguments, timeout)
        except TimeoutError:
            return [Result(Outcome.TIMEOUT, f"stopped after {timeout:.1f} s")]
        except ProcessExpired as death:
            return [_obituary(death)]
        except MemoryError as error:
            return [Result(Outcome.RUNTIME, f"out of memory: {error}")]


class Compiler(_Context):
    """Processes, bound to the compiling cores, that build, compile and pack weights. A context."""

    def __init__(
        self, cores: Cores, cpu: Cpu, limits: Limits | None = None, timeout: float = 30.0
    ) -> None:
        self._cores, self._cpu, self._timeout = cores, cpu, timeout
        memory = (limits or Limits()).memory
        self._workers = _Workers(len(cores.compiling), cores.compiling, memory)

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
            except ProcessExpired as death:
                return Result(Outcome.COMPILE, _obituary(death).reason)
            except (CompileError, MemoryError, *_DEFECTS) as error:
                return Result(Outcome.COMPILE, f"{type(error).__name__}: {error}")


# What a defective generator or weight packing raises. Trouble with files is not among them.
_DEFECTS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class _Workers:
    """A pool of processes, and a thread for each that waits for it.

    Pebble gives up a pool when a process dies between two tasks; then a new one takes over.
    """

    def __init__(self, count: int, cores: Sequence[int], memory: int) -> None:
        self._count, self._arguments = count, (tuple(cores), memory)
        self._threads = ThreadPoolExecutor(count)
        self._change = threading.Lock()
        self._running: set[Future[Any]] = set()
        self._pool: ProcessPool | None = None

    def start(self) -> None:
        with self._change:
            self._pool = self._fresh()

    def stop(self) -> None:
        with self._change:
            pool, self._pool = self._pool, None
            assert pool
            pool.stop()  # type: ignore[no-untyped-call]
            for future in list(self._running):
                future.cancel()
        self._threads.shutdown(cancel_futures=True)
        pool.join()

    def restart(self) -> None:
        assert self._pool
        self._replace(self._pool)

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Do `work` in the next free thread."""
        return self._threads.submit(work, *arguments)

    def call(self, function: Callable[..., T], arguments: tuple[Any, ...], timeout: float) -> T:
        """Call `function` in a process and wait for it.

        Raises:
            TimeoutError: it took too long and its process was killed.
            ProcessExpired: its process died.
            WorkerDied: processes die before they do anything.
        """
        for _ in range(_STARTS):
            # With `stop` in between, nobody would ever cancel what was just scheduled.
            with self._change:
                pool = self._pool
                if pool is None:
                    raise RuntimeError("the pool is closed")
                future = (
                    pool.schedule(function, arguments, timeout=timeout) if pool.active else None
                )
                if future is not None:
                    self._running.add(future)
            if future is None:
                self._replace(pool)
                continue
            try:
                return future.result()
            except BrokenProcessPool:
                self._replace(pool)
            finally:
                self._running.discard(future)
        raise WorkerDied(f"worker processes end as soon as they start, {_STARTS} times in a row")

    def _replace(self, pool: ProcessPool) -> None:
        with self._change:
            if self._pool is pool:
                pool.stop()  # type: ignore[no-untyped-call]
                pool.join()
                self._pool = self._fresh()

    def _fresh(self) -> ProcessPool:
        # Ctrl-C goes to the whole group, and ending a run in order is the parent's business.
        # What the pool starts from here, threads and processes, inherits the blocked signal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pool = ProcessPool(
                max_workers=self._count,
                initializer=worker.enter,
                initargs=self._arguments,
                context=Spawn(),
            )
            assert pool.active  # asking starts the processes
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pool


def _obituary(death: ProcessExpired) -> Result:
    code = death.exitcode or 0
    if code < 0:
        names = {int(s): s.name for s in signal.Signals}
        return Result(Outcome.RUNTIME, f"killed by {names.get(-code, f'signal {-code}')}")
    if worker.STRAY <= code < worker.STRAY + len(STRAYS):
        return Result(Outcome.CORRECTNESS, STRAYS[code - worker.STRAY])
    return Result(Outcome.RUNTIME, f"ended its process with code {code}")

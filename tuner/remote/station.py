"""The other machine's side of `fleet`: a sandbox that measures the work it receives."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace

from distributed import Worker, WorkerPlugin, get_worker
from distributed.core import connect

from fastrun.kernels.core.attention import parse_problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.machine.probe import MachineReport, probe
from fastrun.tuner.measure.job import Compiled, Job, Result
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.records.environment import Environment, toolchain

CONNECT_SECONDS = 10.0  # for a scheduler to answer, and for the first worker to connect

NAME = "fastrun"


@dataclass(frozen=True)
class Station:
    """A worker's description of itself; `threads` is the number that it gives to a trial."""

    cpu: Cpu
    threads: int
    toolchain: str
    report: MachineReport

    @property
    def kind(self) -> str:
        """The kind of machine with LLVM and generator: work is for workers of the same kind."""
        return f"{self.cpu.fingerprint}, {self.toolchain}"


@dataclass(frozen=True)
class Work:
    """Jobs for one worker, of the run called `run`.

    With `rounds` they race. A race of a higher `restart` than the last one gets a fresh process.
    """

    run: str
    jobs: tuple[Job, ...]
    rounds: int = 0
    seed: int = 0
    drop_every: int = 0
    restart: int = 0


def serve(address: str, threads: int, tell: Callable[[Station], None]) -> None:
    """Measure for the clients of a scheduler until it ends; calls `tell` when connected.

    Raises:
        ConnectionError: there is no scheduler.
        ValueError: there are more threads than cores.
        KeyboardInterrupt: by SIGINT, after leaving the scheduler.
    """
    station = Station(Cpu.host(), threads, toolchain(), probe())
    with Measurer(threads) as measurer:
        if not asyncio.run(_serve(address, BenchPlugin(station, measurer), tell)):
            raise KeyboardInterrupt


def measure(work: Work) -> tuple[Environment, list[Result]]:
    """Do a piece of work. This is called in a worker."""
    bench: BenchPlugin = get_worker().plugins[NAME]
    return bench.measure(work)


class BenchPlugin(WorkerPlugin):  # type: ignore[misc]
    """A worker's measurer."""

    name = NAME

    def __init__(self, station: Station, measurer: Measurer) -> None:
        self.station, self._measurer = station, measurer
        self._run, self._restart = "", 0
        self._environment = Environment.host()

    def measure(self, work: Work) -> tuple[Environment, list[Result]]:
        """Compile, check and time jobs here; the results are in the order of the jobs."""
        if work.run != self._run:
            self._measurer.forget()
            self._run, self._restart, self._environment = work.run, 0, Environment.host()
        if work.restart > self._restart:
            self._restart = work.restart
            self._measurer.sandbox.restart()
        problems = [parse_problem(job.program.problem) for job in work.jobs]
        making = [
            self._measurer.compile(problem, job.program.schedule, job.program.code)
            for problem, job in zip(problems, work.jobs, strict=True)
        ]
        made = [future.result() for future in making]
        jobs = [
            replace(job, program=program, operands=self._measurer.operands(problem))
            for problem, job, program in zip(problems, work.jobs, made, strict=True)
            if isinstance(program, Compiled)
        ]
        timed = iter(self._time(jobs, work))
        results = [next(timed) if isinstance(one, Compiled) else one for one in made]
        for job in jobs:
            job.program.discard()
        return self._environment, results

    def _time(self, jobs: list[Job], work: Work) -> list[Result]:
        sandbox = self._measurer.sandbox
        if work.rounds and jobs:
            return sandbox.race(jobs, work.rounds, work.seed, work.drop_every).result()
        return sandbox.submit_all(jobs).result()


async def _serve(address: str, bench: BenchPlugin, tell: Callable[[Station], None]) -> bool:
    """Work until the scheduler ends (true) or SIGINT comes."""
    await reach(address)
    station = bench.station
    worker = await Worker(
        address,
        nthreads=1,
        resources={station.kind: station.threads},
        plugins=(bench,),
        memory_limit=0,
        silence_logs=logging.WARNING,
    )
    # An exception of a signal handler could end any of the worker's own tasks.
    interrupted = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupted.set)
    tell(station)
    finished = asyncio.create_task(worker.finished())
    waiting = asyncio.create_task(interrupted.wait())
    await asyncio.wait((finished, waiting), return_when=asyncio.FIRST_COMPLETED)
    # A trial that still runs ends with its sandbox.
    await worker.close(executor_wait=False)
    return not interrupted.is_set()


async def reach(address: str) -> None:
    """Check that there is a scheduler, since clients and workers fail late and with long traces."""
    try:
        comm = await connect(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no scheduler answers at {address}: start one with `dask scheduler`, whose output "
            "names its address"
        ) from error
    await comm.close()

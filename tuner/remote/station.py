"""What runs on the other machine: a sandbox that measures what it is sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from distributed import Worker, WorkerPlugin, get_worker
from distributed.core import connect

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.machine.probe import MachineReport, probe
from fastrun.tuner.measure.job import Compiled, Job, Result
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.records.environment import Environment, toolchain

# Seconds for a scheduler to answer and for the first worker to be there.
CONNECT_SECONDS = 10.0


NAME = "fastrun"


@dataclass(frozen=True)
class Station:
    """What a worker says of itself; `threads` is how many it can give to a candidate."""

    cpu: Cpu
    threads: int
    toolchain: str
    report: MachineReport

    @property
    def kind(self) -> str:
        """What a worker must be for a candidate: a kind of machine, and our LLVM and generator."""
        return f"{self.cpu.fingerprint}, {self.toolchain}"


@dataclass(frozen=True)
class Work:
    """Candidates for one worker, of the run called `run`.

    With `rounds` they race, after `restart` in a process that no race of another number has used.
    """

    run: str
    jobs: tuple[Job, ...]
    rounds: int = 0
    seed: int = 0
    drop_every: int = 0
    restart: int = 0


def serve(address: str, threads: int, tell: Callable[[Station], None]) -> None:
    """Measure for whoever asks by way of the scheduler, until that ends; `tell` when it begins.

    Raises:
        ConnectionError: there is no scheduler.
        ValueError: more threads than cores.
    """
    station = Station(Cpu.host(), threads, toolchain(), probe())
    with Measurer(threads) as measurer:
        asyncio.run(_serve(address, BenchPlugin(station, measurer), tell))


def measure(work: Work) -> tuple[Environment, list[Result]]:
    """Do a piece of work; called in a worker."""
    bench: BenchPlugin = get_worker().plugins[NAME]
    return bench.measure(work)


class BenchPlugin(WorkerPlugin):  # type: ignore[misc]
    """What a worker measures with."""

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
        problems = [ConvProblem.parse(job.program.problem) for job in work.jobs]
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


async def _serve(address: str, bench: BenchPlugin, tell: Callable[[Station], None]) -> None:
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
    tell(station)
    try:
        await worker.finished()
    finally:
        await worker.close()


async def reach(address: str) -> None:
    """Make sure that there is a scheduler: clients and workers fail late and at length."""
    try:
        comm = await connect(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no scheduler answers at {address}: start one with `dask scheduler`, whose output "
            "names its address"
        ) from error
    await comm.close()

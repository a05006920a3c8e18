"""More than one machine: candidates are compiled here and measured by workers elsewhere.

A scheduler of dask.distributed stands between; only this file imports it. A worker says what kind
of machine it is on and takes work made for that kind only, one piece at a time, in a sandbox of its
own. What travels is machine code: operands and packed weights are large, and made by the worker.
Whoever reaches the scheduler can run code on all of these machines, so keep it to a network of
your own.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from distributed import Client, KilledWorker, Worker, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError
from distributed.core import connect

from kernels.core.cpu import Cpu
from kernels.core.problem import ConvProblem
from tuner.cores import Cores
from tuner.environment import Environment, toolchain
from tuner.job import Compiled, Job, Limits, Result
from tuner.machine import MachineReport, probe
from tuner.measurer import Measurer
from tuner.operands import Operands
from tuner.record import Outcome
from tuner.sandbox import Compiler

# Seconds for a scheduler to answer and for the first worker to be there.
_PATIENCE = 10.0
# Pieces of work on their way to each worker, so that none waits for the next.
_AHEAD = 2
_NAME = "fastrun"


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
    rung: int = 0
    restart: int = 0


class Fleet(Measurer):
    """A measurer whose sandboxes are those of all workers of one kind of machine.

    `address` is the scheduler's. Where workers of several kinds are connected, `machine` says which
    by its fingerprint or the beginning of it. A worker that dies costs its candidate another try.
    A context, for `fast_run`; `report` says what the machines can do.

    Raises:
        ConnectionError: there is no scheduler, or no worker that can do this.
    """

    def __init__(
        self,
        address: str,
        threads: int = 1,
        regime: str = "hot",
        limits: Limits | None = None,
        machine: str | None = None,
    ) -> None:
        # In a thread of its own: a notebook's has a loop that is running already.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _reach(address)).result()
        self._client = Client(address, timeout=_PATIENCE, set_as_default=False)
        try:
            stations = _stations(self._client, address)
            station = choose(list(stations.values()), threads, machine)
        except ConnectionError:
            self._client.close()
            raise
        self.report = station.report
        self.width = _AHEAD * sum(s.kind == station.kind for s in stations.values())
        ours = Cores((), sorted(os.sched_getaffinity(0)))
        super().__init__(threads, regime, limits, cores=ours, cpu=station.cpu)
        self._remote = _Remote(self._client, {station.kind: threads}, self.width, self.run)

    def _open(self, stack: ExitStack) -> None:
        stack.callback(self._client.close)
        self.compiler = stack.enter_context(Compiler(self.cores, self.cpu, self.limits))
        self.sandbox = stack.enter_context(self._remote)

    def operands(self, problem: ConvProblem) -> Operands:
        """Those that each worker makes for itself."""
        return Operands(str(problem))

    def environments(self) -> Iterator[Environment]:
        """Those of workers that have answered since this was asked last."""
        while self._remote.news:
            yield self._remote.news.pop()


def choose(stations: Sequence[Station], threads: int, machine: str | None = None) -> Station:
    """One of those that can measure candidates on so many threads; all of its kind can help.

    Raises:
        ConnectionError: none can, or `machine` has to say on which kind of machine.
    """
    ours = [s for s in stations if s.toolchain == toolchain()]
    if not ours:
        theirs = ", ".join(sorted({s.toolchain for s in stations}))
        raise ConnectionError(
            f"the workers have {theirs}, here is {toolchain()}: install the same version everywhere"
        )
    named = [s for s in ours if s.cpu.fingerprint.startswith(machine or "")]
    kinds = {s.cpu.fingerprint: s.cpu.model for s in named or ours}
    if len(kinds) > 1 or not named:
        raise ConnectionError(
            f"name one kind of machine with --machine: {', '.join(map(' '.join, kinds.items()))}"
        )
    able = [s for s in named if s.threads >= threads]
    if not able:
        raise ConnectionError(
            f"no worker gives {threads} threads to a candidate: start some with "
            f"--threads-per-trial {threads}"
        )
    return able[0]


def serve(address: str, threads: int, tell: Callable[[Station], None]) -> None:
    """Measure for whoever asks by way of the scheduler, until that ends; `tell` when it begins.

    Raises:
        ConnectionError: there is no scheduler.
        ValueError: more threads than cores.
    """
    station = Station(Cpu.host(), threads, toolchain(), probe())
    with Measurer(threads) as measurer:
        asyncio.run(_serve(address, _Bench(station, measurer), tell))


def measure(work: Work) -> tuple[Environment, list[Result]]:
    """Do a piece of work; called in a worker."""
    bench: _Bench = get_worker().plugins[_NAME]
    return bench.measure(work)


class _Remote:
    """The sandboxes of all workers that have what `needed` says, behind the interface of one."""

    def __init__(self, client: Client, needed: Mapping[str, int], width: int, run: str) -> None:
        self.news: list[Environment] = []
        self._client, self._needed, self._run = client, dict(needed), run
        self._waiting = ThreadPoolExecutor(width)
        self._told = set[Environment]()
        self._restarts = 0

    def __enter__(self) -> _Remote:
        return self

    def __exit__(self, *_: object) -> None:
        # Who waits for an answer hears that there will be none when the client closes.
        self._waiting.shutdown(wait=False, cancel_futures=True)

    def submit_all(self, jobs: Sequence[Job]) -> Future[list[Result]]:
        return self._waiting.submit(self._ask, Work(self._run, tuple(jobs)))

    def race(
        self, jobs: Sequence[Job], rounds: int, seed: int = 0, rung: int = 0
    ) -> Future[list[Result]]:
        work = Work(self._run, tuple(jobs), rounds, seed, rung, self._restarts)
        return self._waiting.submit(self._ask, work)

    def restart(self) -> None:
        self._restarts += 1

    def _ask(self, work: Work) -> list[Result]:
        asked = self._client.submit(measure, work, resources=self._needed, pure=False)
        answer: tuple[Environment, list[Result]]
        try:
            answer = asked.result()
        except KilledWorker as death:
            reason = f"{death.allowed_failures + 1} workers died of it"
            return [Result(Outcome.RUNTIME, reason)] * len(work.jobs)
        except FutureCancelledError as error:
            raise ConnectionError(
                "the scheduler is gone; what was measured until then is stored"
            ) from error
        environment, results = answer
        if environment not in self._told:
            self._told.add(environment)
            self.news.append(environment)
        return results


class _Bench(WorkerPlugin):  # type: ignore[misc]
    """What a worker measures with."""

    name = _NAME

    def __init__(self, station: Station, measurer: Measurer) -> None:
        self.station, self._measurer = station, measurer
        self._run, self._restart = "", 0
        self._environment = Environment.host()

    def measure(self, work: Work) -> tuple[Environment, list[Result]]:
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
            return sandbox.race(jobs, work.rounds, work.seed, work.rung).result()
        return sandbox.submit_all(jobs).result()


async def _serve(address: str, bench: _Bench, tell: Callable[[Station], None]) -> None:
    await _reach(address)
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


async def _reach(address: str) -> None:
    """Make sure that there is a scheduler: clients and workers fail late and at length."""
    try:
        comm = await connect(address, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no scheduler answers at {address}: start one with `dask scheduler`, whose output "
            "names its address"
        ) from error
    await comm.close()


def _stations(client: Client, address: str) -> dict[str, Station]:
    """What the workers that are connected now say of themselves, by address."""
    with suppress(TimeoutError):
        client.wait_for_workers(1, timeout=_PATIENCE)
    found: dict[str, Station] = client.run(_describe, on_error="ignore")
    if not found:
        raise ConnectionError(
            f"no worker is connected to {address}: start `fastrun worker {address}` on each machine"
        )
    return found


def _describe(dask_worker: Worker) -> Station:
    bench: _Bench = dask_worker.plugins[_NAME]
    return bench.station

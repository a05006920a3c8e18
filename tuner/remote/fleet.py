"""Several machines: schedules are compiled here and measured by workers on other machines.

They communicate through a scheduler of dask.distributed. A worker reports its kind of machine and
takes work for that kind only, one piece at a time, in its own sandbox. Only machine code is sent.
Operands and packed weights are large, so each worker makes its own. Every client of the scheduler
can run code on all these machines: keep it inside a trusted network.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress

from distributed import Client, KilledWorker, Worker
from distributed.client import FutureCancelledError

from fastrun.kernels.core.attention import Problem
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.job import Job, ProcessLimits, Result
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.measure.operands import Operands
from fastrun.tuner.measure.sandbox import Compiler
from fastrun.tuner.records.environment import Environment, toolchain
from fastrun.tuner.records.record import Outcome
from fastrun.tuner.remote.station import (
    CONNECT_SECONDS,
    NAME,
    BenchPlugin,
    Station,
    Work,
    measure,
    reach,
)

# Pieces of work sent to each worker in advance, so that no worker has to wait.
_AHEAD = 2


class Fleet(Measurer):
    """A measurer that uses the sandboxes of all workers of one kind of machine.

    `address` is that of the scheduler. If workers of several kinds are connected, `machine` selects
    one by the beginning of its CPU fingerprint. If a worker dies, another one repeats its work.
    A context manager, for `fast_run`. `report` has the measured properties of the machines.

    Raises:
        ConnectionError: there is no scheduler, or no suitable worker.
    """

    def __init__(
        self,
        address: str,
        threads: int = 1,
        regime: str = "hot",
        limits: ProcessLimits | None = None,
        machine: str | None = None,
    ) -> None:
        # In its own thread, because that of a notebook already runs an event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, reach(address)).result()
        self._client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
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

    def operands(self, problem: Problem) -> Operands:
        """Operands without files: each worker makes its own."""
        return Operands(str(problem))

    def environments(self) -> Iterator[Environment]:
        """The environments of workers that answered for the first time since the last call."""
        while self._remote.new:
            yield self._remote.new.pop()


def choose(stations: Sequence[Station], threads: int, machine: str | None = None) -> Station:
    """A station that can measure kernels on `threads` threads. It stands for all of its kind.

    Raises:
        ConnectionError: there is none, or `machine` must select a kind of machine.
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
            f"no worker gives {threads} threads to a trial: start some with "
            f"--threads-per-trial {threads}"
        )
    return able[0]


class _Remote:
    """The sandboxes of all workers with the resources `needed`, behind the interface of one."""

    def __init__(self, client: Client, needed: Mapping[str, int], width: int, run: str) -> None:
        self.new: list[Environment] = []
        self._client, self._needed, self._run = client, dict(needed), run
        self._waiting = ThreadPoolExecutor(width)
        self._known = set[Environment]()
        self._restarts = 0

    def __enter__(self) -> _Remote:
        return self

    def __exit__(self, *_: object) -> None:
        # Threads that wait for an answer get an error when the client closes.
        self._waiting.shutdown(wait=False, cancel_futures=True)

    def submit_all(self, jobs: Sequence[Job]) -> Future[list[Result]]:
        return self._waiting.submit(self._ask, Work(self._run, tuple(jobs)))

    def race(
        self, jobs: Sequence[Job], rounds: int, seed: int = 0, drop_every: int = 0
    ) -> Future[list[Result]]:
        work = Work(self._run, tuple(jobs), rounds, seed, drop_every, self._restarts)
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
                "the scheduler is gone; all measurements until then are stored"
            ) from error
        environment, results = answer
        if environment not in self._known:
            self._known.add(environment)
            self.new.append(environment)
        return results


def _stations(client: Client, address: str) -> dict[str, Station]:
    """The stations of all connected workers, by address."""
    with suppress(TimeoutError):
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    found: dict[str, Station] = client.run(_describe, on_error="ignore")
    if not found:
        raise ConnectionError(
            f"no worker is connected to {address}: start `fastrun worker {address}` on each machine"
        )
    return found


def _describe(dask_worker: Worker) -> Station:
    bench: BenchPlugin = dask_worker.plugins[NAME]
    return bench.station

"""More than one machine: candidates are compiled here and measured by workers elsewhere.

A scheduler of dask.distributed stands between; only this file imports it. A worker says what kind
of machine it is on and takes work made for that kind only, one piece at a time, in a sandbox of its
own. What travels is machine code: operands and packed weights are large, and made by the worker.
Whoever reaches the scheduler can run code on all of these machines, so keep it to a network of
your own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress

from distributed import Client, KilledWorker, Worker
from distributed.client import FutureCancelledError

from fastrun.kernels.core.problem import ConvProblem
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

# Pieces of work on their way to each worker, so that none waits for the next.
_AHEAD = 2


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
        limits: ProcessLimits | None = None,
        machine: str | None = None,
    ) -> None:
        # In a thread of its own: a notebook's has a loop that is running already.
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
                "the scheduler is gone; what was measured until then is stored"
            ) from error
        environment, results = answer
        if environment not in self._told:
            self._told.add(environment)
            self.news.append(environment)
        return results


def _stations(client: Client, address: str) -> dict[str, Station]:
    """What the workers that are connected now say of themselves, by address."""
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

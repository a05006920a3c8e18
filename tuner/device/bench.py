"""Checks and times jobs on a device: the sandbox of another machine.

Each job, and each race, has a child of its own there. A kernel that crashes or hangs ends its
child, which is an outcome. If the connection is lost, the runner is started again and the work is
repeated once.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.native.elf import ElfError
from fastrun.tuner.device.canary import DeviceCanary
from fastrun.tuner.device.channel import LostError
from fastrun.tuner.device.cooling import wait_while_hot
from fastrun.tuner.device.crew import Crew
from fastrun.tuner.device.reach import Start
from fastrun.tuner.device.session import Child, Session, kernel_library
from fastrun.tuner.device.subject import Subject
from fastrun.tuner.measure.climate import Sensors
from fastrun.tuner.measure.guarded import STRAYS
from fastrun.tuner.measure.job import Job, Result
from fastrun.tuner.measure.process import Died, Garbled
from fastrun.tuner.measure.sandbox import death_result
from fastrun.tuner.measure.timing import Block, Timing, interleave, measure
from fastrun.tuner.records.record import Outcome

# How often the time of one request is the most that a child may take altogether.
_ASKED = 100

Work = Callable[[Session], list[Result]]


class DeviceBench:
    """What `tuner.measure.sandbox.Sandbox` is here, on a device. A context manager.

    `cores` are those of the device that run threads. `turn` is entered while something is timed;
    where the device is this machine, nothing else may then run.
    """

    def __init__(
        self,
        start: Start,
        session: Session,
        cpu: Cpu,
        cores: Sequence[int],
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._start, self._session = start, session
        self._cpu, self._cores, self._turn = cpu, tuple(cores), turn
        self._one = ThreadPoolExecutor(1)
        self._restarts = 0
        self._canary = DeviceCanary(session, cpu)
        self._sensors = Sensors.of(cores[0], session.text)

    def __enter__(self) -> DeviceBench:
        return self

    def __exit__(self, *_: object) -> None:
        self._one.shutdown(wait=True, cancel_futures=True)
        self._session.close()

    def submit_all(self, jobs: Sequence[Job]) -> Future[list[Result]]:
        """Check and time the jobs one after the other."""
        return self._one.submit(self._all, list(jobs))

    def race(
        self, jobs: Sequence[Job], rounds: int, seed: int = 0, drop_every: int = 0
    ) -> Future[list[Result]]:
        """Check all jobs in one child, then time the correct ones in interleaved rounds.

        If the child dies, that is the result of all.
        """
        return self._one.submit(self._race, list(jobs), rounds, seed, drop_every)

    def restart(self) -> None:
        """Run later jobs at other addresses."""
        self._restarts += 1

    def forget(self) -> None:
        """Remove files of operands from the device."""
        self._one.submit(lambda: self._session.forget()).result()

    def _all(self, jobs: list[Job]) -> list[Result]:
        return [
            self._safely(lambda s, job=job: self._trial(s, job), 1)[0]  # type: ignore[misc]
            for job in jobs
        ]

    def _race(self, jobs: list[Job], rounds: int, seed: int, drop_every: int) -> list[Result]:
        return self._safely(lambda s: self._raced(s, jobs, rounds, seed, drop_every), len(jobs))

    def _safely(self, work: Work, count: int) -> list[Result]:
        """Results of work on the device; whatever happens to its child or line is an outcome."""
        lost = ""
        for _ in range(2):
            try:
                with self._turn():
                    return work(self._session)
            except LostError as error:
                lost = str(error)
                self._reconnect()
            except TimeoutError as error:
                return [Result(Outcome.TIMEOUT, str(error))] * count
            except (Died, Garbled) as death:
                return [death_result(death)] * count
            except MemoryError as error:
                return [Result(Outcome.RUNTIME, f"out of memory: {error}")] * count
            except ElfError as error:
                return [Result(Outcome.COMPILE, f"cannot be linked: {error}")] * count
        return [Result(Outcome.RUNTIME, f"the connection was lost twice: {lost}")] * count

    def _reconnect(self) -> None:
        self._session.channel.close()
        try:
            self._session = Session(self._start)
        except (OSError, MemoryError) as error:
            raise ConnectionError(
                f"the device is gone: {error}; all measurements until then are stored"
            ) from error
        self._canary = DeviceCanary(self._session, self._cpu)

    def _trial(self, session: Session, job: Job) -> list[Result]:
        crew = self._crew(session, job.timeout(), job.limits.memory)
        draw = random.Random(self._restarts)
        subject = Subject(job, crew, self._cpu, kernel_library(session.machine), draw)
        crew.confine()
        result, first = self._checked(subject)
        if result.outcome != Outcome.CORRECT:
            return [result]
        begin = time.perf_counter()
        noise = self._canary.deviation(crew.child)
        timing = measure(subject.calls, job.protocol, first, job.incumbent, crew.look)
        noise = max(noise, self._canary.deviation(crew.child))
        return [_finish(subject, result, timing, noise, begin)]

    def _raced(
        self, session: Session, jobs: list[Job], rounds: int, seed: int, drop_every: int
    ) -> list[Result]:
        timeout = max(job.timeout(rounds) for job in jobs)
        crew = self._crew(session, timeout, sum(job.limits.memory for job in jobs))
        draw = random.Random(self._restarts)
        library = kernel_library(session.machine)
        subjects = [Subject(job, crew, self._cpu, library, draw) for job in jobs]
        crew.confine()
        checked = [self._checked(subject) for subject in subjects]
        results = [result for result, _ in checked]
        correct = [i for i, r in enumerate(results) if r.outcome == Outcome.CORRECT]
        slow = {i: checked[i][1] for i in correct if checked[i][1] >= jobs[i].protocol.slow}
        racing = [i for i in correct if i not in slow]
        begin = time.perf_counter()
        noise = self._canary.deviation(crew.child)
        calls = [subjects[i].calls for i in racing]
        timings = interleave(calls, rounds, jobs[0].protocol, seed, drop_every, crew.look)
        noise = max(noise, self._canary.deviation(crew.child))
        climate = crew.look().climate
        timed = dict(zip(racing, timings, strict=True))
        timed |= {i: Timing((Block(s, climate),), 1, complete=False) for i, s in slow.items()}
        for i in correct:
            results[i] = _finish(subjects[i], results[i], timed[i], noise, begin)
        return results

    def _crew(self, session: Session, timeout: float, memory: int) -> Crew:
        """The threads of a child that may have so much memory, and not all that the device has.

        A hot device cools first.
        """
        wait_while_hot(self._sensors, session.text)
        child = Child(session, timeout)
        free = re.search(r"MemAvailable:\s+(\d+) kB", session.text("/proc/meminfo"))
        if free:
            memory = min(memory, int(free[1]) * 1024 * 9 // 10)
        child.limit(memory, math.ceil(_ASKED * timeout * len(self._cores)))
        return Crew(child, self._cores, self._sensors)

    @staticmethod
    def _checked(subject: Subject) -> tuple[Result, float]:
        """The result so far, and the seconds of the first call."""
        begin = time.perf_counter()
        first = subject.calls(1)
        found = subject.stray()
        if found is not None:
            return Result(Outcome.CORRECTNESS, STRAYS[found]), first
        errors, wrong = subject.check()
        outcome = Outcome.CORRECTNESS if wrong else Outcome.CORRECT
        spent = {"verify": time.perf_counter() - begin}
        return Result(outcome, wrong or "", errors=errors, seconds=spent), first


def _finish(subject: Subject, result: Result, timing: Timing, noise: float, begin: float) -> Result:
    """The whole result, if the timed calls gave the same output as the checked one."""
    spent = {**result.seconds, "measure": time.perf_counter() - begin}
    found = subject.stray()
    if found is None:
        found = subject.spoilt()
    if found is not None:
        return replace(result, outcome=Outcome.CORRECTNESS, reason=STRAYS[found], seconds=spent)
    return result.timed(timing, noise, spent, stable=subject.stable())

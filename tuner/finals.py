"""Races of schedules against each other: what is measured here is what counts.

Screened values are biased, since the lowest of many noisy numbers is low partly by luck. So the
leaders race each other in interleaved rounds, and the fastest of them the heuristic's schedule and
the naive loop, in fresh processes: where memory and code come to lie is luck as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from kernels.core.problem import ConvProblem
from tuner.job import Compiled, Result
from tuner.measurer import DISTURBED, RETRIES, Measurer, is_baseline
from tuner.record import ALONE, Outcome, Record
from tuner.timing import Protocol

# The schedules, as text, that race each other for each problem.
Contestants = Mapping[ConvProblem, Sequence[str]]

Key = tuple[ConvProblem, str]


@dataclass(frozen=True)
class Format:
    """How contestants race: in `rounds` interleaved rounds in each of so many processes.

    Where there are several, they are fresh ones. A block lasts `block` seconds. After every `rung`
    rounds, where that is given, those leave that are surely slower than the fastest. A baseline
    that takes `slow` seconds is called once a process. `stage` is that of the records.
    """

    stage: str
    processes: int
    rounds: int
    rung: int = 0
    block: float = 10e-3
    slow: float = Protocol.slow

    def protocol(self, schedule: str) -> Protocol:
        """How a schedule is timed: a slow baseline by one call a process, all else in full."""
        slow = self.slow if is_baseline(schedule) else math.inf
        return Protocol(block=self.block, slow=slow)

    def __str__(self) -> str:
        per = f"{self.processes} processes" if self.processes > 1 else "one process"
        leave = f", the surely slower leave every {self.rung}" if self.rung else ""
        return f"{self.rounds} rounds in {per}, blocks of {1e3 * self.block:g} ms{leave}"


RACE = Format("race", processes=1, rounds=10, rung=5, block=5e-3)
FINAL = Format("final", processes=3, rounds=5)


def race(
    measurer: Measurer,
    contestants: Contestants,
    form: Format,
    go_on: Callable[[], bool] = lambda: True,
) -> Iterator[Record]:
    """Race each problem's schedules, and say how each of them did.

    `go_on` is asked after every race; no process is begun after it has said no. An interrupt is
    passed on when what was measured until then has been said.
    """
    compiling = {
        (problem, schedule): measurer.compile(problem, schedule)
        for problem, schedules in contestants.items()
        for schedule in schedules
    }
    programs: dict[Key, Compiled] = {}
    results: dict[Key, Result] = {}
    interrupted: KeyboardInterrupt | None = None
    try:
        for key, future in compiling.items():
            made = future.result()
            if isinstance(made, Compiled):
                programs[key] = made
            else:
                results[key] = made
        for process in range(form.processes):
            if form.processes > 1:
                measurer.sandbox.restart()
            willing = True
            # All at once: there may be several machines to race on.
            heats = [
                _Heat(measurer, {k: v for k, v in programs.items() if k[0] == p}, form, process)
                for p in contestants
            ]
            for heat in heats:
                for key, result in heat.results().items():
                    placed = replace(result, processes=(process,) * len(result.samples))
                    results[key] = _joined(results.get(key), placed)
                willing = go_on()
            if not willing:
                break
    except KeyboardInterrupt as error:
        interrupted = error
    for key, result in results.items():
        program = programs.get(key)
        if program:
            program.discard()
        yield measurer.record(*key, result, program, form.stage)
    if interrupted:
        raise interrupted


class _Heat:
    """One problem's race in one process, begun; repeated while the canary says it is disturbed.

    A process that dies takes all contestants along, so each runs alone then: those that fail alone
    have failed, and the others race without them. If nobody fails alone, that is how all did.
    """

    def __init__(
        self, measurer: Measurer, racing: Mapping[Key, Compiled], form: Format, process: int
    ) -> None:
        self._measurer, self._racing, self._form, self._process = measurer, racing, form, process
        self._jobs = [
            measurer.job(problem, program, protocol=form.protocol(schedule))
            for (problem, schedule), program in racing.items()
        ]
        self._begun = self._begin() if racing else None

    def _begin(self) -> Future[list[Result]]:
        form = self._form
        return self._measurer.sandbox.race(self._jobs, form.rounds, self._process, form.rung)

    def results(self) -> dict[Key, Result]:
        """How each contestant did, when the race is over."""
        if self._begun is None:
            return {}
        found = self._begun.result()
        for _ in range(RETRIES):
            if not any(result.noise and result.noise > DISTURBED for result in found):
                break
            found = self._begin().result()
        if len(found) == 1 or any(result.outcome == Outcome.CORRECT for result in found):
            found = [replace(r, rounds=tuple(range(len(r.samples)))) for r in found]
            return dict(zip(self._racing, found, strict=True))
        alone = self._measurer.sandbox.submit_all(self._jobs).result()
        alone = [replace(r, rounds=(ALONE,) * len(r.samples)) for r in alone]
        results = dict(zip(self._racing, alone, strict=True))
        failed = {key: r for key, r in results.items() if r.outcome != Outcome.CORRECT}
        if not failed:
            return results
        fit = {key: program for key, program in self._racing.items() if key not in failed}
        return failed | _Heat(self._measurer, fit, self._form, self._process).results()


def _joined(before: Result | None, result: Result) -> Result:
    """The samples of several processes as one result; a failure in any of them is the outcome."""
    if before is None or before.outcome != Outcome.CORRECT:
        return before or result
    if result.outcome != Outcome.CORRECT:
        return result
    return replace(
        result,
        samples=before.samples + result.samples,
        processes=before.processes + result.processes,
        rounds=before.rounds + result.rounds,
        noise=max(before.noise or 0.0, result.noise or 0.0),
        complete=before.complete and result.complete,
    )

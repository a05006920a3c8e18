"""Races of schedules against each other: what is measured here is what counts.

Screened values are biased, since the lowest of many noisy numbers is low partly by luck. So the
leaders race each other in interleaved rounds, and the fastest of them the heuristic's schedule and
the naive loop, in fresh processes: where memory and code come to lie is luck as well.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.job import Compiled, Result
from fastrun.tuner.measure.measurer import DISTURBED, Measurer, is_baseline
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.records.record import ALONE, Outcome, Record, Stage

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

    stage: Stage
    processes: int
    rounds: int
    rung: int = 0
    block: float = 10e-3
    slow: float = Protocol.slow

    @property
    def samples(self) -> int:
        """Of each contestant, in all rounds of all processes."""
        return self.processes * self.rounds

    def protocol(self, schedule: str) -> Protocol:
        """How a schedule is timed: a slow baseline by one call a process, all else in full."""
        slow = self.slow if is_baseline(schedule) else math.inf
        return Protocol(block=self.block, slow=slow)

    def __str__(self) -> str:
        per = f"{self.processes} processes" if self.processes > 1 else "one process"
        leave = f", the surely slower leave every {self.rung}" if self.rung else ""
        return f"{self.rounds} rounds in {per}, blocks of {1e3 * self.block:g} ms{leave}"

    def called_once(self, schedule: str, seconds: float) -> bool:
        """Whether a schedule that takes so many seconds is called once a process."""
        return seconds >= self.protocol(schedule).slow


RACE = Format(Stage.RACE, processes=1, rounds=10, rung=5, block=5e-3)
FINAL = Format(Stage.FINAL, processes=5, rounds=4)


def race(
    measurer: Measurer,
    contestants: Contestants,
    form: Format,
    left: Callable[[], float] = lambda: math.inf,
) -> Iterator[Record]:
    """Race each problem's schedules, and say how each of them did.

    A race that the canary calls disturbed is repeated after those of the other problems, and the
    quieter one counts. `left`
    gives the seconds that remain. When there are none, no race is begun; nor is a process whose
    predecessor took longer than that. Who was not raced at all has no record. An interrupt is
    passed on when what was measured until then has been said.
    """
    compiling: dict[Key, Future[Compiled | Result]] = {}
    programs: dict[Key, Compiled] = {}
    results: dict[Key, dict[int, Result]] = {}  # by process
    interrupted: KeyboardInterrupt | None = None
    try:
        for problem in contestants:
            if left() > 0:
                for schedule in contestants[problem]:
                    compiling[problem, schedule] = measurer.compile(problem, schedule)
        for key, future in compiling.items():
            if left() <= 0 and future.cancel():
                continue
            made = future.result()
            if isinstance(made, Compiled):
                programs[key] = made
            else:
                results[key] = {0: made}
        longest = 0.0
        for process in range(form.processes):
            begin = left()
            if begin <= longest:
                break
            if form.processes > 1:
                measurer.sandbox.restart()
            disturbed = []
            for heat in _heats(measurer, contestants, programs, form, process, left):
                for key, result in heat.results().items():
                    results.setdefault(key, {})[process] = result
                if heat.noise > DISTURBED:
                    disturbed.append(heat)
            for heat in disturbed:
                before = heat.noise
                if left() > 0:
                    again = heat.again()
                    if heat.noise < before:
                        for key, result in again.items():
                            results[key][process] = result
            longest = max(longest, begin - left()) if begin < math.inf else 0.0
    except KeyboardInterrupt as error:
        interrupted = error
    for program in programs.values():
        program.discard()
    for key, found in results.items():
        result = functools.reduce(_joined, found.values())
        yield measurer.record(*key, result, programs.get(key), form.stage)
    if interrupted:
        raise interrupted


def _heats(
    measurer: Measurer,
    contestants: Contestants,
    programs: Mapping[Key, Compiled],
    form: Format,
    process: int,
    left: Callable[[], float],
) -> Iterator[_Heat]:
    """One process's race of every problem, while time is left; as many at once as can be."""
    begun = deque[_Heat]()
    for problem in contestants:
        if left() <= 0:
            break
        racing = {key: program for key, program in programs.items() if key[0] == problem}
        begun.append(_Heat(measurer, racing, form, process))
        if len(begun) >= measurer.width:
            yield begun.popleft()
    yield from begun


class _Heat:
    """One problem's race in one process, begun; `noise` is the canary's word on it.

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
        self.noise = 0.0

    def _begin(self) -> Future[list[Result]]:
        form = self._form
        return self._measurer.sandbox.race(self._jobs, form.rounds, self._process, form.rung)

    def again(self) -> dict[Key, Result]:
        """How each contestant does in another race."""
        self._begun = self._begin()
        return self.results()

    def results(self) -> dict[Key, Result]:
        """How each contestant did, when the race is over."""
        if self._begun is None:
            return {}
        found = self._begun.result()
        self.noise = max((result.noise or 0.0 for result in found), default=0.0)
        if len(found) == 1 or any(result.outcome == Outcome.CORRECT for result in found):
            found = [self._placed(r, range(len(r.samples))) for r in found]
            return dict(zip(self._racing, found, strict=True))
        alone = self._measurer.sandbox.submit_all(self._jobs).result()
        alone = [self._placed(r, [ALONE] * len(r.samples)) for r in alone]
        results = dict(zip(self._racing, alone, strict=True))
        failed = {key: r for key, r in results.items() if r.outcome != Outcome.CORRECT}
        if not failed:
            return results
        fit = {key: program for key, program in self._racing.items() if key not in failed}
        return failed | _Heat(self._measurer, fit, self._form, self._process).results()

    def _placed(self, result: Result, rounds: Sequence[int]) -> Result:
        processes = (self._process,) * len(rounds)
        return replace(result, processes=processes, rounds=tuple(rounds))


def _joined(before: Result, result: Result) -> Result:
    """The samples of several processes as one result; a failure in any of them is the outcome."""
    if before.outcome != Outcome.CORRECT:
        return before
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

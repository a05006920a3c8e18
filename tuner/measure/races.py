"""Races of schedules, whose times decide and are published.

Screened times are biased: the lowest of many noisy numbers is low partly by luck. So the fastest
schedules race each other in interleaved rounds. The winners race the heuristic's schedule and the
naive loop in several fresh processes, because the addresses of memory and code influence times and
differ from process to process. (Dropping slow entries early is the F-Race of algorithm
configuration: Birattari et al., GECCO 2002.)
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from fastrun.kernels.core.attention import Problem
from fastrun.tuner.measure.job import Compiled, Result
from fastrun.tuner.measure.measurer import DISTURBED, Measurer, is_baseline
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.records.record import ALONE, Outcome, Record, Stage

# The texts of the schedules that race each other, by problem.
Entries = Mapping[Problem, Sequence[str]]

Key = tuple[Problem, str]


# Disturbed races are repeated if they are at most this share, or a single one.
_REPEATED = 0.4


@dataclass(frozen=True)
class Format:
    """The form of a race: `rounds` interleaved rounds in each of `processes` processes.

    Several processes are fresh ones. A block lasts `block` seconds. After every `drop_every` rounds
    (0: never) entries leave that are surely slower than the fastest. A baseline whose call takes
    `slow` seconds or more is called once in each process. `stage` is that of the records.
    """

    stage: Stage
    processes: int
    rounds: int
    drop_every: int = 0
    block: float = 10e-3
    slow: float = Protocol.slow

    @property
    def samples(self) -> int:
        """The number of samples of each entry, in all rounds of all processes."""
        return self.processes * self.rounds

    def protocol(self, schedule: str) -> Protocol:
        """How a schedule is timed: a slow baseline by one call per process, others in full."""
        slow = self.slow if is_baseline(schedule) else math.inf
        return Protocol(block=self.block, slow=slow)

    def __str__(self) -> str:
        per = f"{self.processes} processes" if self.processes > 1 else "one process"
        leave = f", the surely slower leave every {self.drop_every}" if self.drop_every else ""
        return f"{self.rounds} rounds in {per}, blocks of {1e3 * self.block:g} ms{leave}"

    def called_once(self, schedule: str, seconds: float) -> bool:
        """Whether a schedule whose call takes `seconds` is called once per process."""
        return seconds >= self.protocol(schedule).slow


RACE = Format(Stage.RACE, processes=1, rounds=10, drop_every=5, block=5e-3)
FINAL = Format(Stage.FINAL, processes=5, rounds=4)


def race(
    measurer: Measurer,
    entries: Entries,
    form: Format,
    left: Callable[[], float] = lambda: math.inf,
) -> Iterator[Record]:
    """Race the schedules of each problem; a record of each entry that was raced.

    A race that was disturbed by the canary's reading is repeated after those of the other problems,
    unless many were; the quieter of the two counts. `left` returns the seconds that remain. No race
    begins when none are left, and no process begins when the one before took longer than that.
    KeyboardInterrupt is raised after the records of what was measured until then.
    """
    compiling: dict[Key, Future[Compiled | Result]] = {}
    programs: dict[Key, Compiled] = {}
    results: dict[Key, dict[int, Result]] = {}  # by process
    interrupted: KeyboardInterrupt | None = None
    try:
        for problem in entries:
            if left() > 0:
                for schedule in entries[problem]:
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
            disturbed, races = [], 0
            for begun in _process_races(measurer, entries, programs, form, process, left):
                races += 1
                for key, result in begun.results().items():
                    results.setdefault(key, {})[process] = result
                if begun.noise > DISTURBED:
                    disturbed.append(begun)
            # Where most races are disturbed, the next ones would be too.
            for begun in disturbed if len(disturbed) <= max(1, _REPEATED * races) else ():
                before = begun.noise
                if left() > 0:
                    again = begun.again()
                    if begun.noise < before:
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


def _process_races(
    measurer: Measurer,
    entries: Entries,
    programs: Mapping[Key, Compiled],
    form: Format,
    process: int,
    left: Callable[[], float],
) -> Iterator[_ProcessRace]:
    """The races of all problems in one process, while time is left; `width` of them at once."""
    begun = deque[_ProcessRace]()
    for problem in entries:
        if left() <= 0:
            break
        racing = {key: program for key, program in programs.items() if key[0] == problem}
        begun.append(_ProcessRace(measurer, racing, form, process))
        if len(begun) >= measurer.width:
            yield begun.popleft()
    yield from begun


class _ProcessRace:
    """The race of one problem in one process, already begun; `noise` is the canary's reading.

    If the process dies, each entry runs alone. Entries that fail alone have failed, and the others
    race again without them. If no entry fails alone, the times measured alone are the results.
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
        return self._measurer.sandbox.race(self._jobs, form.rounds, self._process, form.drop_every)

    def again(self) -> dict[Key, Result]:
        """The results of another race of the same entries."""
        self._begun = self._begin()
        return self.results()

    def results(self) -> dict[Key, Result]:
        """The result of each entry; waits for the end of the race."""
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
        return failed | _ProcessRace(self._measurer, fit, self._form, self._process).results()

    def _placed(self, result: Result, rounds: Sequence[int]) -> Result:
        processes = (self._process,) * len(rounds)
        return replace(result, processes=processes, rounds=tuple(rounds))


def _joined(before: Result, result: Result) -> Result:
    """One result of the samples of several processes; a failure in any of them is the outcome."""
    if before.outcome != Outcome.CORRECT:
        return before
    if result.outcome != Outcome.CORRECT:
        return result
    samples = before.samples + result.samples
    clocks, degrees = before.clocks + result.clocks, before.temperatures + result.temperatures
    return replace(
        result,
        samples=samples,
        processes=before.processes + result.processes,
        rounds=before.rounds + result.rounds,
        clocks=clocks if len(clocks) == len(samples) else (),
        temperatures=degrees if len(degrees) == len(samples) else (),
        noise=max(before.noise or 0.0, result.noise or 0.0),
        complete=before.complete and result.complete,
    )

"""Races of schedules against each other: what is measured here is what counts.

Screened values are biased, since the lowest of many noisy numbers is low partly by luck. So the
leaders race each other in interleaved rounds, and the fastest of them the heuristic's schedule and
the naive loop, in fresh processes: where memory and code come to lie is luck as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kernels.core.problem import ConvProblem
from tuner.job import Compiled, Result
from tuner.measurer import DISTURBED, RETRIES, Measurer, is_baseline
from tuner.record import Outcome, Record
from tuner.timing import Protocol

# The schedules, as text, that race each other for each problem.
Contestants = Mapping[ConvProblem, Sequence[str]]

Key = tuple[ConvProblem, str]

# Every contestant runs in all rounds; only a baseline may be slow, and is called once a process.
_PROTOCOL, _BASELINE = Protocol(slow=math.inf), Protocol()


@dataclass(frozen=True)
class Format:
    """How contestants race: in `rounds` interleaved rounds in each of so many fresh processes.

    After every `rung` rounds, where that is given, those leave that are surely slower than the
    fastest. `stage` is that of the records.
    """

    stage: str
    processes: int
    rounds: int
    rung: int = 0


RACE = Format("race", processes=1, rounds=15, rung=5)
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
            measurer.sandbox.restart()
            willing = True
            for problem in contestants:
                racing = {key: program for key, program in programs.items() if key[0] == problem}
                for key, result in _heat(measurer, racing, form, process).items():
                    results[key] = _joined(results.get(key), result)
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


def _heat(
    measurer: Measurer, racing: Mapping[Key, Compiled], form: Format, process: int
) -> dict[Key, Result]:
    """One problem's race in one process, repeated while the canary says that others disturb it.

    A process that dies takes all contestants along, so each runs alone then: those that fail alone
    have failed, and the others race without them.
    """
    if not racing:
        return {}
    jobs = [
        measurer.job(problem, program, protocol=_BASELINE if is_baseline(schedule) else _PROTOCOL)
        for (problem, schedule), program in racing.items()
    ]
    for _ in range(1 + RETRIES):
        found = measurer.sandbox.race(jobs, form.rounds, process, form.rung).result()
        if not any(result.noise and result.noise > DISTURBED for result in found):
            break
    if len(jobs) == 1 or any(result.outcome == Outcome.CORRECT for result in found):
        return dict(zip(racing, found, strict=True))
    alone = measurer.sandbox.submit_all(jobs).result()
    failed = {
        key: result
        for key, result in zip(racing, alone, strict=True)
        if result.outcome != Outcome.CORRECT
    }
    fit = {key: program for key, program in racing.items() if key not in failed}
    return failed | (_heat(measurer, fit, form, process) if failed else {})


def _joined(before: Result | None, result: Result) -> Result:
    """The samples of several processes as one result; a failure in any of them is the outcome."""
    if before is None or before.outcome != Outcome.CORRECT:
        return before or result
    if result.outcome != Outcome.CORRECT:
        return result
    return replace(
        result,
        samples=before.samples + result.samples,
        noise=max(before.noise or 0.0, result.noise or 0.0),
        complete=before.complete and result.complete,
    )

"""Fast-Run: measure candidates for a network's problems within a budget, and keep every outcome.

A pipeline: while one candidate is verified and timed in the sandbox, the next ones compile on the
other cores. The last part of the budget goes to races of each problem's leaders (`tuner.finals`);
what those measure is what counts.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from kernels.core.problem import ConvProblem
from tuner.database import Database
from tuner.environment import toolchain
from tuner.finals import FINAL, RACE, race
from tuner.job import Compiled, Job, Limits, Result
from tuner.measurer import DISTURBED, RETRIES, Measurer
from tuner.nearest import first_guesses
from tuner.provenance import Run
from tuner.record import PROTOCOL, Outcome, Record
from tuner.search import Candidate, ProblemSearch, next_search, related
from tuner.timing import Protocol

# What is this close to a problem's leader, and so many of them, race; the fastest go to the final.
NEAR, RACERS, FINALISTS = 1.3, 8, 3
# The naive loop races in the final too, unless a call of it takes more than these seconds.
PATIENCE = 0.5
# Of the seconds of a budget this share goes to races, or so many to start their processes and for
# each problem, but at most half.
FINAL_SHARE, FINAL_START, FINAL_SECONDS = 0.2, 4.0, 1.5

# Outcomes between two rounds of telling related problems who leads.
GOSSIP = 25


@dataclass(frozen=True)
class Budget:
    """When to stop: after `seconds` of wall time, or `trials` per problem. None is no limit.

    `worth` ends the search of a problem that has levelled off: its best has fallen by less than
    this share while its trials doubled.
    """

    seconds: float | None = None
    trials: int | None = None
    worth: float | None = None


@dataclass(frozen=True)
class Progress:
    """What an observer is told after every outcome.

    `stage` is search, final or done; `record` the newest outcome; `left` the seconds of the
    budget that remain.
    """

    stage: str
    searches: Sequence[ProblemSearch]
    record: Record | None
    trials: int
    elapsed: float
    left: float | None


@dataclass(frozen=True)
class Summary:
    """What a run did. `trials` counts outcomes of this run, `known` those it found stored.

    `settled` are the problems whose search ended before its budget: they had levelled off, or
    nothing was left to try.
    """

    run: str
    searches: Sequence[ProblemSearch]
    trials: int
    known: int
    seconds: float
    interrupted: bool
    settled: Sequence[ConvProblem] = ()


def fast_run(
    problems: Sequence[tuple[ConvProblem, int]],
    database: Database,
    budget: Budget,
    *,
    threads: int = 1,
    regime: str = "hot",
    also: Sequence[str] = (),
    seed: int = 0,
    algorithms: Sequence[str] = (),
    max_error: float | None = None,
    max_workspace: int | None = None,
    sampler: str = "gp",
    protocol: Protocol | None = None,
    limits: Limits | None = None,
    measurer: Measurer | None = None,
    observe: Callable[[Progress], None] | None = None,
    command: str = "",
) -> Summary:
    """Tune distinct `problems`, each with the number of times its network has it.

    The search goes by `regime`; the final is raced in it and in the regimes `also` given.

    Outcomes that the database holds for the machine, toolchain, thread count and regime are
    learnt from and not measured again. Candidates that err by more than `max_error`, an rms
    relative to the output's, or take more than `max_workspace` bytes are recorded but cannot win.
    `algorithms` restricts the search as `ProblemSearch` says, `sampler` is one of
    `tuner.propose.SAMPLERS`, `protocol` says how candidates are screened. `measurer`, a
    `tuner.fleet.Fleet`, measures on other machines, under the conditions it was made with; else it
    is this machine with `threads`, `regime` and `limits`. `command` is what the records are said to
    come from, this call if it is empty.

    An interrupt (Ctrl-C) ends the run in order: all outcomes so far are stored, and the summary
    says so.

    Raises:
        ValueError: more threads than cores.
        ConnectionError: the scheduler of the other machines is gone.
        ScheduleError: `algorithms` names a field or value that there is not.
        DatabaseError: an outcome cannot be stored.
    """
    with measurer or Measurer(threads, regime, limits) as measurer:
        run = _Run(database, budget, measurer, protocol, also, observe)
        run.prepare(problems, seed, algorithms, max_error, max_workspace, sampler)
        call = (
            f"fast_run({len(problems)} problems, {budget}, threads={measurer.threads}, "
            f"regime={measurer.regime!r}, also={[*also]}, seed={seed}, "
            f"algorithms={[*algorithms]}, max_error={max_error}, max_workspace={max_workspace}, "
            f"sampler={sampler!r})"
        )
        timing = f"screen: {protocol or Protocol()}; race: {RACE}; final: {FINAL}"
        database.add_run(
            Run(
                name=measurer.run,
                command=command or call,
                sampler=sampler,
                seed=seed,
                timing=timing,
            )
        )
        try:
            run.search()
            run.finals()
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        return run.summary(interrupted)


@dataclass
class _Run:
    """One run's searches and clock."""

    database: Database
    budget: Budget
    measurer: Measurer
    protocol: Protocol | None
    also: Sequence[str]
    observe: Callable[[Progress], None] | None
    searches: list[ProblemSearch] = field(default_factory=list)
    trials: int = 0
    known: int = 0

    def __post_init__(self) -> None:
        self._begin = time.monotonic()
        self._proposed = Counter[ConvProblem]()
        # Where compiling must pause for timing, it pauses for several candidates at once.
        cores = self.measurer.cores
        self._batch = 2 * len(cores.compiling) if cores.shared else 1
        self._ahead = self._batch + 2 * len(cores.compiling)

    def prepare(
        self,
        problems: Sequence[tuple[ConvProblem, int]],
        seed: int,
        algorithms: Sequence[str],
        max_error: float | None,
        max_workspace: int | None,
        sampler: str,
    ) -> None:
        """Make the searches and teach them what the database knows."""
        measurer = self.measurer
        where = measurer.cpu.fingerprint, measurer.threads, measurer.regime
        best = self.database.best_all(*where)
        winners = {ConvProblem.parse(text): record.schedule for text, record in best.items()}
        for problem, occurrences in problems:
            search = ProblemSearch(
                problem,
                occurrences,
                measurer.cpu,
                seed,
                algorithms,
                max_error,
                max_workspace,
                sampler,
            )
            stored = self.database.records(
                problem=str(problem),
                machine=measurer.cpu.fingerprint,
                threads=measurer.threads,
                regime=measurer.regime,
                toolchain=toolchain(),
                protocol=PROTOCOL,
            )
            self.known += search.replay(stored)
            ranking = self.database.ranking(problem, *where)
            for schedule in first_guesses(problem, ranking, winners, measurer.cpu):
                search.suggest(schedule)
            self.searches.append(search)

    def search(self) -> None:
        """Spend the budget: propose, compile, measure and remember, several at a time."""
        compiling: dict[Future[Compiled | Result], Candidate] = {}
        ready: deque[tuple[Candidate, Compiled]] = deque()
        timing: dict[Future[list[Result]], list[tuple[Candidate, Compiled]]] = {}
        retries = Counter[Candidate]()
        while True:
            while len(compiling) + len(ready) < self._ahead:
                candidate = self._propose()
                if candidate is None:
                    break
                compiled = self.measurer.compile(candidate.problem, candidate.text)
                compiling[compiled] = candidate
            while len(timing) < self.measurer.width and (
                len(ready) >= self._batch or (ready and not compiling)
            ):
                batch = [ready.popleft() for _ in range(min(len(ready), self._batch))]
                timed = self.measurer.sandbox.submit_all([self._job(*b) for b in batch])
                timing[timed] = batch
            futures: list[Future[Any]] = [*compiling, *timing]
            if not futures:
                return
            wait(futures, return_when=FIRST_COMPLETED)
            for timed in [f for f in timing if f.done()]:
                for (candidate, program), result in zip(
                    timing.pop(timed), timed.result(), strict=True
                ):
                    once = candidate.template.baseline  # it is no candidate, and the final has it
                    if not once and _disturbed(result) and retries[candidate] < RETRIES:
                        retries[candidate] += 1
                        ready.append((candidate, program))
                        continue
                    program.discard()
                    self._remember(candidate, result, program)
            for compiled in [f for f in compiling if f.done()]:
                candidate, outcome = compiling.pop(compiled), compiled.result()
                if isinstance(outcome, Compiled):
                    ready.append((candidate, outcome))
                else:
                    self._remember(candidate, outcome, None)

    def finals(self) -> None:
        """Race each problem's leaders, then the fastest with the heuristic and the naive loop."""
        leaders = {s.problem: self._leaders(s) for s in self.searches}
        raced: dict[ConvProblem, list[Record]] = {problem: [] for problem in leaders}
        for record in race(self.measurer, leaders, RACE, self._in_time):
            self._store(record)
            raced[ConvProblem.parse(record.problem)].append(record)
        finalists = {s.problem: _finalists(s, raced[s.problem]) for s in self.searches}
        for record in race(self.measurer, finalists, FINAL, self._in_time):
            self._store(record)
        for regime in self.also:
            self.measurer.regime = regime
            for record in race(self.measurer, finalists, FINAL, self._in_time):
                self.database.add(record)
        self._tell("done", None)

    def summary(self, interrupted: bool) -> Summary:
        """What has been done so far."""
        return Summary(
            self.measurer.run,
            self.searches,
            self.trials,
            self.known,
            self._elapsed,
            interrupted,
            [s.problem for s in self.searches if s.exhausted or self._levelled_off(s)],
        )

    def _propose(self) -> Candidate | None:
        """The next candidate of the whole run, or None when the budget or the spaces are spent."""
        seconds, trials = self.budget.seconds, self.budget.trials
        if seconds is not None and self._elapsed > seconds - self._reserve(seconds):
            return None
        live = [
            s
            for s in self.searches
            if (trials is None or self._proposed[s.problem] < trials) and not self._levelled_off(s)
        ]
        while search := next_search(live):
            candidate = search.propose()
            if candidate is not None:
                self._proposed[search.problem] += 1
                return candidate
            live.remove(search)
        return None

    def _levelled_off(self, search: ProblemSearch) -> bool:
        return self.budget.worth is not None and search.levelled_off(self.budget.worth)

    def _leaders(self, search: ProblemSearch) -> list[str]:
        """The fastest schedules so far that are worth racing against each other."""
        ranked = sorted(search.measured.values(), key=lambda r: r.seconds_per_call)
        near = [
            r.schedule
            for r in ranked
            if not r.baseline and r.seconds_per_call <= NEAR * search.best
        ]
        return near[:RACERS]

    def _job(self, candidate: Candidate, program: Compiled) -> Job:
        search = self._search_of(candidate.problem)
        # A baseline is slow by nature and is measured whatever the incumbent.
        incumbent = math.inf if candidate.template.baseline else search.best
        return self.measurer.job(candidate.problem, program, incumbent, self.protocol)

    def _remember(self, candidate: Candidate, result: Result, program: Compiled | None) -> None:
        """Store the outcome of a trial, learn from it, pass it on."""
        self.trials += 1
        self._store(self.measurer.record(candidate.problem, candidate.text, result, program))
        if self.trials % GOSSIP == 0:
            self._gossip()

    def _store(self, record: Record) -> None:
        for environment in self.measurer.environments():
            self.database.add_environment(environment, self.measurer.run)
        self.database.add(record)
        self._search_of(ConvProblem.parse(record.problem)).tell(record)
        self._tell("search" if record.stage == "screen" else "final", record)

    def _search_of(self, problem: ConvProblem) -> ProblemSearch:
        return next(s for s in self.searches if s.problem == problem)

    def _reserve(self, seconds: float) -> float:
        """The seconds of the budget that races should take."""
        races = max(FINAL_SHARE * seconds, FINAL_START + FINAL_SECONDS * len(self.searches))
        return min(races * (1 + len(self.also)), 0.5 * seconds)

    def _in_time(self) -> bool:
        """Whether another process of races is affordable: a short budget gets fewer."""
        self._tell("final", None)
        return not self.budget.seconds or self._elapsed <= self.budget.seconds

    def _gossip(self) -> None:
        """Let related problems try each other's leaders, and layouts too."""
        for search in self.searches:
            search.spread()
        for a, b in permutations(self.searches, 2):
            if a.leader is not None and related(a.problem, b.problem):
                b.suggest(a.leader.schedule)

    def _tell(self, stage: str, record: Record | None) -> None:
        if self.observe is not None:
            seconds = self.budget.seconds
            left = None if seconds is None else max(0.0, seconds - self._elapsed)
            self.observe(Progress(stage, self.searches, record, self.trials, self._elapsed, left))

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._begin


def _disturbed(result: Result) -> bool:
    """Whether the samples tell of the machine rather than of the candidate."""
    spread = max(result.samples) / min(result.samples) - 1 if result.samples else 0.0
    return max(result.noise or 0.0, spread) > DISTURBED


def _finalists(search: ProblemSearch, raced: Sequence[Record]) -> list[str]:
    """The fastest of those raced, the heuristic's and, unless it is too slow, the naive loop."""
    correct = [r for r in raced if r.outcome == Outcome.CORRECT]
    fastest = sorted(correct, key=lambda r: r.seconds_per_call)[:FINALISTS]
    naive = [r.schedule for r in search.measured.values() if r.algorithm == "naive"]
    patient = naive if search.naive <= PATIENCE else []
    return list(dict.fromkeys([*(r.schedule for r in fastest), search.heuristic, *patient]))

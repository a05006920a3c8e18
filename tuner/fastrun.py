"""Fast-Run: measure candidates for a network's problems within a budget, and keep every outcome.

A pipeline: while one candidate is verified and timed in the sandbox, the next ones compile on the
other cores. The last part of the budget goes to a final race of each problem's leaders against
its heuristic, in fresh processes; what that measures is what counts.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import permutations
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from kernels.core.cpu import Cpu
from kernels.core.problem import ConvProblem
from tuner.cores import Cores
from tuner.database import Database
from tuner.environment import Environment, toolchain
from tuner.job import Compiled, Job, Limits, Result
from tuner.operands import Operands, Scratch
from tuner.record import Outcome, Record
from tuner.sandbox import Compiler, Sandbox
from tuner.search import Candidate, ProblemSearch, next_search, related

FINALISTS = 3
FINAL_PROCESSES = 3
FINAL_ROUNDS = 5
FINAL_SHARE = 0.15  # of the seconds of a budget

# Outcomes between two rounds of telling related problems who leads.
GOSSIP = 25

# A candidate is measured again, so often at most, when the canary or its own samples say that
# somebody else used the core meanwhile.
RETRIES = 2
DISTURBED = 0.25


@dataclass(frozen=True)
class Budget:
    """When to stop: after `seconds` of wall time, or `trials` per problem. None is no limit."""

    seconds: float | None = None
    trials: int | None = None


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
    """What a run did. `trials` counts outcomes of this run, `known` those it found stored."""

    run: str
    searches: Sequence[ProblemSearch]
    trials: int
    known: int
    seconds: float
    interrupted: bool


def fast_run(
    problems: Sequence[tuple[ConvProblem, int]],
    database: Database,
    budget: Budget,
    *,
    threads: int = 1,
    regime: str = "hot",
    seed: int = 0,
    algorithms: Sequence[str] = (),
    max_error: float = math.inf,
    limits: Limits | None = None,
    observe: Callable[[Progress], None] | None = None,
) -> Summary:
    """Tune distinct `problems`, each with the number of times its network has it.

    Outcomes that the database holds for this machine, toolchain, thread count and regime are
    learnt from and not measured again. Candidates that err by more than `max_error`, an rms
    relative to the output's, are recorded but cannot win.

    An interrupt (Ctrl-C) ends the run in order: all outcomes so far are stored, and the summary
    says so.

    Raises:
        ValueError: more threads than cores.
        DatabaseError: an outcome cannot be stored.
    """
    with _Run(database, budget, threads, regime, limits or Limits(), observe) as run:
        run.prepare(problems, seed, algorithms, max_error)
        try:
            run.search()
            run.finals()
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        return run.summary(interrupted)


@dataclass
class _Run:
    """One run's processes, searches and clock."""

    database: Database
    budget: Budget
    threads: int
    regime: str
    limits: Limits
    observe: Callable[[Progress], None] | None
    name: str = field(default_factory=lambda: uuid4().hex[:12])
    searches: list[ProblemSearch] = field(default_factory=list)
    trials: int = 0
    known: int = 0

    def __enter__(self) -> Self:
        self._begin = time.monotonic()
        self._cpu, self._toolchain = Cpu.host(), toolchain()
        self._operands: dict[ConvProblem, Operands] = {}
        self._proposed = Counter[ConvProblem]()
        cores = Cores.split(self.threads)
        with ExitStack() as stack:
            stack.enter_context(cores.keep_clear())
            self._scratch = stack.enter_context(Scratch())
            self._compiler = stack.enter_context(Compiler(cores, self._cpu, self.limits))
            self._sandbox = stack.enter_context(Sandbox(cores, self.limits))
            self._stack = stack.pop_all()
        # Where compiling must pause for timing, it pauses for several candidates at once.
        self._batch = 2 * len(cores.compiling) if cores.shared else 1
        self._ahead = self._batch + 2 * len(cores.compiling)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def prepare(
        self,
        problems: Sequence[tuple[ConvProblem, int]],
        seed: int,
        algorithms: Sequence[str],
        max_error: float,
    ) -> None:
        """Make the searches and teach them what the database knows."""
        self.database.add_environment(Environment.host(), self.name)
        for problem, occurrences in problems:
            search = ProblemSearch(problem, occurrences, self._cpu, seed, algorithms, max_error)
            stored = self.database.records(
                problem=str(problem),
                machine=self._cpu.fingerprint,
                threads=self.threads,
                regime=self.regime,
                toolchain=self._toolchain,
            )
            self.known += search.replay(stored)
            self.searches.append(search)

    def search(self) -> None:
        """Spend the budget: propose, compile, measure and remember, several at a time."""
        compiling: dict[Future[Compiled | Result], Candidate] = {}
        ready: deque[tuple[Candidate, Compiled]] = deque()
        timing: tuple[Future[list[Result]], list[tuple[Candidate, Compiled]]] | None = None
        retries = Counter[Candidate]()
        while True:
            while len(compiling) + len(ready) < self._ahead:
                candidate = self._propose()
                if candidate is None:
                    break
                operands = self._operands_of(candidate.problem)
                compiling[self._compiler.submit(operands, candidate.text)] = candidate
            if timing is None and ready and (len(ready) >= self._batch or not compiling):
                batch = [ready.popleft() for _ in range(min(len(ready), self._batch))]
                timing = self._sandbox.submit_all([self._job(*b) for b in batch]), batch
            if not compiling and timing is None:
                return
            futures: list[Future[Any]] = [*compiling, *([timing[0]] if timing else [])]
            wait(futures, return_when=FIRST_COMPLETED)
            if timing is not None and timing[0].done():
                done, timing = timing, None
                for (candidate, program), result in zip(done[1], done[0].result(), strict=True):
                    if _disturbed(result) and retries[candidate] < RETRIES:
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
        """Race each problem's leaders against its heuristic, in fresh processes."""
        programs: dict[Candidate, Compiled] = {}
        compiling = {
            candidate: self._compiler.submit(self._operands_of(search.problem), candidate.text)
            for search in self.searches
            for candidate in self._finalists(search)
        }
        for candidate, future in compiling.items():
            compiled = future.result()
            if isinstance(compiled, Compiled):
                programs[candidate] = compiled
        results: dict[Candidate, Result] = {}
        for process in range(FINAL_PROCESSES):
            if process and self.budget.seconds and self._elapsed > self.budget.seconds:
                break  # a budget that is short of time gets fewer processes, not more time
            self._sandbox.restart()
            for search in self.searches:
                racing = [c for c in programs if c.problem == search.problem]
                if not racing:
                    continue
                jobs = [replace(self._job(c, programs[c]), incumbent=search.best) for c in racing]
                found = self._sandbox.race(jobs, FINAL_ROUNDS, seed=process).result()
                for candidate, result in zip(racing, found, strict=True):
                    results[candidate] = _joined(results.get(candidate), result)
                self._tell("final", None)
        for candidate, result in results.items():
            programs[candidate].discard()
            self._remember(candidate, result, programs[candidate], stage="final")
        self._tell("done", None)

    def summary(self, interrupted: bool) -> Summary:
        """What has been done so far."""
        return Summary(
            self.name, self.searches, self.trials, self.known, self._elapsed, interrupted
        )

    def _propose(self) -> Candidate | None:
        """The next candidate of the whole run, or None when the budget or the spaces are spent."""
        seconds, trials = self.budget.seconds, self.budget.trials
        if seconds is not None and self._elapsed > (1 - FINAL_SHARE) * seconds:
            return None
        live = [s for s in self.searches if trials is None or self._proposed[s.problem] < trials]
        while search := next_search(live):
            candidate = search.propose()
            if candidate is not None:
                self._proposed[search.problem] += 1
                return candidate
            live.remove(search)
        return None

    def _finalists(self, search: ProblemSearch) -> list[Candidate]:
        """The fastest schedules so far, and the heuristic's."""
        ranked = sorted(search.measured.values(), key=lambda r: r.seconds_per_call)
        texts = [r.schedule for r in ranked if not r.baseline][:FINALISTS]
        return [search.candidate(text) for text in dict.fromkeys([*texts, search.heuristic])]

    def _operands_of(self, problem: ConvProblem) -> Operands:
        if problem not in self._operands:
            self._operands[problem] = Operands.make(problem, self._scratch)
        return self._operands[problem]

    def _job(self, candidate: Candidate, program: Compiled) -> Job:
        search = next(s for s in self.searches if s.problem == candidate.problem)
        # A baseline is slow by nature and is measured whatever the incumbent.
        incumbent = math.inf if candidate.template.baseline else search.best
        return Job(
            program,
            self._operands[candidate.problem],
            threads=self.threads,
            regime=self.regime,
            limits=self.limits,
            incumbent=incumbent,
        )

    def _remember(
        self,
        candidate: Candidate,
        result: Result,
        program: Compiled | None,
        stage: str = "screen",
    ) -> None:
        """Store an outcome, learn from it, pass it on."""
        record = Record(
            problem=str(candidate.problem),
            schedule=candidate.text,
            machine=self._cpu.fingerprint,
            threads=self.threads,
            regime=self.regime,
            toolchain=self._toolchain,
            ir_hash=program.ir_hash if program else "",
            outcome=result.outcome,
            reason=result.reason,
            stage=stage,
            samples=result.samples,
            errors=result.errors,
            workspace=program.workspace(self.threads) if program else 0,
            seconds={**(program.seconds if program else {}), **result.seconds},
            baseline=candidate.template.baseline,
            heuristic=candidate.heuristic,
            run=self.name,
            noise=result.noise,
        )
        self.database.add(record)
        search = next(s for s in self.searches if s.problem == candidate.problem)
        search.tell(record)
        self.trials += stage == "screen"
        if stage == "screen" and self.trials % GOSSIP == 0:
            self._gossip()
        self._tell("search" if stage == "screen" else stage, record)

    def _gossip(self) -> None:
        """Let related problems try each other's leaders."""
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


def _joined(before: Result | None, result: Result) -> Result:
    """The samples of several processes as one result; a failure in any of them is the outcome."""
    if before is None or before.outcome != Outcome.CORRECT:
        return before or result
    if result.outcome != Outcome.CORRECT:
        return result
    noise = max(before.noise or 0.0, result.noise or 0.0)
    return replace(result, samples=before.samples + result.samples, noise=noise)

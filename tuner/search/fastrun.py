"""Fast-Run: search for the fastest schedules of a network's problems, and keep every outcome.

While one trial is checked and timed in the sandbox, the schedules of the next ones compile on the
other cores. In the last part of the budget the fastest schedules of each problem race
(`tuner.measure.races`), and the times of the races count. `tuner.search.budget` says what fits.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from itertools import permutations
from time import monotonic
from typing import Any

from fastrun.kernels.core.attention import Problem, parse_problem
from fastrun.tuner.measure.job import Compiled, Job, Result
from fastrun.tuner.measure.measurer import DISTURBED, RETRIES, Measurer
from fastrun.tuner.measure.races import FINAL, RACE, Format, race
from fastrun.tuner.model.cost_model import shipped_proposals
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.provenance import Run
from fastrun.tuner.records.record import PROTOCOL, Outcome, Record, Stage
from fastrun.tuner.records.units import plural
from fastrun.tuner.search import budget as costs
from fastrun.tuner.search.budget import DECISIVE, RACES, Budget, Races
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.search.problem_search import ProblemSearch, Trial, next_search, related
from fastrun.tuner.search.progress import Progress, default_observer
from fastrun.tuner.search.sampler_choice import Sampler, sampler_name
from fastrun.tuner.search.summary import Summary
from fastrun.tuner.search.transfer import first_guesses
from fastrun.tuner.store.database import Database

# Schedules race whose time is at most this many times the best.
RACE_WITHIN = 1.3

# So many of the schedules that raced go to the final.
FINALISTS = 3

# The naive loop is in the final unless a call of it takes longer.
SLOW_BASELINE_SECONDS = 0.5

# Trials between two exchanges of incumbents among related problems.
EXCHANGE_EVERY = 25

# Schedules that the cost model proposes first for each problem.
PROPOSALS = 6

# Disturbed trials are not repeated if more than this share of so many recent ones were disturbed.
_USUAL, _RECENT = 0.4, 20

# Trials between two estimates of the time that races will need.
ESTIMATE_EVERY = 10


def fast_run(
    problems: Sequence[tuple[Problem, int]],
    database: Database,
    budget: Budget,
    *,
    sampler: Sampler = "gp",
    options: SearchOptions | None = None,
    measurer: Measurer | None = None,
    observe: Callable[[Progress], None] | None = None,
    quiet: bool = False,
    command: str = "",
) -> Summary:
    """Tune distinct `problems`, each with the number of times its network has it.

    `sampler` proposes the schedules: a name such as `gp`, or any sampler of Optuna, as
    `tuner.search.sampler_choice.make_sampler` says. `measurer` says where, on how many threads and
    in which regime trials are measured: on one thread of this machine unless it is given; it is
    used up. `observe` is called after every outcome. Without it, a line in the terminal or under
    the notebook's cell shows how far the search is, unless it is `quiet`. `command` is what the
    records are said to come from, this call if it is empty.

    What the database holds of the same conditions and toolchain is learnt and not measured again.
    An interrupt (Ctrl-C) ends the run in order: all outcomes so far are stored, and the summary
    says so.

    Raises:
        SamplerError: there is no such sampler, or it failed. Outcomes until then are stored.
        ConnectionError: the scheduler of other machines is gone.
        ScheduleError: `options.algorithms` names a field or value that there is not.
        DatabaseError: an outcome cannot be stored.
    """
    begin = monotonic()
    options = options or SearchOptions()
    if observe is None and not quiet:
        observe = default_observer(budget)
    with measurer or Measurer() as measurer:
        run = _Tuning(begin, database, budget, sampler, options, measurer, observe)
        call = (
            f"fast_run({len(problems)} problems, {budget}, {sampler_name(sampler)}, {options}, "
            f"threads={measurer.threads}, regime={measurer.regime!r})"
        )
        database.add_run(
            Run(
                name=measurer.run,
                command=command or call,
                sampler=sampler_name(sampler),
                seed=options.seed,
                timing=f"screen: {options.protocol}; race: {RACE}; final: {FINAL}",
            )
        )
        try:
            run.prepare(problems)
            run.search()
            run.finals()
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        finally:
            run.close()
        return run.summary(interrupted)


@dataclass
class _Tuning:
    """The searches and the clock of one run."""

    begin: float
    database: Database
    budget: Budget
    sampler: Sampler
    options: SearchOptions
    measurer: Measurer
    observe: Callable[[Progress], None] | None
    by_problem: dict[str, ProblemSearch] = field(default_factory=dict)
    trials: int = 0
    known: int = 0
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._slow = 1.0
        self._reserved, self._reserved_at = 0.0, 0
        self._for_baselines = costs.BASELINES * self._left
        self._proposed = Counter[Problem]()
        self._unasked = set[Problem]()  # the cost model was not asked about these yet
        self._disturbances = Disturbances()
        # Where compiling must pause for timing, it pauses for several trials at once.
        cores = self.measurer.cores
        self._batch = 2 * len(cores.compiling) if cores.shared else 1
        self._ahead = self._batch + 2 * len(cores.compiling)

    @property
    def searches(self) -> list[ProblemSearch]:
        """The search of each problem."""
        return list(self.by_problem.values())

    def prepare(self, problems: Sequence[tuple[Problem, int]]) -> None:
        """Make the searches and teach them what the database knows."""
        cpu, conditions = self.measurer.cpu, self.measurer.conditions
        threads, machine = plural(conditions.threads, "thread"), conditions.machine[:8]
        label = f"{threads}, {conditions.regime}, machine {machine}, {self.measurer.run}"
        best = self.database.best_all(conditions)
        winners = {parse_problem(text): record.schedule for text, record in best.items()}
        for problem, occurrences in problems:
            search = ProblemSearch(problem, occurrences, cpu, self.sampler, self.options, label)
            stored = self.database.records(
                problem=str(problem),
                machine=conditions.machine,
                threads=conditions.threads,
                regime=conditions.regime,
                toolchain=toolchain(),
                protocol=PROTOCOL,
            )
            self.known += search.replay(stored)
            ranking = self.database.ranking(problem, conditions)
            for schedule in first_guesses(problem, ranking, winners, cpu):
                search.suggest(schedule)
            self.by_problem[str(problem)] = search
            self._unasked.add(problem)

    def close(self) -> None:
        """Let the trials fail that were not measured."""
        for search in self.searches:
            search.close()

    def search(self) -> None:
        """Spend the budget: propose, compile, measure and remember, several at a time."""
        compiling: dict[Future[Compiled | Result], Trial] = {}
        ready: deque[tuple[Trial, Compiled]] = deque()
        timing: dict[Future[list[Result]], list[tuple[Trial, Compiled]]] = {}
        retries = Counter[Trial]()
        disturbed: dict[Trial, Result] = {}
        while True:
            if self._search_left <= 0:
                for known, program in ready:
                    if known in disturbed:  # better than nothing
                        self._remember(known, disturbed[known], program)
                _drop(compiling, ready)
            while len(compiling) + len(ready) < self._ahead:
                trial = self._propose()
                if trial is None:
                    break
                compiling[self.measurer.compile(trial.problem, trial.text)] = trial
            while len(timing) < self.measurer.width and (
                len(ready) >= self._together(ready) or (ready and not compiling)
            ):
                batch = [ready.popleft() for _ in range(min(len(ready), self._together(ready)))]
                timed = self.measurer.sandbox.submit_all([self._job(*b) for b in batch])
                timing[timed] = batch
            futures: list[Future[Any]] = [*compiling, *timing]
            if not futures:
                return
            wait(futures, _timeout(self._search_left), FIRST_COMPLETED)
            for timed in [f for f in timing if f.done()]:
                for (trial, program), result in zip(timing.pop(timed), timed.result(), strict=True):
                    once = trial.template.baseline  # it is not searched, and the final has it
                    noisy = _disturbed(result)
                    worth = not once and self._disturbances.unusual(noisy)
                    if noisy and worth and retries[trial] < RETRIES:
                        retries[trial] += 1
                        disturbed[trial] = result
                        ready.append((trial, program))
                        continue
                    program.discard()
                    self._remember(trial, result, program)
            for compiled in [f for f in compiling if f.done()]:
                trial, outcome = compiling.pop(compiled), compiled.result()
                if isinstance(outcome, Compiled):
                    ready.append((trial, outcome))
                else:
                    self._remember(trial, outcome, None)

    def finals(self) -> None:
        """Race each problem's fastest, then the best of them with the heuristic and the naive loop.

        Where time is short, the problems come first that take most of the network's time. A search
        without baselines that has no limit of time spends no longer on races than on trials.
        """
        if self.budget.seconds is None and not self.options.baselines:
            self.budget = replace(self.budget, seconds=2 * self._elapsed)
        self._say_what_was_not_begun()
        searches = sorted(
            (s for s in self.searches if s.measured),
            key=lambda s: (len(s.measured) > 1, s.occurrences * s.best if s.incumbent else 0.0),
            reverse=True,
        )
        races = self._affordable(searches)
        fastest = {s.problem: _fastest(s, races) for s in searches}
        fields = {
            p: [r.schedule for r in some] for p, some in fastest.items() if len(some) > FINALISTS
        }
        raced: dict[Problem, list[Record]] = {}
        begin = self._elapsed
        for record in race(self.measurer, fields, RACE, self._race_left):
            self._store(record)
            raced.setdefault(parse_problem(record.problem), []).append(record)
        finalists = {
            s.problem: _finalists(s, raced.get(s.problem) or fastest[s.problem], races)
            for s in searches
        }
        if not races.alone:
            finalists = {p: some for p, some in finalists.items() if len(some) > 1}
        # What made the first race take longer than expected will do so again.
        expected = self._first_cost(fastest.values())
        pace = max(1.0, (self._elapsed - begin) / expected) if expected else costs.UNKNOWN_PACE
        finalists, final = self._that_fits(finalists, races.final, pace)
        found = []
        for record in race(self.measurer, finalists, final, self._race_left):
            self._store(record)
            found.append(record)
        for regime in self.options.also:
            self.measurer.regime = regime
            for record in race(self.measurer, finalists, final, self._race_left):
                self.database.add(record)
        self._say_what_was_not_raced(races, fastest, found)
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
            self.left_out,
        )

    def _propose(self) -> Trial | None:
        """The next trial of the whole run, or None when the budget or the spaces are spent."""
        if self._search_left <= 0:
            return None
        trials = self.budget.trials
        live = [
            s
            for s in self.searches
            if (trials is None or self._proposed[s.problem] < trials)
            and not self._levelled_off(s)
            and (self._begun(s) or self._slow * costs.first_seconds(s.problem) <= self._search_left)
        ]
        while search := next_search([s for s in live if not self._begun(s)] or live):
            self._ask_the_model(search)
            trial = search.propose(self._baseline_fits)
            if trial is not None:
                self._proposed[search.problem] += 1
                return trial
            live.remove(search)
        return None

    def _ask_the_model(self, search: ProblemSearch) -> None:
        """Let the cost model propose schedules, after the first trial: that compiles meanwhile."""
        if self._begun(search) and search.problem in self._unasked:
            self._unasked.remove(search.problem)
            for schedule in shipped_proposals(search.problem, self.measurer.cpu, PROPOSALS):
                search.suggest(schedule)

    def _begun(self, search: ProblemSearch) -> bool:
        return bool(search.history or self._proposed[search.problem])

    def _baseline_fits(self, problem: Problem, algorithm: str) -> bool:
        """Whether there is time for a baseline; if so, it is set aside."""
        if not self.options.baselines:
            return False
        known = (r for s in self.searches for r in s.measured.values() if r.algorithm == algorithm)
        expected = costs.baseline_seconds(problem, known)
        if expected > min(self._for_baselines, self._search_left):
            return False
        self._for_baselines -= expected
        return True

    def _together(self, ready: Sequence[tuple[Trial, Compiled]]) -> int:
        """How many trials are timed in one turn on the cores: slow ones one at a time."""
        expected = self._search_of(ready[0][0].problem).best if ready else 0.0
        return self._batch if expected < self.options.protocol.slow else 1

    def _levelled_off(self, search: ProblemSearch) -> bool:
        return self.budget.worth is not None and search.levelled_off(self.budget.worth)

    def _affordable(self, searches: Sequence[ProblemSearch]) -> Races:
        """The fullest races that there is time for."""
        races = list(RACES)
        if not self.options.baselines:
            races = [replace(r, baselines=False, alone=False) for r in races]
        return next((r for r in races if self._race_cost(searches, r) <= self._left), RACES[-1])

    def _race_cost(self, searches: Sequence[ProblemSearch], races: Races) -> float:
        """How many seconds races should take."""
        fastest = [_fastest(s, races) for s in searches]
        finalists = {
            s.problem: _finalists(s, some, races)
            for s, some in zip(searches, fastest, strict=True)
            if races.alone or len(some) > 1
        }
        return self._first_cost(fastest) + self._final_cost(finalists, races.final)

    def _first_cost(self, fastest: Iterable[Sequence[Record]]) -> float:
        fields = [record for some in fastest if len(some) > FINALISTS for record in some]
        return costs.race_seconds(fields, RACE, self._slow) if fields else 0.0

    def _final_cost(self, finalists: Mapping[Problem, Sequence[str]], form: Format) -> float:
        measured = {p: self._search_of(p).measured for p in finalists}
        known = [measured[p][x] for p, some in finalists.items() for x in some if x in measured[p]]
        return costs.race_seconds(known, form, self._slow) * (1 + len(self.options.also))

    def _that_fits(
        self, finalists: Mapping[Problem, list[str]], form: Format, pace: float
    ) -> tuple[dict[Problem, list[str]], Format]:
        """The final for which there is time: a shorter one, then one of fewer problems.

        A final cut off before its third process would decide nothing. The first problems stay.
        """
        forms = [form, *(r.final for r in RACES if r.final.samples < form.samples)]
        for fuller in forms:
            if pace * self._final_cost(finalists, fuller) <= self._left:
                return dict(finalists), fuller
        left = dict(finalists)
        while left and pace * self._final_cost(left, forms[-1]) > self._left:
            left.popitem()
        return left, forms[-1]

    def _job(self, trial: Trial, program: Compiled) -> Job:
        # A baseline is slow by nature and is measured whatever the incumbent.
        best = math.inf if trial.template.baseline else self._search_of(trial.problem).best
        return self.measurer.job(trial.problem, program, best, self.options.protocol)

    def _remember(self, trial: Trial, result: Result, program: Compiled | None) -> None:
        """Store the outcome of a trial, learn from it, pass it on."""
        if not self.trials:
            self._slow = costs.slowness(trial.problem, self._elapsed)
        self.trials += 1
        record = self.measurer.record(trial.problem, trial.text, result, program)
        self._store(record, trial, not result.complete)
        if self.trials % EXCHANGE_EVERY == 0:
            self._exchange()

    def _store(self, record: Record, trial: Trial | None = None, given_up: bool = False) -> None:
        for environment in self.measurer.environments():
            self.database.add_environment(environment, self.measurer.run)
        self.database.add(record)
        self.by_problem[record.problem].tell(record, trial, given_up)
        self._tell("search" if record.stage == Stage.SCREEN else "final", record)

    def _search_of(self, problem: Problem) -> ProblemSearch:
        return self.by_problem[str(problem)]

    @property
    def _left(self) -> float:
        """Seconds of the budget that remain."""
        seconds = self.budget.seconds
        return math.inf if seconds is None else seconds - self._elapsed

    @property
    def _search_left(self) -> float:
        """Seconds that remain until the races should begin."""
        seconds = self.budget.seconds
        if seconds is None:
            return math.inf
        if self.trials >= self._reserved_at + ESTIMATE_EVERY:
            self._reserved_at = self.trials
            searches = [s for s in self.searches if s.incumbent]
            self._reserved = costs.MARGIN * self._race_cost(searches, DECISIVE)
        least, most = costs.RACES_LEAST * seconds, costs.RACES_MOST * seconds
        return self._left - min(max(least, self._reserved), most)

    def _race_left(self) -> float:
        self._tell("final", None)
        return self._left

    def _say_what_was_not_begun(self) -> None:
        idle = sum(not s.history for s in self.searches)
        if idle and self._left < math.inf:
            self.left_out.append(f"{idle} of {plural(len(self.searches), 'problem')}")
        slow = sum(not math.isfinite(s.naive) for s in self.searches if s.history)
        if slow and self._left < math.inf and self.options.baselines:
            self.left_out.append(f"the naive loop of {plural(slow, 'problem')}")

    def _say_what_was_not_raced(
        self,
        races: Races,
        fastest: Mapping[Problem, Sequence[Record]],
        found: Sequence[Record],
    ) -> None:
        if races.most == 0:
            self.left_out.append("races before the final")
        elif races.most < RACES[0].most:
            self.left_out.append(f"races of more than {races.most} schedules")
        raced = {parse_problem(r.problem) for r in found}
        if missing := sum(len(some) > 1 and p not in raced for p, some in fastest.items()):
            self.left_out.append(f"the final of {plural(missing, 'problem')}")
        ran = max((len(set(r.processes)) for r in found), default=FINAL.processes)
        if ran < FINAL.processes:
            lacking = f"{FINAL.processes - ran} of {FINAL.processes} processes of the final"
            self.left_out.append(lacking)

    def _exchange(self) -> None:
        """Let related problems try each other's incumbents, and each problem its other layouts."""
        for search in self.searches:
            search.spread()
        for a, b in permutations(self.searches, 2):
            if a.incumbent is not None and related(a.problem, b.problem):
                b.suggest(a.incumbent.schedule)

    def _tell(self, stage: str, record: Record | None) -> None:
        if self.observe is not None:
            left = None if self.budget.seconds is None else self._left
            self.observe(Progress(stage, self.searches, record, self.trials, self._elapsed, left))

    @property
    def _elapsed(self) -> float:
        return monotonic() - self.begin


@dataclass
class Disturbances:
    """Whether a disturbance is an accident that a repetition helps, or how the machine is now.

    With a neighbour that never rests every trial is disturbed. Repeating all of them would cost two
    thirds of the search. Their times are all too long, still tell which schedules are fast, and
    races decide.
    """

    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def unusual(self, disturbed: bool) -> bool:
        """Take note of a measurement; whether most of the recent ones were undisturbed."""
        self.recent.append(disturbed)
        return sum(self.recent) <= _USUAL * max(len(self.recent), _RECENT // 2)


def _disturbed(result: Result) -> bool:
    """Whether the samples tell of the machine rather than of the schedule."""
    spread = max(result.samples) / min(result.samples) - 1 if result.samples else 0.0
    return max(result.noise or 0.0, spread) > DISTURBED


def _fastest(search: ProblemSearch, races: Races) -> list[Record]:
    """The records of the fastest schedules so far that are worth racing against each other."""
    ranked = sorted(search.measured.values(), key=lambda r: r.seconds_per_call)
    limit = RACE_WITHIN * search.best
    near = [r for r in ranked if not r.baseline and r.seconds_per_call <= limit]
    return near[: max(races.most, FINALISTS)]


def _finalists(search: ProblemSearch, raced: Sequence[Record], races: Races) -> list[str]:
    """The fastest of those raced, the heuristic's and, unless it is too slow, the naive loop."""
    correct = [r for r in raced if r.outcome == Outcome.CORRECT]
    fastest = sorted(correct, key=lambda r: r.seconds_per_call)[:FINALISTS]
    naive = [r.schedule for r in search.measured.values() if r.algorithm == "naive"]
    baselines = naive if races.baselines and search.naive <= SLOW_BASELINE_SECONDS else []
    return list(dict.fromkeys([*(r.schedule for r in fastest), search.heuristic, *baselines]))


def _drop(
    compiling: dict[Future[Compiled | Result], Trial], ready: deque[tuple[Trial, Compiled]]
) -> None:
    """Drop the trials for which there is no time."""
    for future in compiling:
        if not future.cancel():
            future.add_done_callback(_discard)
    for _, program in ready:
        program.discard()
    compiling.clear()
    ready.clear()


def _discard(future: Future[Compiled | Result]) -> None:
    if future.exception() is None and isinstance(program := future.result(), Compiled):
        program.discard()


def _timeout(left: float) -> float | None:
    """How long to wait: until a budget is over, or for ever."""
    return left if 0 < left < math.inf else None

"""Where the next measurement should go: which problem, which algorithm, which schedule."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna import Study

from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.notebook import card
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import KernelTemplate, ScheduleError
from fastrun.kernels.registry import applicable, heuristic_choice, parse_schedule
from fastrun.search_spaces.space import space_for
from fastrun.tuner.records.record import Outcome, Record
from fastrun.tuner.records.units import ms, plural, ratio
from fastrun.tuner.search.options import OBJECTIVES, SearchOptions
from fastrun.tuner.search.sampler_choice import Sampler
from fastrun.tuner.search.study import ScheduleStudy

# Trials before a search may be said to have levelled off.
LEVEL = 40

# An algorithm this many times slower than the best is not tried in all its layouts.
SPREAD = 1.25


@dataclass(frozen=True, eq=False)
class Trial:
    """A schedule to be measured for a problem. `text` is the schedule's text form."""

    problem: Problem
    template: KernelTemplate
    schedule: Any
    text: str


@dataclass
class Arm:
    """One algorithm of one problem."""

    template: KernelTemplate
    study: ScheduleStudy
    trials: int = 0
    outcomes: int = 0
    seconds: float = 0.0  # that its outcomes took
    best: float = math.inf  # seconds per call
    exhausted: bool = False


class ProblemSearch:
    """The search for one problem: every algorithm that applies competes for its trials.

    What would run without a search comes first, then baselines, then the other algorithms'
    heuristics: a budget that ends early leaves no layer slower. After that an algorithm's share
    of the time is (best of all / its best)^4: one that is 1.2 times slower gets half as much as the
    fastest, one twice as slow a sixteenth. Each algorithm has a study of Optuna, named by the
    problem, the algorithm and `label`; baselines have one in memory.

    Raises:
        ScheduleError: an algorithm has no such field, or it never has that value for this problem.
        SamplerError: there is no such sampler.
    """

    def __init__(
        self,
        problem: Problem,
        occurrences: int,
        cpu: Cpu,
        sampler: Sampler = "gp",
        options: SearchOptions | None = None,
        label: str = "",
    ) -> None:
        self.problem, self.occurrences = problem, occurrences
        self._options = options = options or SearchOptions()
        wanted = {text.partition("(")[0]: text for text in options.algorithms}
        self.arms: dict[str, Arm] = {}
        for number, template in enumerate(applicable(problem, cpu)):
            if not (template.baseline or not wanted or template.name in wanted):
                continue
            space = space_for(template.name, problem, cpu)
            pins = wanted.get(template.name, "")
            study = ScheduleStudy(
                space.pinned(pins) if pins else space,
                sampler,
                options.seed + number,
                [OBJECTIVES[name].name for name in options.objectives],
                f"{problem}, {template.name}, {label}",
                None if template.baseline else options.storage,
            )
            first = template.heuristic(problem, cpu)
            if not pins or study.space.point(first) is not None:
                study.enqueue(first)
            self.arms[template.name] = Arm(template, study)
        template, schedule = heuristic_choice(problem, cpu)
        self.heuristic, self._usual = template.text(schedule), template.name
        self.history: list[float] = []
        self.measured: dict[str, Record] = {}
        self.outcomes = Counter[Outcome]()
        self.naive = self.heuristic_seconds = math.inf
        self.incumbent: Record | None = None

    def __repr__(self) -> str:
        return f"<search of {self}>"

    def __str__(self) -> str:
        trials = plural(self.outcomes.total(), "trial")
        best = f", best {ms(self.best)} ms by {self.incumbent.algorithm}" if self.incumbent else ""
        over = (
            f", {ratio(self.naive / self.best)} over naive"
            if self.naive < math.inf > self.best
            else ""
        )
        return f"{self.problem}: {trials}{best}{over}"

    def _repr_html_(self) -> str:
        counts = (f"{n} {outcome}" for outcome, n in self.outcomes.most_common())
        times = {"naive": self.naive, "heuristic": self.heuristic_seconds, "best": self.best}
        facts: dict[str, object] = {"occurrences": self.occurrences, "trials": ", ".join(counts)}
        facts |= {name: f"{ms(t)} ms" for name, t in times.items() if t < math.inf}
        facts["schedule"] = self.incumbent.schedule if self.incumbent else ""
        return card(str(self.problem), facts)

    @property
    def studies(self) -> dict[str, Study]:
        """The study of each algorithm that is tuned, by its name."""
        tuned = ((name, arm) for name, arm in self.arms.items() if not arm.template.baseline)
        return {name: arm.study.study for name, arm in tuned}

    def propose(
        self, baseline_fits: Callable[[Problem, str], bool] = lambda problem, algorithm: True
    ) -> Trial | None:
        """The next trial, or None when every algorithm has run out of new schedules.

        A baseline for which `baseline_fits` says no is left out for good.

        Raises:
            SamplerError: the sampler failed, or proposed what is not in the space.
        """
        for arm in self._order():
            template = arm.template
            fits = not template.baseline or baseline_fits(self.problem, template.name)
            schedule = arm.study.ask() if fits else None
            if schedule is not None:
                arm.trials += 1
                arm.exhausted = template.baseline  # a baseline is measured, not tuned
                return Trial(self.problem, template, schedule, template.text(schedule))
            arm.exhausted = True
        return None

    def tell(self, record: Record, trial: Trial | None = None, given_up: bool = False) -> None:
        """Learn from an outcome; `trial` is what it came of, where this search proposed that.

        `given_up` says that the trial was stopped because it was too slow.
        """
        arm = self.arms.get(record.algorithm)
        schedule = trial.schedule if trial else _schedule(record)
        if arm is not None and schedule is not None:
            self._count(arm, record)
            self._tell(arm, schedule, record, given_up)

    def replay(self, records: Iterable[Record]) -> int:
        """Learn from stored records of this problem; returns how many there were.

        Of several records of a schedule, the studies learn the last.
        """
        count, last = 0, dict[Any, tuple[Arm, Record]]()
        for record in records:
            arm = self.arms.get(record.algorithm)
            if arm is None:
                continue
            count += 1
            arm.trials += 1
            schedule = _schedule(record)
            if schedule is not None:
                self._count(arm, record)
                last[schedule] = arm, record
        for schedule, (arm, record) in last.items():
            self._tell(arm, schedule, record)
        return count

    def _count(self, arm: Arm, record: Record) -> None:
        self.outcomes[record.outcome] += 1
        arm.outcomes += 1
        arm.seconds += sum(record.seconds.values())
        allowed = record.baseline or self._options.limits.allow(record)
        if record.outcome == Outcome.CORRECT and allowed:
            seconds = record.seconds_per_call
            self.measured[record.schedule] = record
            arm.best = min(arm.best, seconds)
            if record.algorithm == "naive":
                self.naive = min(self.naive, seconds)
            if not record.baseline and seconds < self.best:
                self.incumbent = record
            if record.schedule == self.heuristic:
                self.heuristic_seconds = seconds
        self.history.append(self.best)

    def _tell(self, arm: Arm, schedule: Any, record: Record, given_up: bool = False) -> None:
        options, about = self._options, {"schedule": record.schedule}
        if record.outcome != Outcome.CORRECT:
            about["reason"] = f"{record.outcome}: {record.reason}"
            arm.study.tell(schedule, None, about=about)
            return
        limits = {"error": options.limits.error, "workspace": options.limits.workspace}
        excess = {
            name: OBJECTIVES[name].of(record) - limit
            for name, limit in limits.items()
            if limit is not None
        }
        values = [OBJECTIVES[name].of(record) for name in options.objectives]
        arm.study.tell(schedule, values, given_up=given_up, excess=excess, about=about)

    def suggest(self, schedule_text: str) -> None:
        """Try a schedule that won elsewhere before the sampler is asked again."""
        template, schedule = parse_schedule(schedule_text)
        arm = self.arms.get(template.name)
        if arm is not None and arm.study.space.point(schedule) is not None:
            arm.study.enqueue(schedule)
            arm.exhausted = False

    def spread(self) -> None:
        """Try each good algorithm's best schedule in its other layouts.

        A search goes where the fastest layout is; a network may need another one.
        """
        for name, arm in self.arms.items():
            own = [r for r in self.measured.values() if r.algorithm == name]
            best = min(own, key=lambda r: r.seconds_per_call, default=None)
            if best is None or best.baseline or arm.best > SPREAD * self.best:
                continue
            space, (_, schedule) = arm.study.space, parse_schedule(best.schedule)
            for layout in space.domains["layout"]:
                sibling = replace(schedule, layout=layout)
                if space.broken_rule(sibling) is None:
                    arm.study.enqueue(sibling)
                    arm.exhausted = False

    def close(self) -> None:
        """Let the trials fail that were proposed but not told of."""
        for arm in self.arms.values():
            arm.study.close()

    @property
    def best(self) -> float:
        """Seconds per call of the incumbent."""
        return self.incumbent.seconds_per_call if self.incumbent else math.inf

    def levelled_off(self, worth: float) -> bool:
        """Whether the best fell by less than the share `worth` while the trials last doubled.

        What follows is expected to bring no more for as many trials again: improvements become
        rarer in proportion to the trials made.
        """
        n = len(self.history)
        return n >= LEVEL and self.history[n // 2] <= (1 + worth) * self.history[-1] < math.inf

    @property
    def exhausted(self) -> bool:
        """Nothing new is left to measure."""
        return all(arm.exhausted for arm in self.arms.values())

    def _order(self) -> Iterator[Arm]:
        """Arms by how much they deserve the next trial."""
        live = [arm for arm in self.arms.values() if not arm.exhausted]

        def order(arm: Arm) -> tuple[bool, bool, bool, bool, float]:
            deserves = (self.best / arm.best) ** 4 if arm.best < math.inf else 1.0
            cost = arm.seconds / arm.outcomes if arm.outcomes else 0.1
            spent = arm.trials * cost / max(deserves, 1e-3)
            usual = arm.template.name == self._usual
            # Speed-ups are over the naive loop: other baselines must not take its place.
            naive = arm.template.name == "naive"
            return arm.trials > 0, not usual, not arm.template.baseline, not naive, spent

        return iter(sorted(live, key=order))


def _schedule(record: Record) -> Any | None:
    """The schedule of a record; None where an older generator wrote it with other fields."""
    try:
        return parse_schedule(record.schedule)[1]
    except ScheduleError:
        return None


def gain(search: ProblemSearch, window: int = 8, trust_slope: float = 0.2) -> float:
    """Seconds of the network that the next trial may save, by TVM's gradient scheduler.

    A mix of the slope of the last `window` trials and of what would be saved if the best fell in
    proportion to the trials so far.
    """
    history, n = search.history, len(search.history)
    if n == 0 or history[-1] == math.inf:
        return math.inf
    before = next((h for h in history[max(0, n - 1 - window) :] if h < math.inf), history[-1])
    slope = (before - history[-1]) / window
    return search.occurrences * (trust_slope * slope + (1 - trust_slope) * history[-1] / n)


def next_search(searches: Sequence[ProblemSearch]) -> ProblemSearch | None:
    """The search to give the next trial to: untried ones in order, then the largest gain."""
    live = [s for s in searches if not s.exhausted]
    return max(live, key=gain, default=None)


def related(a: Problem, b: Problem) -> bool:
    """Whether a schedule that wins for one is worth trying on the other first."""
    if not isinstance(a, ConvProblem) or not isinstance(b, ConvProblem):
        return type(a) is type(b)
    alike = (a.kernel, a.stride, a.dilation) == (b.kernel, b.stride, b.dilation)
    return alike and (a.groups == 1) == (b.groups == 1)

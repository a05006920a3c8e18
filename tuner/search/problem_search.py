"""Where the next measurement should go: which problem, which algorithm, which schedule."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import KernelTemplate, ScheduleError
from fastrun.kernels.registry import applicable, heuristic_choice, parse_schedule
from fastrun.search_spaces.space import space_for
from fastrun.tuner.records.record import NO_LIMITS, Limits, Outcome, Record
from fastrun.tuner.search.proposer import Proposer

# Outcomes before a search may be said to have levelled off.
LEVEL = 40

# An algorithm this many times slower than the best is not tried in all its layouts.
SPREAD = 1.25


@dataclass(frozen=True)
class Candidate:
    """A schedule to be measured; `heuristic` marks what would run without any measuring."""

    problem: ConvProblem
    template: KernelTemplate
    schedule: Any
    heuristic: bool = False

    @property
    def text(self) -> str:
        """The schedule's text form."""
        return self.template.text(self.schedule)


@dataclass
class Arm:
    """One algorithm of one problem."""

    template: KernelTemplate
    proposer: Proposer
    trials: int = 0
    outcomes: int = 0
    seconds: float = 0.0  # that its outcomes took to come by
    best: float = math.inf
    exhausted: bool = False


class ProblemSearch:
    """The search for one problem: every algorithm that applies competes for its trials.

    What would run without a search comes first, then baselines, then the other algorithms'
    heuristics: a budget that ends early leaves no layer slower. After that an algorithm's share
    of the time is (best of all / its best)^4: one that is 1.2 times slower gets half of the
    leader's, one twice as slow a sixteenth. What exceeds `limits` may not lead. `algorithms`
    restricts the search to those named, and their fields to those of
    `winograd(mh=2|4, prefetch=0)`.

    Raises:
        ScheduleError: no such field, or it never has that value for this problem.
    """

    def __init__(
        self,
        problem: ConvProblem,
        occurrences: int,
        cpu: Cpu,
        seed: int,
        algorithms: Sequence[str] = (),
        limits: Limits = NO_LIMITS,
        sampler: str = "gp",
    ) -> None:
        self.problem, self.occurrences = problem, occurrences
        self._limits = limits
        wanted = {text.partition("(")[0]: text for text in algorithms}
        self.arms = {
            t.name: Arm(t, _proposer(t, problem, cpu, wanted.get(t.name, ""), seed + i, sampler))
            for i, t in enumerate(applicable(problem, cpu))
            if t.baseline or not wanted or t.name in wanted
        }
        template, schedule = heuristic_choice(problem, cpu)
        self.heuristic, self._usual = template.text(schedule), template.name
        self.history: list[float] = []
        self.measured: dict[str, Record] = {}
        self.outcomes = Counter[Outcome]()
        self.naive = self.heuristic_seconds = math.inf
        self.leader: Record | None = None

    def propose(
        self, baseline_fits: Callable[[ConvProblem, str], bool] = lambda problem, algorithm: True
    ) -> Candidate | None:
        """The next candidate, or None when every algorithm has run out of new ones.

        A baseline for which `baseline_fits` says no is left out for good.
        """
        for arm in self._order():
            name = arm.template.name
            fits = not arm.template.baseline or baseline_fits(self.problem, name)
            schedule = arm.proposer.propose() if fits else None
            if schedule is not None:
                arm.trials += 1
                arm.exhausted = arm.template.baseline  # a baseline is measured, not tuned
                return self.candidate(arm.template.text(schedule))
            arm.exhausted = True
        return None

    def candidate(self, text: str) -> Candidate:
        """The candidate with this schedule."""
        template, schedule = parse_schedule(text)
        return Candidate(self.problem, template, schedule, text == self.heuristic)

    def tell(self, record: Record) -> None:
        """Learn from an outcome, of this run or an earlier one."""
        arm = self.arms.get(record.algorithm)
        if arm is None:
            return
        try:
            _, schedule = parse_schedule(record.schedule)
        except ScheduleError:
            return  # written by an older generator whose schedule had other fields
        self.outcomes[record.outcome] += 1
        arm.outcomes += 1
        arm.seconds += sum(record.seconds.values())
        allowed = record.baseline or self._limits.allow(record)
        usable = record.outcome == Outcome.CORRECT and allowed
        seconds = record.seconds_per_call
        arm.proposer.tell(schedule, seconds if usable else None)
        if usable:
            self.measured[record.schedule] = record
            arm.best = min(arm.best, seconds)
            if record.algorithm == "naive":
                self.naive = min(self.naive, seconds)
            if not record.baseline and seconds < self.best:
                self.leader = record
            if record.schedule == self.heuristic:
                self.heuristic_seconds = seconds
        self.history.append(self.best)

    def replay(self, records: Iterable[Record]) -> int:
        """Learn from stored records of this problem; returns how many there were."""
        count = 0
        for record in records:
            if record.algorithm in self.arms:
                self.arms[record.algorithm].trials += 1
                self.tell(record)
                count += 1
        return count

    def suggest(self, schedule_text: str) -> None:
        """Try a schedule that won elsewhere before the sampler's own ideas."""
        template, schedule = parse_schedule(schedule_text)
        arm = self.arms.get(template.name)
        if arm is not None and arm.proposer.space.point(schedule) is not None:
            arm.proposer.enqueue(schedule)
            arm.exhausted = False

    def spread(self) -> None:
        """Try each good algorithm's best schedule in its other layouts.

        A search goes where the fastest layout is; a network may need another one.
        """
        for name, arm in self.arms.items():
            own = [r for r in self.measured.values() if r.algorithm == name]
            leader = min(own, key=lambda r: r.seconds_per_call, default=None)
            if leader is None or leader.baseline or arm.best > SPREAD * self.best:
                continue
            space, (_, schedule) = arm.proposer.space, parse_schedule(leader.schedule)
            for layout in space.domains["layout"]:
                sibling = replace(schedule, layout=layout)
                if space.broken_rule(sibling) is None:
                    arm.proposer.enqueue(sibling)
                    arm.exhausted = False

    @property
    def best(self) -> float:
        """Seconds per call of the leader."""
        return self.leader.seconds_per_call if self.leader else math.inf

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

        def order(arm: Arm) -> tuple[bool, bool, bool, float]:
            deserves = (self.best / arm.best) ** 4 if arm.best < math.inf else 1.0
            cost = arm.seconds / arm.outcomes if arm.outcomes else 0.1
            spent = arm.trials * cost / max(deserves, 1e-3)
            usual = arm.template.name == self._usual
            return arm.trials > 0, not usual, not arm.template.baseline, spent

        return iter(sorted(live, key=order))


def _proposer(
    template: KernelTemplate,
    problem: ConvProblem,
    cpu: Cpu,
    pins: str,
    seed: int,
    sampler: str,
) -> Proposer:
    space, heuristic = space_for(template.name, problem, cpu), template.heuristic(problem, cpu)
    if not pins:
        return Proposer(space, seed, [heuristic], sampler)
    space = space.pinned(pins)
    return Proposer(space, seed, [heuristic] if space.point(heuristic) else [], sampler)


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


def related(a: ConvProblem, b: ConvProblem) -> bool:
    """Whether a schedule that wins for one is worth trying on the other first."""
    alike = (a.kernel, a.stride, a.dilation) == (b.kernel, b.stride, b.dilation)
    return alike and (a.groups == 1) == (b.groups == 1)

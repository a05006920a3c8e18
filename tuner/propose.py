"""Which schedule to measure next. The only file that imports Optuna.

Ask and tell on an in-memory study that is rebuilt from our own records: legality and repetition
are settled here, before a proposal costs anything. What cannot be measured is told as a broken
constraint, never as a failure, which samplers ignore and propose again.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import optuna

from search_spaces.space import Point, Space

optuna.logging.set_verbosity(logging.WARNING)

# Proposals that may be illegal or known before the sampler is believed to have nothing new.
PATIENCE = 200

# A space this small is enumerated rather than sampled.
SMALL = 64


class Proposer:
    """Proposes schedules of one space, best guesses first, each at most once.

    `first` are tried before the sampler is asked: heuristics, winners of similar problems. After
    that the sampler and the neighbourhood of the best so far take turns: a good heuristic leaves
    its last tenth close by, where a sampler that is still learning does not look.
    `rejected` counts proposals by the name of the rule they broke.
    """

    def __init__(self, space: Space, seed: int, first: Iterable[Any] = ()) -> None:
        self.space, self.rejected = space, Counter[str]()
        self._first = list(first)
        self._best: tuple[float, Any] = (math.inf, None)
        self._turn = 0
        self._seen: set[Any] = set()
        self._trials: dict[Any, optuna.Trial] = {}
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._study = optuna.create_study(sampler=sampler)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in space.domains.items()
        }
        self._draw = random.Random(seed)
        self._rest = self._enumeration() if space.volume <= SMALL else None

    def propose(self) -> Any | None:
        """A schedule not proposed before that breaks no rule, or None when none is left."""
        while self._first:
            schedule = self._first.pop(0)
            if schedule not in self._seen:
                self._seen.add(schedule)
                return schedule
        self._turn += 1
        if self._rest is None and self._best[1] is not None and self._turn % 2:
            near = self._neighbour(self._best[1])
            if near is not None:
                return near
        if self._rest is None:
            for _ in range(PATIENCE):
                schedule = self._ask()
                if schedule is not None:
                    return schedule
            self._rest = self._enumeration()
        return next((s for s in self._rest if self._is_new(s)), None)

    def enqueue(self, schedule: Any) -> None:
        """Propose this one before asking the sampler again."""
        self._first.append(schedule)

    def tell(self, schedule: Any, seconds: float | None) -> None:
        """The outcome: seconds per call, or None for a schedule that failed.

        Schedules that were never proposed, from earlier runs, are learnt from as well.
        """
        self._seen.add(schedule)
        point = self.space.point(schedule)
        if seconds is not None and seconds < self._best[0] and point is not None:
            self._best = seconds, schedule
        trial = self._trials.pop(schedule, None)
        if trial is not None:
            self._finish(trial, seconds)
            return
        if point is not None:
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=dict(zip(self._distributions, point, strict=True)),
                    distributions=self._distributions,
                    value=_objective(seconds),
                    constraints={"measurable": 1.0 if seconds is None else -1.0},
                )
            )

    def _ask(self) -> Any | None:
        """The sampler's next point as a schedule; None where it is illegal or known."""
        trial = self._study.ask(self._distributions)
        schedule = self.space.at(tuple(trial.params[name] for name in self._distributions))
        broken = self.space.broken_rule(schedule)
        if broken is not None:
            self.rejected[broken] += 1
            self._finish(trial, None)
            return None
        if not self._is_new(schedule):
            # A sampler that has converged repeats itself; what lies next to its guess is news.
            self.rejected["proposed before"] += 1
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return self._neighbour(schedule)
        self._trials[schedule] = trial
        return schedule

    def _neighbour(self, schedule: Any) -> Any | None:
        """A new legal schedule one step away in one field, or two, or three."""
        point = self.space.point(schedule)
        assert point is not None
        sizes = [len(values) for values in self.space.domains.values()]
        for attempt in range(60):
            moved = list(point)
            for axis in self._draw.sample(range(len(sizes)), min(len(sizes), 1 + attempt // 20)):
                step = self._draw.choice((-1, 1))
                moved[axis] = min(max(moved[axis] + step, 0), sizes[axis] - 1)
            near = self.space.at(tuple(moved))
            if near not in self._seen and self.space.broken_rule(near) is None:
                self._seen.add(near)
                return near
        return None

    def _finish(self, trial: optuna.Trial, seconds: float | None) -> None:
        trial.set_constraint("measurable", 1.0 if seconds is None else -1.0)
        self._study.tell(trial, _objective(seconds))

    def _is_new(self, schedule: Any) -> bool:
        if schedule in self._seen:
            return False
        self._seen.add(schedule)
        return True

    def _enumeration(self) -> Iterator[Any]:
        """Legal schedules in random order: all of a small space, draws from a large one."""
        sizes = [len(values) for values in self.space.domains.values()]
        if self.space.volume <= 100_000:
            points: list[Point] = list(itertools.product(*map(range, sizes)))
            self._draw.shuffle(points)
            candidates: Iterable[Point] = points
        else:
            candidates = (tuple(self._draw.randrange(n) for n in sizes) for _ in range(100_000))
        schedules = map(self.space.at, candidates)
        return (s for s in schedules if self.space.broken_rule(s) is None)


def _objective(seconds: float | None) -> float:
    """Log time, for what matters are ratios; a failure is worse than anything measurable."""
    return math.log(seconds) if seconds is not None else 10.0

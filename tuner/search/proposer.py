"""Which schedule to measure next. The only file that imports Optuna.

Optuna's samplers are asked and told on an in-memory study that is rebuilt from our own records.
Legality and repetition are settled here, before a proposal costs anything. What cannot be measured
is told as a broken constraint, never as a failure, which samplers ignore and propose again.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import optuna

from fastrun.search_spaces.space import Space
from fastrun.tuner.search.gaussian_process import Kriging
from fastrun.tuner.search.strategies import Ground, Listed, Local, Strategy

optuna.logging.set_verbosity(logging.WARNING)

# Proposals that may be illegal or known before a sampler is believed to have nothing new.
PATIENCE = 200

# A space this small is enumerated rather than sampled.
SMALL = 64


class Proposer:
    """Proposes schedules of one space, best guesses first, each at most once.

    `first` are tried before the `sampler`, one of `SAMPLERS`, is asked: heuristics, winners of
    similar problems.
    """

    def __init__(
        self, space: Space, seed: int, first: Iterable[Any] = (), sampler: str = "gp"
    ) -> None:
        self.space = space
        self._first = list(first)
        self._ground = Ground(space, seed)
        self._strategy = SAMPLERS[sampler](self._ground, seed)
        self._rest = self._ground.shuffled() if space.volume <= SMALL else None

    @property
    def rejected(self) -> Counter[str]:
        """How many proposals broke each rule, by its name."""
        return self._ground.rejected

    def propose(self) -> Any | None:
        """A schedule not proposed before that breaks no rule, or None when none is left."""
        while self._first:
            schedule = self._first.pop(0)
            if schedule not in self._ground.taken:
                self._ground.taken.add(schedule)
                return schedule
        if self._rest is None:
            schedule = self._strategy.next()
            if schedule is not None:
                return schedule
            self._rest = self._ground.shuffled()
        return next(self._rest, None)

    def enqueue(self, schedule: Any) -> None:
        """Propose this one before asking the sampler again."""
        self._first.append(schedule)

    def tell(self, schedule: Any, seconds: float | None) -> None:
        """The outcome: seconds per call, or None for a schedule that failed.

        Schedules that were never proposed, from earlier runs, are learnt from as well.
        """
        self._ground.taken.add(schedule)
        if self.space.point(schedule) is not None:
            self._strategy.learn(schedule, seconds)


class Sampled(Strategy):
    """What an Optuna sampler suggests; next to it, where it suggests what is known."""

    def __init__(self, ground: Ground, sampler: optuna.samplers.BaseSampler) -> None:
        self._ground = ground
        self._study = optuna.create_study(sampler=sampler)
        self._trials: dict[Any, optuna.Trial] = {}
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in ground.space.domains.items()
        }

    def next(self) -> Any | None:
        for _ in range(PATIENCE):
            trial = self._study.ask(self._distributions)
            point = tuple(trial.params[name] for name in self._distributions)
            schedule = self._ground.space.at(point)
            if self._ground.take(schedule) is not None:
                self._trials[schedule] = trial
                return schedule
            if schedule not in self._ground.taken:
                self._finish(trial, None)
                continue
            # A sampler that has converged repeats itself; what lies next to its guess is news.
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            near = next(filter(None, map(self._ground.take, self._ground.steps(schedule))), None)
            if near is not None:
                return near
        return None

    def learn(self, schedule: Any, seconds: float | None) -> None:
        trial = self._trials.pop(schedule, None)
        if trial is not None:
            self._finish(trial, seconds)
            return
        point = self._ground.space.point(schedule)
        assert point is not None
        self._study.add_trial(
            optuna.trial.create_trial(
                params=dict(zip(self._distributions, point, strict=True)),
                distributions=self._distributions,
                value=_objective(seconds),
                constraints={"measurable": _broken(seconds)},
            )
        )

    def _finish(self, trial: optuna.Trial, seconds: float | None) -> None:
        trial.set_constraint("measurable", _broken(seconds))
        self._study.tell(trial, _objective(seconds))


class Turns(Strategy):
    """A strategy and the neighbourhood of the best so far, turn and turn about.

    A good heuristic leaves its last tenth close by, where a sampler that is still learning does
    not look.
    """

    def __init__(self, ground: Ground, strategy: Strategy) -> None:
        self._ground, self._strategy = ground, strategy
        self._best: tuple[float, Any] = (math.inf, None)
        self._turn = 0

    def next(self) -> Any | None:
        self._turn += 1
        if self._best[1] is not None and self._turn % 2:
            near = next(
                filter(None, map(self._ground.take, self._ground.steps(self._best[1]))), None
            )
            if near is not None:
                return near
        return self._strategy.next()

    def learn(self, schedule: Any, seconds: float | None) -> None:
        if seconds is not None and seconds < self._best[0]:
            self._best = seconds, schedule
        self._strategy.learn(schedule, seconds)


def _objective(seconds: float | None) -> float:
    """Log time, for what matters are ratios; a failure is worse than anything measurable."""
    return math.log(seconds) if seconds is not None else 10.0


def _broken(seconds: float | None) -> float:
    """Optuna's measure of a broken constraint: positive where it is."""
    return 1.0 if seconds is None else -1.0


def _cmaes(ground: Ground, seed: int) -> Strategy:
    """Covariance matrix adaptation, of a package that Optuna would miss only when it is asked.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    import_module("cmaes")
    return Sampled(ground, optuna.samplers.CmaEsSampler(seed=seed, with_margin=True))


SAMPLERS: dict[str, Callable[[Ground, int], Strategy]] = {
    "gp": lambda ground, _: Turns(ground, Kriging(ground)),
    "tpe": lambda ground, seed: Turns(
        ground, Sampled(ground, optuna.samplers.TPESampler(seed=seed))
    ),
    "random": lambda ground, _: Listed(ground.shuffled()),
    "exhaustive": lambda ground, _: Listed(ground.in_order()),
    "local": lambda ground, _: Local(ground),
    "cmaes": _cmaes,
}
"""Ways to search, by name."""

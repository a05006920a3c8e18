"""Samplers that know the space: in order, in random order, downhill; and neighbours in between.

They are samplers of Optuna. What came of their proposals they read from the trials of the study.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from fastrun.search_spaces.untried import Untried
from fastrun.tuner.search.errors import SamplerError
from fastrun.tuner.search.parameters import Parameters


class SpaceSampler(BaseSampler):
    """Proposes whole schedules that may still be tried.

    A subclass says which, in `choose`. Before that it learns of every finished trial once, in
    `learn`, also of those that an earlier run measured.
    """

    def __init__(self, untried: Untried) -> None:
        self.untried = untried
        self.parameters = Parameters(untried.space)
        self._learnt: set[int] = set()

    def choose(self, study: Study, trial: FrozenTrial) -> Any | None:
        """The schedule to propose; None leaves it to chance."""
        raise NotImplementedError

    def learn(self, schedule: Any, value: float | None) -> None:
        """Take in the value of a finished trial: milliseconds per call, None for a failure."""

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters that have a choice."""
        return self.parameters.free

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of a schedule that may be tried; none where all were.

        Raises:
            SamplerError: the study minimises more than one value.
        """
        if len(study.directions) > 1:
            raise SamplerError(
                f"{self} minimises one value: optuna.samplers.NSGAIISampler can minimise several"
            )
        for found in study.get_trials(deepcopy=False):
            if found.state.is_finished() and found.params and found.number not in self._learnt:
                self._learnt.add(found.number)
                self.learn(self.parameters.schedule(found.params), _value(found))
        schedule = self.choose(study, trial) or self.untried.any()
        return {} if schedule is None else self.parameters.of(schedule)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Refused, because fields are chosen together.

        Raises:
            ValueError: no schedule is left, or the study has a parameter that the space has not.
        """
        raise ValueError(f"{self} has no schedule left that could say what {param_name} should be")


def _value(trial: FrozenTrial) -> float | None:
    broken = any(excess > 0 for excess in trial.constraints.values())
    return None if broken or trial.state == TrialState.FAIL else trial.value


class ListedSampler(SpaceSampler):
    """Proposes one schedule of a list after the other, whatever comes of them."""

    def __init__(self, untried: Untried, schedules: Iterator[Any]) -> None:
        super().__init__(untried)
        self._schedules = schedules

    def choose(self, study: Study, trial: FrozenTrial) -> Any | None:
        """The next schedule of the list."""
        return next(self._schedules, None)


class LocalSampler(SpaceSampler):
    """Greedy local search: moves to any neighbour that is faster than where it is.

    Where there is none, it continues from a random schedule.
    """

    def __init__(self, untried: Untried) -> None:
        super().__init__(untried)
        self._here = math.inf
        self._neighbours: Iterator[Any] = iter(())

    def choose(self, study: Study, trial: FrozenTrial) -> Any | None:
        """A neighbour, as long as there are any."""
        neighbour = next(self._neighbours, None)
        if neighbour is None:
            self._here = math.inf
        return neighbour

    def learn(self, schedule: Any, value: float | None) -> None:
        """Move to a faster schedule."""
        if value is not None and value < self._here:
            self._here, self._neighbours = value, self.untried.neighbours(schedule)


class NeighbourSampler(SpaceSampler):
    """Proposes by turns a neighbour of the incumbent and what another sampler proposes.

    A good heuristic leaves the last tenth to schedules next to its own, where a sampler that is
    still learning does not look.
    """

    def __init__(self, untried: Untried, sampler: BaseSampler) -> None:
        super().__init__(untried)
        self._sampler = sampler
        self._incumbent, self._best = None, math.inf
        self._turn = 0

    def choose(self, study: Study, trial: FrozenTrial) -> Any | None:
        """A neighbour in every other turn."""
        self._turn += 1
        if self._incumbent is not None and self._turn % 2:
            neighbour = next(self.untried.neighbours(self._incumbent), None)
            if neighbour is not None:
                return neighbour
        return self.parameters.schedule(proposed(self._sampler, study, trial, self.parameters))

    def learn(self, schedule: Any, value: float | None) -> None:
        """Note the incumbent."""
        if value is not None and value < self._best:
            self._incumbent, self._best = schedule, value

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self._sampler.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Passed on."""
        self._sampler.after_trial(study, trial, state, values)


def proposed(
    sampler: BaseSampler, study: Study, trial: FrozenTrial, parameters: Parameters
) -> Mapping[str, Any]:
    """The parameters that a sampler proposes for a trial, asked in the way of Optuna's trials.

    Parameters of a single value are not asked for, but they are part of the trial, as they are of
    those before it: some samplers compare the two.
    """
    together = sampler.infer_relative_search_space(study, trial)
    params = dict(sampler.sample_relative(study, trial, together))
    draft = copy.copy(trial)
    # `trial` is older than what the sampler noted of it in `before_trial`.
    draft.system_attrs = study.get_trials(deepcopy=False)[trial.number].system_attrs
    for name, distribution in parameters.distributions.items():
        if name not in parameters.free:
            params[name] = 0
        elif name not in params:
            params[name] = sampler.sample_independent(study, draft, name, distribution)
        draft.params = {**draft.params, name: params[name]}
        draft.distributions = {**draft.distributions, name: distribution}
    return params

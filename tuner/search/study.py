"""The search of one algorithm's space for one problem, as a study of Optuna."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from fastrun.search_spaces.space import Space
from fastrun.search_spaces.untried import Untried
from fastrun.tuner.search.errors import SamplerError
from fastrun.tuner.search.parameters import Parameters
from fastrun.tuner.search.sampler_choice import SAMPLERS, Sampler, make_sampler
from fastrun.tuner.search.samplers import proposed

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Times that a sampler is asked for a schedule that breaks no rule, before its proposal is moved.
_ASKS = 5


class ScheduleStudy:
    """Asks for the schedules of a space, and is told what came of them.

    `study` has one trial for each schedule measured, in this run or before. Its user attributes
    list the values of each field. What breaks a rule or was tried becomes no trial: the sampler is
    asked again, and then its proposal moves to the nearest schedule that may be tried. `sampler` is
    as in `make_sampler`; `metrics` names what is minimised, with the unit; `name` and `storage` are
    those of the study, which is in memory without a storage.

    Raises:
        SamplerError: as `make_sampler`.
    """

    def __init__(
        self,
        space: Space,
        sampler: Sampler = "gp",
        seed: int = 0,
        metrics: Sequence[str] = ("ms per call",),
        name: str | None = None,
        storage: BaseStorage | None = None,
    ) -> None:
        self.space = space
        self._untried, self._parameters = Untried(space, seed), Parameters(space)
        self._queue = deque[Any]()
        self._running: dict[Any, Trial] = {}
        self._told: set[Any] = set()
        made = make_sampler(sampler, self._untried, seed)
        storage = storage or InMemoryStorage()
        created = optuna.create_study(
            storage=storage, study_name=name, directions=["minimize"] * len(metrics)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            created.set_metric_names(list(metrics))
        for field, values in space.domains.items():
            created.set_user_attr(field, list(values))
        self.study = _Study(
            created.study_name,
            storage,
            _TriableSampler(made, self._untried, self._parameters, sampler not in SAMPLERS),
            optuna.pruners.NopPruner(),
        )

    def enqueue(self, schedule: Any) -> None:
        """Measure this one, unless it was tried, before the sampler is asked again."""
        self._queue.append(schedule)

    def ask(self) -> Any | None:
        """The next schedule to measure, or None when none is left.

        Raises:
            SamplerError: the sampler failed, or proposes what is not in the space.
        """
        while self._queue:
            schedule = self._queue.popleft()
            if schedule in self._untried.taken:
                continue
            if self.space.point(schedule) is None:
                self._untried.taken.add(schedule)
                return schedule
            self.study.enqueue_trial(self._parameters.of(schedule))
            return self._next()
        return None if self.study.stopped or self._untried.any() is None else self._next()

    def _next(self) -> Any:
        trial = self.study.ask(self._parameters.distributions)
        schedule = self._parameters.schedule(trial.params)
        self._untried.taken.add(schedule)
        self._running[schedule] = trial
        return schedule

    def tell(
        self,
        schedule: Any,
        values: Sequence[float] | None,
        *,
        given_up: bool = False,
        excess: Mapping[str, float] | None = None,
        about: Mapping[str, str] | None = None,
    ) -> None:
        """The values of a schedule, or None for a failure. What is told twice counts once.

        `given_up` is a trial that was stopped because its value is too high. `excess` says for each
        limit by how much the schedule exceeds it; it breaks those that are above 0. `about` goes to
        the trial's user attributes. Schedules that this study did not ask for are trials too.

        Raises:
            SamplerError: the sampler failed.
        """
        self._untried.taken.add(schedule)
        trial = self._running.pop(schedule, None)
        if trial is not None:
            for key, text in (about or {}).items():
                trial.set_user_attr(key, text)
            for limit, amount in (excess or {}).items():
                trial.set_constraint(limit, amount)
            if values is None:
                self.study.tell(trial, state=TrialState.FAIL)
            elif given_up and len(values) == 1:
                trial.report(values[0], step=0)
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, values)
        elif schedule not in self._told and self.space.point(schedule) is not None:
            self.study.add_trial(
                create_trial(
                    state=TrialState.FAIL if values is None else TrialState.COMPLETE,
                    values=values,
                    params=self._parameters.of(schedule),
                    distributions=self._parameters.distributions,
                    user_attrs=dict(about or {}),
                    constraints=dict(excess or {}),
                )
            )
        self._told.add(schedule)

    def close(self) -> None:
        """Let the trials fail of which nothing came."""
        for trial in self._running.values():
            self.study.tell(trial, state=TrialState.FAIL)
        self._running.clear()


class _Study(optuna.Study):
    """A study whose sampler may stop it while it is asked and told."""

    stopped = False

    def stop(self) -> None:
        """No more trials: the sampler has none left."""
        self.stopped = True


class _TriableSampler(BaseSampler):
    """What another sampler proposes, or the nearest schedule that may be tried."""

    def __init__(
        self, sampler: BaseSampler, untried: Untried, parameters: Parameters, foreign: bool
    ) -> None:
        self._sampler, self._untried, self._parameters = sampler, untried, parameters
        self._foreign = foreign

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All parameters that have a choice, so that they can be moved together."""
        return self._parameters.free

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The parameters of a schedule that may be tried."""
        for _ in range(_ASKS):
            with self._blamed():
                params = proposed(self._sampler, study, trial, self._parameters)
            point = self._parameters.point(params)
            if self._untried.space.broken_rule(self._untried.space.at(point)) is None:
                break
        return self._parameters.of(self._untried.nearest(point))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Passed on, for a parameter that is not of the space."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Passed on."""
        with self._blamed():
            self._sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Passed on."""
        with self._blamed():
            self._sampler.after_trial(study, trial, state, values)

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Say a foreign sampler's error in one line. An error of ours is a defect and passes."""
        try:
            yield
        except Exception as error:
            if isinstance(error, SamplerError) or not self._foreign:
                raise
            what = f"{type(error).__name__}: {error}"
            raise SamplerError(f"the sampler {self._sampler} failed: {what}") from error

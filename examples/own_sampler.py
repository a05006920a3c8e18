"""Tune one layer by a sampler of one's own: simulated annealing.

    python examples/own_sampler.py 'conv 1x64x56x56 64x3x3 s1 p1 bias relu' --trials 60

It is a sampler of Optuna. A proposal that breaks a rule of the space or was tried before is moved
to the nearest schedule that may be tried. All else is as with every sampler.
"""

from __future__ import annotations

import argparse
import math
import random
from typing import Any

import optuna

from fastrun import Budget, Database, fast_run
from fastrun.kernels.core.problem import ConvProblem


class Annealing(optuna.samplers.RandomSampler):
    """A step from the present schedule in one or two fields. Slower ones are accepted ever less."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._random = random.Random(seed)
        self._here: dict[str, Any] = {}
        self._value, self._temperature = math.inf, 0.3

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        """The value of the present schedule, now and then a random one."""
        if name in self._here and self._random.random() > 0.2:
            return self._here[name]
        return super().sample_independent(study, trial, name, distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """Move to a schedule that is faster, or by chance; one that failed has no values."""
        if values:
            self._temperature *= 0.95
            rise = math.log(values[0] / self._value) if self._here else 0.0
            if self._random.random() < math.exp(-max(rise, 0.0) / self._temperature):
                self._here, self._value = trial.params, values[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("problem")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--db", default="sqlite://")  # in memory: nothing is known, nothing kept
    options = parser.parse_args()
    problem, budget = ConvProblem.parse(options.problem), Budget(trials=options.trials)
    with Database(options.db) as database:
        # The class is called for each algorithm of the problem; a sampler object would be copied.
        (search,) = fast_run([(problem, 1)], database, budget, sampler=Annealing).searches
    for n in (1, 2, 5, 10, 20, 50, len(search.history)):
        if n <= len(search.history):
            print(f"after {n} trials {1e6 * search.history[n - 1]:.1f} us")
    print(search.incumbent.schedule)

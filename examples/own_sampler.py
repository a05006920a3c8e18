"""Tune one layer by a sampler of one's own: simulated annealing.

    python examples/own_sampler.py 'conv 1x64x56x56 64x3x3 s1 p1 bias relu' --trials 60

A strategy has two methods. What it walks on, a `Ground`, knows the space, its rules and what was
proposed before; verification, timing, races and the database are as with any other sampler.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from fastrun import Budget, Database, fast_run
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.search.proposer import SAMPLERS
from fastrun.tuner.search.strategies import Ground


class Annealing:
    """Steps from where it stands; goes uphill ever more rarely."""

    def __init__(self, ground: Ground) -> None:
        self._ground, self._anywhere = ground, ground.shuffled()
        self._here, self._seconds, self._warmth = None, math.inf, 0.3

    def next(self) -> Any | None:
        """An untried neighbour; else somewhere at random."""
        for near in self._ground.steps(self._here) if self._here else []:
            if self._ground.take(near) is not None:
                return near
        return next(self._anywhere, None)

    def learn(self, schedule: Any, seconds: float | None) -> None:
        """Move there if it is faster, or by chance; None is a schedule that failed."""
        self._warmth *= 0.95
        rise = math.log((seconds or math.inf) / self._seconds) if self._here else 0.0
        if seconds and self._ground.draw.random() < math.exp(-max(rise, 0.0) / self._warmth):
            self._here, self._seconds = schedule, seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("problem")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--db", default="sqlite://")  # in memory: nothing is known, nothing kept
    options = parser.parse_args()
    SAMPLERS["annealing"] = lambda ground, seed: Annealing(ground)
    problem = ConvProblem.parse(options.problem)
    with Database(options.db) as database:
        budget = Budget(trials=options.trials)
        (search,) = fast_run([(problem, 1)], database, budget, sampler="annealing").searches
    for n in (1, 2, 5, 10, 20, 50, len(search.history)):
        if n <= len(search.history):
            print(f"after {n} trials {1e6 * search.history[n - 1]:.1f} us")
    print(search.leader.schedule)

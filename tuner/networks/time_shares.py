"""How the seconds of a run are shared by its search and the finals of networks behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from time import monotonic

from fastrun.tuner.search.budget import Budget

FINALS = 0.4
"""The share of a budget for the finals of whole networks.

What a layer gains alone says little of what a network gains, so schedules are timed in place."""


class TimeShares:
    """The seconds of a run that searches first and then holds a number of `finals`.

    It began at the time `begin` of `monotonic`: what it does before its search counts as well.
    """

    def __init__(self, budget: Budget, finals: int, begin: float) -> None:
        self._begin, self._budget, self._finals = begin, budget, finals
        self._share = FINALS if finals else 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return monotonic() - self._begin

    def of_search(self) -> Budget:
        """The budget of the search, which begins now."""
        if self._budget.seconds is None:
            return self._budget
        seconds = (1 - self._share) * self._budget.seconds - self.elapsed
        return replace(self._budget, seconds=seconds)

    def of_finals(self, searched: float) -> Iterator[float]:
        """The seconds of each final when its turn comes: an equal part of what is left.

        Without a limit the finals are to the `searched` seconds as with one. No part is positive
        when the time has run out.
        """
        ends = monotonic() + searched * self._share / (1 - self._share)
        if self._budget.seconds is not None:
            ends = self._begin + self._budget.seconds
        for left in range(self._finals, 0, -1):
            yield (ends - monotonic()) / left

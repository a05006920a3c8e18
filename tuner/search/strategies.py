"""Ways through a space that need no model: in order, in random order, downhill.

A strategy says where to go next and is told what was found there. `Ground` is what all of them
walk on: it knows what is legal and where somebody has been.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from fastrun.search_spaces.space import Point, Space

BEFORE = "proposed before"

# Points that a random order covers; of a larger space it is a sample.
_COVERED = 1_000_000

# Draws for each schedule of a sample, before the rules.
_TRIES = 20


class Strategy(Protocol):
    """Where to go next."""

    def next(self) -> Any | None:
        """A legal schedule that nobody has taken yet, or None when the strategy has no more."""

    def learn(self, schedule: Any, seconds: float | None) -> None:
        """Take in an outcome: seconds per call, None for a failure."""


class Ground:
    """A space, and which of its schedules are taken.

    `rejected` counts what was not worth proposing by the rule it broke, or as `BEFORE`.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.draw = space, random.Random(seed)
        self.rejected = Counter[str]()
        self.taken: set[Any] = set()
        self._sizes = [len(values) for values in space.domains.values()]

    def why_not(self, schedule: Any) -> str | None:
        """The rule that keeps a schedule from being proposed, or None."""
        return self.space.broken_rule(schedule) or (BEFORE if schedule in self.taken else None)

    def take(self, schedule: Any) -> Any | None:
        """The schedule, which from now on is taken; None where there is a reason against it."""
        reason = self.why_not(schedule)
        if reason is not None:
            self.rejected[reason] += 1
            return None
        self.taken.add(schedule)
        return schedule

    def steps(self, schedule: Any) -> Iterator[Any]:
        """What lies one step away in one field, in random order.

        Where a rule forbids that, one other field goes along, as little as it must: a tile with
        fewer blocks has no room for the largest.
        """
        point = self.space.point(schedule)
        if point is None:
            return iter(())
        moved = list(self.space.neighbours(point))
        self.draw.shuffle(moved)
        return filter(None, (self._nearest_legal(p, point) for p in moved))

    def _nearest_legal(self, moved: Point, origin: Point) -> Any | None:
        """The schedule at `moved`, or the closest that breaks no rule and keeps its step."""
        if self.space.broken_rule(self.space.at(moved)) is None:
            return self.space.at(moved)
        others = [
            (abs(position - here), (*moved[:axis], position, *moved[axis + 1 :]))
            for axis, here in enumerate(moved)
            if here == origin[axis]
            for position in range(self._sizes[axis])
            if position != here
        ]
        legal = (self.space.at(point) for _, point in sorted(others))
        return next((s for s in legal if self.space.broken_rule(s) is None), None)

    def in_order(self) -> Iterator[Any]:
        """Every schedule, the last field changing fastest."""
        points = itertools.product(*map(range, self._sizes))
        return self._taken_of(points)

    def shuffled(self) -> Iterator[Any]:
        """Every schedule in random order; of a huge space a part of them."""
        volume = self.space.volume
        order = self.draw.sample(range(volume), min(volume, _COVERED))
        return self._taken_of(map(self._point, order))

    def sample(self, most: int) -> list[Any]:
        """Some of the schedules that could be taken, at random: `most` unless rules forbid many."""
        volume = self.space.volume
        drawn = self.draw.sample(range(volume), min(volume, _TRIES * most))
        schedules = map(self.space.at, map(self._point, drawn))
        return list(itertools.islice((s for s in schedules if self.why_not(s) is None), most))

    def _taken_of(self, points: Iterator[Point]) -> Iterator[Any]:
        taken = map(self.take, map(self.space.at, points))
        return (schedule for schedule in taken if schedule is not None)

    def _point(self, number: int) -> Point:
        point = []
        for size in reversed(self._sizes):
            number, position = divmod(number, size)
            point.append(position)
        return tuple(reversed(point))


class Listed(Strategy):
    """One schedule after the other, whatever comes of them."""

    def __init__(self, schedules: Iterator[Any]) -> None:
        self._schedules = schedules

    def next(self) -> Any | None:
        return next(self._schedules, None)

    def learn(self, schedule: Any, seconds: float | None) -> None:
        pass


class Local(Strategy):
    """Greedy local search: goes to any neighbour that is faster than where it stands.

    Where none is, it goes on from a random schedule.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground, self._starts = ground, ground.shuffled()
        self._height = math.inf
        self._steps: list[Any] = []

    def next(self) -> Any | None:
        while self._steps:
            schedule = self._ground.take(self._steps.pop())
            if schedule is not None:
                return schedule
        self._height = math.inf
        return next(self._starts, None)

    def learn(self, schedule: Any, seconds: float | None) -> None:
        if seconds is not None and seconds < self._height:
            self._height, self._steps = seconds, list(self._ground.steps(schedule))

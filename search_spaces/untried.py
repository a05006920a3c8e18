"""The schedules of a space that a search may still try."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from fastrun.search_spaces.space import Point, Space

# A random order covers this many points. Of a larger space it is a sample.
_COVERED = 1_000_000

# Points drawn for each schedule of a sample, because rules forbid some of them.
_DRAWS = 20

# Points drawn to find any schedule, before all points are gone through.
_DRAWS_FOR_ANY = 2000

# Steps that a proposal which cannot be tried is moved at most, each in one field by one value.
_STEPS = 3


class Untried:
    """A space, and which of its schedules were taken for a trial.

    A schedule may be tried if it breaks no rule of the space and was not taken. `draw` holds the
    random numbers of the search.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.draw = space, random.Random(seed)
        self.taken: set[Any] = set()
        self._any = random.Random(seed)  # its own, so that a look ahead changes no proposal
        self._sizes = [len(values) for values in space.domains.values()]
        self._spare: Any | None = None
        self._rest: Iterator[Any] | None = None

    def __contains__(self, schedule: object) -> bool:
        return schedule not in self.taken and self.space.broken_rule(schedule) is None

    def any(self) -> Any | None:
        """A schedule that may be tried, drawn at random; None if there is none."""
        if self._spare is None or self._spare in self.taken:
            self._spare = next(self._drawn(_DRAWS_FOR_ANY, self._any), None)
            if self._spare is None:
                self._rest = self._rest or self._drawn(_COVERED, self._any)
                self._spare = next(self._rest, None)
        return self._spare

    def nearest(self, point: Point) -> Any | None:
        """The schedule at `point` or, if it may not be tried, one a few steps away; else any."""
        for ring in rings(self.space, point, _STEPS):
            self.draw.shuffle(ring)
            found = next((s for s in map(self.space.at, ring) if s in self), None)
            if found is not None:
                return found
        return self.any()

    def neighbours(self, schedule: Any) -> Iterator[Any]:
        """Schedules one step away in one field that may be tried, in random order.

        Where a rule forbids a step, one other field changes too, as little as possible: a tile with
        fewer blocks has no room for the largest.
        """
        point = self.space.point(schedule)
        if point is None:
            return
        moved = list(self.space.neighbours(point))
        self.draw.shuffle(moved)
        for neighbour in moved:
            legal = self._legal(neighbour, point)
            if legal is not None and legal not in self.taken:
                yield legal

    def in_order(self) -> Iterator[Any]:
        """Every schedule, the last field changing fastest; what is taken meanwhile is left out."""
        points = itertools.product(*map(range, self._sizes))
        return (s for s in map(self.space.at, points) if s in self)

    def shuffled(self) -> Iterator[Any]:
        """Every schedule in random order; of a huge space a part of them."""
        return self._drawn(_COVERED, self.draw)

    def sample(self, most: int) -> list[Any]:
        """Some of the schedules at random: `most` unless rules forbid many."""
        return list(itertools.islice(self._drawn(_DRAWS * most, self.draw), most))

    def _drawn(self, points: int, draw: random.Random) -> Iterator[Any]:
        """The schedules that may be tried among so many random points."""
        drawn = itertools.islice(_permutation(self.space.volume, draw), points)
        return (s for s in map(self.space.at, map(self._point, drawn)) if s in self)

    def _legal(self, moved: Point, origin: Point) -> Any | None:
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

    def _point(self, number: int) -> Point:
        point = []
        for size in reversed(self._sizes):
            number, position = divmod(number, size)
            point.append(position)
        return tuple(reversed(point))


def _permutation(count: int, draw: random.Random) -> Iterator[int]:
    """The numbers below `count` in random order, each drawn when it is asked for.

    Fisher and Yates's method; of its array only the places that were swapped are kept.
    """
    swapped: dict[int, int] = {}
    for place in range(count):
        other = draw.randrange(place, count)
        first = swapped.pop(place, place)
        yield first if other == place else swapped.get(other, other)
        if other != place:
            swapped[other] = first


def rings(space: Space, point: Point, steps: int) -> Iterator[list[Point]]:
    """The points at most 0, 1, ..., `steps` steps from `point`, whatever the rules say."""
    ring = [point]
    for step in range(steps + 1):
        yield ring
        if step < steps:
            ring = list(dict.fromkeys(q for p in ring for q in space.neighbours(p)))

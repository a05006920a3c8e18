"""The fields of a schedule as parameters of Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, SupportsFloat

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from fastrun.search_spaces.space import Point, Space
from fastrun.tuner.search.errors import SamplerError


class Parameters:
    """A parameter for each field of a space, with the name and the values of the field.

    Numbers in equal steps are an integer with that step. Other positive numbers are an integer on a
    logarithmic scale; a value in between means the nearest one of the field. All else is a
    category. `free` are the distributions of those parameters that have more than one value.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self.distributions = {name: _distribution(v) for name, v in space.domains.items()}
        self.free = {name: d for name, d in self.distributions.items() if not d.single()}

    def of(self, schedule: Any) -> dict[str, Any]:
        """The parameters of a schedule."""
        return {name: getattr(schedule, name) for name in self.distributions}

    def point(self, params: Mapping[str, Any]) -> Point:
        """The point of the space that a sampler means.

        Raises:
            SamplerError: a parameter is not in its distribution.
        """
        return tuple(
            _position(name, params[name], list(values), self.free[name]) if name in self.free else 0
            for name, values in self._space.domains.items()
        )

    def schedule(self, params: Mapping[str, Any]) -> Any:
        """The schedule that a sampler means; it may break rules.

        Raises:
            SamplerError: as `point`.
        """
        return self._space.at(self.point(params))


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    if all(type(value) is int for value in values) and list(values) == sorted(values):
        steps = {after - before for before, after in pairwise(values)}
        if len(steps) < 2:
            return IntDistribution(values[0], values[-1], step=max(steps, default=1))
        if values[0] > 0:
            return IntDistribution(values[0], values[-1], log=True)
    return CategoricalDistribution(list(values))


def _position(name: str, value: Any, values: Sequence[Any], distribution: BaseDistribution) -> int:
    """Where `value` is among the values of a field, or the nearest to it."""
    if value in values:
        return values.index(value)
    if isinstance(distribution, IntDistribution) and isinstance(value, SupportsFloat):
        scale = math.log if distribution.log else float
        if distribution.low <= float(value) <= distribution.high:
            return min(range(len(values)), key=lambda i: abs(scale(values[i]) - scale(value)))
    raise SamplerError(f"a sampler proposed {name}={value!r}, which is not in {distribution}")

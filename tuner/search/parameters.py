"""The fields of a schedule as parameters of Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

from optuna.distributions import BaseDistribution, IntDistribution

from fastrun.search_spaces.space import Point, Space
from fastrun.tuner.search.errors import SamplerError


class Parameters:
    """A parameter for each field of a space: the position of a value in the field's list, from 0.

    The list has neighbours in effect side by side. Values themselves would hide that from samplers
    where they are words or numbers in unequal steps. `free` are the parameters that have a choice.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self.distributions: dict[str, BaseDistribution] = {
            name: IntDistribution(0, len(values) - 1) for name, values in space.domains.items()
        }
        self.free = {name: d for name, d in self.distributions.items() if not d.single()}

    def of(self, schedule: Any) -> dict[str, int]:
        """The parameters of a schedule that is in the space."""
        point = self._space.point(schedule)
        assert point is not None
        return dict(zip(self.distributions, point, strict=True))

    def point(self, params: Mapping[str, Any]) -> Point:
        """The point of the space that a sampler proposes; it may break rules.

        Raises:
            SamplerError: a parameter is not a position in its field's list.
        """
        for name in self.free:
            value, last = params[name], len(self._space.domains[name]) - 1
            if not (isinstance(value, SupportsFloat) and 0 <= float(value) <= last):
                message = f"a sampler proposed {name}={value!r}, which is not in 0 ... {last}"
                raise SamplerError(message)
        return tuple(round(params[name]) if name in self.free else 0 for name in self.distributions)

    def schedule(self, params: Mapping[str, Any]) -> Any:
        """The schedule that a sampler proposes.

        Raises:
            SamplerError: as `point`.
        """
        return self._space.at(self.point(params))

"""Inputs that may be left out, because the model has a value for them: its own weights, mostly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from fastrun.graph.core.errors import InputError
from fastrun.graph.core.model import Array, Tensor

# Networks of other values that are kept: each has packed weights of its own.
_KEPT = 4

Given = Mapping[str, Array]


class Network(Protocol):
    """An `Executable` or `DynamicExecutable`."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """The outputs by name."""


class Defaults:
    """Initializers of a model that are inputs too, and networks with other values in their place.

    Values are packed and folded into the network, so other ones need another network. `load` makes
    it when they first come; the last ones are kept.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        load: Callable[[Given], Network],
    ) -> None:
        self.tensors, self._load = dict(tensors), load
        self._there: list[tuple[Given, Network]] = []
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tensors, self._load)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array] | None:
        """The outputs for inputs that give such values, None for inputs that give none.

        Raises:
            InputError: a value has another type or shape than the model's.
            GraphError: the model cannot be used with these values.
        """
        given = {name: self._checked(name, x) for name, x in inputs.items() if name in self.tensors}
        if not given:
            return None
        others = {name: x for name, x in inputs.items() if name not in given}
        return self._network(given).run(others)

    def _network(self, given: Given) -> Network:
        with self._lock:
            for place, (values, network) in enumerate(self._there):
                if _same(values, given):
                    self._there.append(self._there.pop(place))
                    return network
            own = {name: x.copy() for name, x in given.items()}
            network = self._load(own)
            self._there = [*self._there, (own, network)][-_KEPT:]
            return network

    def _checked(self, name: str, value: Any) -> Array:
        tensor = self.tensors[name]
        if not isinstance(value, np.ndarray) or (value.shape, value.dtype) != (
            tensor.shape,
            tensor.dtype,
        ):
            raise InputError(f"input {name!r} must be left out, or be an array of {tensor}")
        return value


def _same(a: Given, b: Given) -> bool:
    return a.keys() == b.keys() and all(x.tobytes() == b[name].tobytes() for name, x in a.items())

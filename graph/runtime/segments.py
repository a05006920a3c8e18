"""The parts of a network that run one after another: native steps in one call, or a NumPy step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from fastrun.graph.build.steps import NumpyStep, Port
from fastrun.graph.core.model import Array
from fastrun.graph.reference.interpreter import results
from fastrun.kernels.native.team import Script


@dataclass(frozen=True)
class Native:
    """Native steps that follow one another; `owners` has the index of each one's step."""

    script: Script
    owners: Sequence[int]


class Calculation:
    """A NumPy step, and its operands and results in the arena; `owners` has its index."""

    def __init__(self, step: NumpyStep, owner: int, view: Callable[[Port], Array]) -> None:
        self.owners = [owner]
        self._step = step
        self._reads = {x: (view(port), port.shape) for x, port in step.reads.items()}
        self._writes = {x: view(port) for x, port in step.writes.items()}

    def run(self, values: dict[str, Any]) -> float:
        """Compute; `values` are those outside of the arena. Returns the seconds it took.

        Raises:
            GraphError: the operator does not fit its operands.
        """
        begin = perf_counter()
        self.results(values)
        for name in self._step.last:
            values.pop(name, None)
        return perf_counter() - begin

    def results(self, values: dict[str, Any]) -> dict[str, Any]:
        """As `run`, but no value is forgotten. Returns the results by name.

        They may lie in the memory of the operands.
        """
        step = self._step
        operands = [self._operand(x, values) for x in step.node.inputs]
        with np.errstate(all="ignore"):  # as in kernels
            found = results(step.node, operands, step.tensors)
        for name, value in found.items():
            known = step.tensors.get(name)
            if name in self._writes:
                view = self._writes[name]
                view[...] = value.reshape(view.shape)
            elif known is not None:
                # A value may be a view of an operand, whose memory is used again.
                values[name] = np.array(value, known.dtype)
            else:
                values[name] = own(value)
        return found

    def _operand(self, name: str, values: Mapping[str, Any]) -> Any:
        if name in self._reads:
            view, shape = self._reads[name]
            return view.reshape(shape)
        if name in self._step.constants:
            return self._step.constants[name]
        return values[name] if name else None


def own(value: Any) -> Any:
    """A value, or every member of a sequence, in memory of its own."""
    if isinstance(value, list):
        return [own(x) for x in value]
    return np.array(value) if isinstance(value, np.ndarray) else value

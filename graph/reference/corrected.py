"""Operators that take the place of those of ONNX's reference implementation that are wrong.

They are classes of that implementation, so that they also serve inside of loops and branches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

from fastrun.graph.core.model import Array
from fastrun.graph.reference.recurrent import GRU, LSTM, RNN
from fastrun.graph.reference.sampled import GridSample, NonMaxSuppression
from fastrun.graph.reference.vectorised import (
    Col2Im,
    DeformConv,
    GatherND,
    Scatter,
    ScatterElements,
    TopK,
)


class _WithBody(OpRun):
    """An operator that runs a graph several times."""

    op_domain = ""
    body: Any

    def need_context(self) -> bool:
        """The body may read every value around it."""
        return True

    def _step(self, values: dict[str, Any], context: dict[str, Any] | None) -> list[Any]:
        return list(self.body.run(None, {**(context or {}), **values}))


class Loop(_WithBody):
    """ONNX's own joins the results of the iterations as rows, whatever their shape.

    It does nothing without a condition.
    """

    def _run(
        self, trips: Any = None, condition: Any = None, *states: Any, context: Any = None, **_: Any
    ) -> tuple[Any, ...]:
        names, carried, count = self.body.input_names, [*states], 0
        scanned: list[list[Array]] = [[] for _ in self.body.output_names[1 + len(states) :]]
        going = condition is None or bool(np.all(condition))
        while going and (trips is None or count < int(np.reshape(trips, ()))):
            values = [np.array(count, np.int64), np.array(going), *carried]
            going, *found = self._step(dict(zip(names, values, strict=True)), context)
            going, count = bool(np.all(going)), count + 1
            carried = found[: len(states)]
            for results, value in zip(scanned, found[len(states) :], strict=True):
                results.append(value)
        return (*carried, *(np.stack(x) if x else np.empty((0,), np.float32) for x in scanned))


class Scan(_WithBody):
    """ONNX's own lacks axes and directions."""

    num_scan_inputs: int

    def _run(self, *args: Any, context: Any = None, **given: Any) -> tuple[Any, ...]:
        states, names = len(args) - self.num_scan_inputs, self.body.input_names
        carried, inputs = [*args[:states]], args[states:]
        results = len(self.body.output_names) - states

        def option(name: str, count: int) -> list[int]:
            return list(given.get(name) or getattr(self, name, None) or [0] * count)

        turned = option("scan_input_directions", len(inputs))
        axes = option("scan_input_axes", len(inputs))
        moved = [
            np.moveaxis(x, axis, 0)[:: -1 if back else 1]
            for x, axis, back in zip(inputs, axes, turned, strict=True)
        ]
        scanned: list[list[Array]] = [[] for _ in range(results)]
        for parts in zip(*moved, strict=True):
            values = dict(zip(names, [*carried, *parts], strict=True))
            found = self._step(values, context)
            carried = found[:states]
            for those, value in zip(scanned, found[states:], strict=True):
                those.append(value)
        turned = option("scan_output_directions", results)
        axes = option("scan_output_axes", results)
        whole = (
            np.stack(values[:: -1 if back else 1], axis)
            for values, axis, back in zip(scanned, axes, turned, strict=True)
        )
        return (*carried, *whole)


class NonZero(OpRun):
    """For ONNX's own a single number has no axis; for onnxruntime it is a list of one."""

    op_domain = ""

    def _run(self, x: Array, **_: Any) -> tuple[Array]:
        return (np.vstack(np.nonzero(np.atleast_1d(x))).astype(np.int64),)


class GatherElements(OpRun):
    """ONNX's own reads only the first index of each row along an axis of more than 64 entries."""

    op_domain = ""

    def _run(self, x: Array, indices: Array, **given: Any) -> tuple[Array]:
        axis = int(given.get("axis") or getattr(self, "axis", None) or 0)
        places: list[Array] = [*np.indices(indices.shape)]
        places[axis] = np.where(indices < 0, indices + x.shape[axis], indices)
        return (x[tuple(places)],)


CORRECTED: tuple[type[OpRun], ...] = (
    Loop, Scan, NonZero, GatherElements, RNN, GRU, LSTM, GridSample, NonMaxSuppression, TopK,
    GatherND, Scatter, ScatterElements, Col2Im, DeformConv,
)  # fmt: skip

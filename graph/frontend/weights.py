"""Decides which weights of a quantised model lie on a grid, and why others do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fastrun.graph.core.grid import Grid, weight_axis
from fastrun.graph.core.model import Array, Node
from fastrun.graph.core.ops import ConvTranspose, Identity, Reshape, Transpose
from fastrun.graph.frontend.steps import Steps
from fastrun.kernels.core.dtype import S8

# All sums of a layer's products fit into 32 bits.
_LARGEST_SUM = 2**31 - 1


class Weights:
    """The constants that a model stores as integers. `constants` are those of the importer."""

    def __init__(self, constants: Mapping[str, Array]) -> None:
        self._constants = constants
        self._steps: dict[str, Steps] = {}

    def add(self, name: str, steps: Steps) -> None:
        """Note the steps of a constant that was dequantised."""
        self._steps[name] = steps

    def same_filters(self, name: str, before: str) -> None:
        """Note a constant with values of another one, each on the axis of its output channel."""
        steps = self._steps.get(before)
        if steps and not steps.block:
            self._steps[name] = steps

    def follow(self, node: Node) -> None:
        """Follow integers through a node that moves constants and was computed already."""
        steps = self._steps.get(node.input(0))
        moved = _through(node, steps, self._constants) if steps else None
        if moved:
            self._steps[node.output] = moved

    def grids(self, nodes: Sequence[Node]) -> tuple[dict[str, Grid], list[str]]:
        """The grids of weights, and a line for each layer that has none and says why."""
        found, unfit, notes = dict[str, Grid](), set[str](), list[str]()
        for node in nodes:
            name = node.input(1)
            if name not in self._steps or name not in self._constants:
                continue
            grid = self._grid(node)
            if isinstance(grid, Grid) and found.get(name, grid) != grid:
                grid = "its weights belong to another layer too, with other output channels"
            if isinstance(grid, Grid) and name not in unfit:
                found[name] = grid
            elif isinstance(grid, str):
                notes.append(f"node {node.label} runs in float32: {grid}")
                unfit.add(name)
        return {name: grid for name, grid in found.items() if name not in unfit}, notes

    def _grid(self, node: Node) -> Grid | str | None:
        """The grid of a node's weights, or why they have none; None for what is no weights."""
        steps, weights = self._steps[node.inputs[1]], self._constants[node.inputs[1]]
        axis = weight_axis(node.op)
        if isinstance(node.op, ConvTranspose) and axis is None:
            return "it is a transposed convolution in groups"
        if axis is None or weights.ndim < 2 or weights.dtype != np.float32:
            return None
        if axis == 1 and weights.ndim > 2 and not isinstance(node.op, ConvTranspose):
            return "its weights are several matrices"
        grid = steps.weight_grid(weights.shape, axis)
        if isinstance(grid, str) or grid.block:
            return grid
        stored = np.moveaxis(grid.stored(weights, axis), axis, 0)
        low, high = S8.range
        if stored.min(initial=0) >= low and stored.max(initial=0) <= high:
            grid = replace(grid, dtype=S8)
        sizes = np.abs(stored.reshape(len(stored), -1), dtype=np.int32)
        sums = 255 * sizes.sum(axis=1, dtype=np.int64)
        return grid if sums.max(initial=0) <= _LARGEST_SUM else "its sums may exceed 32 bits"


def _through(node: Node, steps: Steps, constants: Mapping[str, Array]) -> Steps | None:
    """The steps behind a node that moves weights; None if they are lost."""
    if isinstance(node.op, Identity) or (
        steps.axis is None and isinstance(node.op, Reshape | Transpose)
    ):
        return steps
    if steps.axis is None:
        return None
    if isinstance(node.op, Transpose):
        order, scale, zero = node.op.order, steps.scale, steps.zero
        if steps.block:
            scale, zero = scale.transpose(order), zero.transpose(order)
        return replace(steps, scale=scale, zero=zero, axis=order.index(steps.axis))
    if isinstance(node.op, Reshape) and not steps.block:
        before, after = constants[node.inputs[0]].shape, constants[node.output].shape
        outer = math.prod(before[: steps.axis])
        for axis, size in enumerate(after):
            if size == before[steps.axis] and math.prod(after[:axis]) == outer:
                return replace(steps, axis=axis)
    return None

"""Reads the scales and zero points of ONNX's quantised tensors, and checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from fastrun.graph.core.errors import GraphError
from fastrun.graph.core.grid import Grid, is_scale
from fastrun.graph.core.model import Array, Shape
from fastrun.graph.frontend.file import label
from fastrun.kernels.core.dtype import I16, S8, U8


@dataclass(frozen=True)
class Steps:
    """How the integers of a tensor stand for numbers: (stored - zero) * scale.

    Without an `axis`, scale and zero point are single numbers. Else there is one for each entry
    of the axis, or for `block` entries of it if that is not 0: `scale` and `zero` have then the
    tensor's shape but for this axis. `dtype` is the type of the integers in the file, `rounds`
    as in `Grid`.
    """

    scale: Array
    zero: Array
    dtype: np.dtype[Any]
    axis: int | None = None
    block: int = 0
    rounds: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steps) and (
            (self.dtype, self.axis, self.block) == (other.dtype, other.axis, other.block)
            and self.rounds == other.rounds
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
        )

    @property
    def range(self) -> tuple[int, int]:
        """The least and the largest integer of the type."""
        half = 2 ** (int(self.dtype.name.lstrip("uint")) - 1)
        return (0, 2 * half - 1) if self.dtype.name[0] == "u" else (-half, half - 1)

    def wide(self, shape: Shape) -> tuple[Array, Array]:
        """Scale and zero point in shapes that broadcast to that of the tensor."""
        if self.axis is None:
            return self.scale, self.zero
        if self.block:
            length = shape[self.axis]
            scale, zero = (
                np.repeat(part, self.block, self.axis).take(range(length), self.axis)
                for part in (self.scale, self.zero)
            )
            return scale, zero
        along = [-1 if i == self.axis else 1 for i in range(len(shape))]
        return self.scale.reshape(along), self.zero.reshape(along)

    def numbers(self, stored: Array) -> Array:
        """The numbers for which integers stand, in the type of the scale."""
        scale, zero = self.wide(stored.shape)
        # Differences of shorter integers fit into 32 bits.
        wide = np.int64 if stored.dtype.itemsize > 2 else np.int32
        found: Array = np.subtract(stored, zero, dtype=wide, casting="unsafe").astype(scale.dtype)
        found *= scale
        return found

    def integers(self, numbers: Array) -> Array:
        """The integers for numbers: rounded with ties to even, then shifted, then clipped."""
        scale, zero = self.wide(numbers.shape)
        with np.errstate(all="ignore"):
            steps = np.rint(numbers / scale).astype(np.float64) + zero.astype(np.float64)
            return np.clip(np.nan_to_num(steps), *self.range).astype(self.dtype)

    def grid(self) -> Grid | None:
        """The grid of an activation of 8 bits with one scale; signed ones become unsigned."""
        if self.axis is not None or self.dtype not in (np.int8, np.uint8):
            return None
        shift = 128 if self.dtype == np.int8 else 0
        return Grid(float(self.scale), int(self.zero) + shift, U8)

    def weight_grid(self, shape: Shape, axis: int) -> Grid | str:
        """The grid of weights with output channels on `axis`, or why they have none."""
        if self.block:
            return self._blocked(shape, axis)
        if self.axis not in (None, axis):
            return f"its weights have a scale per entry of axis {self.axis}, not per output channel"
        low, high = self.range
        if high - low > 255:
            return f"its weights are {self.dtype}"
        centred = bool((self.zero.astype(np.int64) == (low + high + 1) // 2).all())
        scale = np.broadcast_to(self.scale.astype(np.float32), shape[axis : axis + 1])
        return Grid(np.array(scale), 0, S8 if centred else I16)

    def _blocked(self, shape: Shape, axis: int) -> Grid | str:
        if len(shape) != 2 or self.axis == axis:
            return "its weights have scales in blocks that are not along the axis of the sums"
        first = self.range[0]
        zero = (self.zero.astype(np.int64) - first).astype(np.uint8)
        scale = np.where(self.scale == 0, 1, self.scale).astype(np.float32)
        if axis == 1:
            scale, zero = scale.T, zero.T
        return Grid(np.array(scale), np.array(zero), U8, block=self.block, rounds=self.rounds)


ROUNDS = "rounds"
"""Our own attribute of a DequantizeLinear that stands for a part of MatMulNBits: see `Grid`."""


def is_whole(dtype: np.dtype[Any]) -> bool:
    """Whether values of a type are integers, of 4 bits or less too."""
    return dtype.name.startswith(("int", "uint"))


def read_steps(
    node: onnx.NodeProto, shape: Shape, dtype: np.dtype[Any], scale: Array, zero: Array | None
) -> Steps:
    """The steps of the node's integers, of a type and shape.

    Raises:
        GraphError: scale or zero point are unusable, or do not fit the tensor.
    """
    given = {a.name: a.i for a in node.attribute}
    axis, block = given.get("axis", 1), given.get("block_size", 0)
    zero = np.zeros(scale.shape, dtype) if zero is None else zero
    if zero.dtype != dtype:
        raise _unusable(node, f"its zero point is {zero.dtype}, its integers are {dtype}")
    # In blocks onnxruntime's quantiser gives the largest value the sign that has a step more, and
    # blocks of zeros the scale 0.
    checked = np.where(scale == 0, 1, np.abs(scale)) if block else scale
    if scale.dtype.kind != "f" or not is_scale(checked):
        raise _unusable(
            node, f"its scale is {_first(scale)}: scales are positive normal float32 numbers"
        )
    if zero.size != scale.size or (zero.shape != scale.shape and scale.size != 1):
        raise _unusable(node, f"it has {scale.size} scales and {zero.size} zero points")
    if scale.size == 1 and not block:
        return Steps(scale.reshape(()), zero.reshape(()), dtype)
    if not -len(shape) <= axis < len(shape):
        raise _unusable(node, f"it has scales along axis {axis} of {shape}")
    axis %= len(shape)
    length = -(-shape[axis] // block) if block > 0 else shape[axis]
    wanted = (*shape[:axis], length, *shape[axis + 1 :]) if block > 0 else (length,)
    if block < 0 or scale.shape != wanted:
        raise _unusable(node, f"it has {scale.shape} scales for axis {axis} of {shape}")
    return Steps(scale, zero, dtype, axis, block, bool(given.get(ROUNDS, 0)))


def _first(scale: Array) -> str:
    """The first number that cannot be a scale."""
    return next((f"{float(s)}" for s in scale.reshape(-1) if not is_scale(float(s))), "no float")


def _unusable(node: onnx.NodeProto, why: str) -> GraphError:
    return GraphError(f"node {label(node)} cannot be used: {why}")

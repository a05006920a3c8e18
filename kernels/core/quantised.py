"""Integer convolution: scales and zero points as an operand, and the true result.

Input u8 means (stored - zero) * scale, weights mean stored * scale of their output channel. The
zero point of the input is part of the bias, so that a kernel sums only products of stored numbers:

    sum of x * w + bias,   bias = round(b / (scale_x * scale_w)) - zero_x * sum of w

The kernel turns each sum into float32, multiplies it by its channel's scale, adds the residual,
applies the activation, and rounds to the output's grid: ties to even, then + zero, then clipped.
A product and the sum or the rounding behind it are one instruction, which rounds once: adding
1.5 * 2^23 to a float32 below 2^22 leaves it, rounded, in the low bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.cpu import whole_lines
from fastrun.kernels.core.dtype import F32, U8
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import activate, convolve

# The input's zero point when a kernel is checked and timed.
TRIAL_ZERO = 119

SCALARS = ("shift", "floor", "ceiling", "add_scale", "add_shift", "inverse")
"""The scalars of an integer convolution in the order in which they follow the scales.

`shift` is an int32 that turns the bits of a result plus `ROUNDING` into the output: its zero point
less these bits. `floor` and `ceiling` are bytes, the bounds of relu and relu6. A residual is its
bytes * `add_scale` + `add_shift`. `inverse` turns real numbers into output steps after an
activation that must see real numbers.
"""

ROUNDING = 1.5 * 2**23
"""What rounds a float32 to an integer when it is added: ties to even, below 2^22."""

LINEAR = ("", "relu", "relu6")


def is_exact(p: ConvProblem) -> bool:
    """Whether all arithmetic after the sums is the same in LLVM and in NumPy, to the bit."""
    return p.activation in LINEAR or p.activation.startswith("leaky")


def in_steps(p: ConvProblem) -> bool:
    """Whether the epilogue computes in steps of the output, or in real numbers.

    A leaky or linear activation commutes with scaling; relu and relu6 are bounds of the result.
    """
    return is_exact(p) and p.precision.dst is U8


def operand_room(p: ConvProblem) -> int:
    """Elements from the biases to the scales of the operand, and from these to the scalars."""
    return whole_lines(p.oc + READ_SLACK)


def operand_size(p: ConvProblem) -> int:
    """Elements of the operand."""
    return 2 * operand_room(p) + len(SCALARS)


@dataclass(frozen=True)
class Scales:
    """Scales and zero points of a convolution's tensors; `weights` has one for each channel.

    Those of a tensor that is float32 are 1 and 0.
    """

    src: float
    src_zero: int
    weights: NDArray[np.float32]
    dst: float = 1.0
    dst_zero: int = 0
    add: float = 1.0
    add_zero: int = 0

    def operand(
        self, p: ConvProblem, weights: NDArray[Any], bias: NDArray[Any] | None
    ) -> NDArray[np.float32]:
        """What a kernel reads as its bias: int32 biases, float32 scales, float32 `SCALARS`.

        `weights` are the integers (oc, c/groups, kh, kw), `bias` (oc,) real numbers. All of it is
        seen as float32.

        Raises:
            ValueError: a bias does not fit int32 in steps of the sums, or the output's scale is so
                small that outputs could be 2^22 steps.
        """
        found = np.zeros(operand_size(p), np.float32)
        step, whole = self._steps(weights, bias)
        # The sum of all products must fit beside it.
        most = p.depth * 255 * p.precision.bound
        if not np.all(np.abs(whole) + most < 1 << 31):
            raise ValueError("a bias is too large for sums of int32")
        found[: p.oc].view(np.int32)[:] = whole
        start, steps = operand_room(p), in_steps(p)
        found[start : start + p.oc] = step / (self.dst if steps else 1.0)
        scalars = found[2 * start :]
        scalars[3:] = self._add_scale(p), -self._add_scale(p) * self.add_zero, 1.0 / self.dst
        ceiling = 255.0
        if p.activation == "relu6":
            ceiling = min(ceiling, np.rint(np.float32(6.0 / self.dst)) + self.dst_zero)
        scalars[:1].view(np.int32)[:] = self.dst_zero - int(np.float32(ROUNDING).view(np.int32))
        scalars[1:3].view(np.uint32)[:] = self.dst_zero, int(ceiling)
        if p.precision.dst is U8 and not self.rounds(weights, bias, p.add):
            raise ValueError("the output's scale is too small for its sums")
        return found

    def rounds(self, weights: NDArray[Any], bias: NDArray[Any] | None, add: bool) -> bool:
        """Whether no output can be 2^22 steps, where float32 has no room to round.

        The weights are integers (oc, ...), the bias real numbers (oc,); `add`: there is a residual.
        """
        step, whole = self._steps(weights, bias)
        filters = weights.reshape(len(weights), -1)
        above = np.maximum(filters, 0).sum(axis=1, dtype=np.int64)
        below = np.minimum(filters, 0).sum(axis=1, dtype=np.int64)
        most, least = 255 * above + whole, 255 * below + whole
        largest = np.maximum(np.abs(most), np.abs(least)) * step / self.dst
        return bool(largest.max(initial=0.0) + add * 255 * self.add / self.dst < 1 << 22)

    def _steps(
        self, weights: NDArray[Any], bias: NDArray[Any] | None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What a step of each channel's sums means, and its bias in them, zero point included."""
        step = self.src * self.weights.astype(np.float64)
        sums = weights.reshape(len(weights), -1).sum(axis=1, dtype=np.int64)
        real = np.zeros(len(weights)) if bias is None else bias.astype(np.float64)
        return step, np.rint(real / step) - self.src_zero * sums

    def _add_scale(self, p: ConvProblem) -> float:
        return self.add / self.dst if in_steps(p) else self.add

    def sums(
        self,
        p: ConvProblem,
        x: NDArray[Any],
        weights: NDArray[Any],
        bias: NDArray[Any] | None = None,
    ) -> NDArray[np.float64]:
        """The integer sums (n, oc, oh, ow), bias included, which float64 holds exactly."""
        plain = replace(p, types="", activation="", add=False)
        found = convolve(plain, x.astype(np.float64) - self.src_zero, weights)
        if bias is not None:
            step = self.src * self.weights.astype(np.float64)
            found += np.rint(bias / step).reshape(1, -1, 1, 1)
        return found

    def truth(
        self, p: ConvProblem, sums: NDArray[np.float64], add: NDArray[Any] | None = None
    ) -> NDArray[np.float64]:
        """The output in float64 before it is rounded: in steps plus zero point, or real numbers.

        `add` is the residual as stored: u8, or float32 if the output is float32.
        """
        real = sums * (self.src * self.weights.astype(np.float64)).reshape(1, -1, 1, 1)
        if add is not None:
            real += (add.astype(np.float64) - self.add_zero) * self.add
        real = activate(real, p.activation)
        return real / self.dst + self.dst_zero if p.precision.dst is U8 else real

    def stored(
        self, p: ConvProblem, sums: NDArray[np.float64], add: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """The output as kernels store it, computed in float32 in their order.

        It is the same to the bit, unless the activation needs an exponential.
        """
        start, exact = operand_room(p), np.float64
        operand = self.operand(p, np.zeros(p.weight_shape, np.int8), None)
        known = dict(zip(SCALARS, operand[2 * start :].astype(exact), strict=True))
        scales = operand[start : start + p.oc].reshape(1, -1, 1, 1).astype(exact)
        # Products of two float32 are exact in float64.
        value = sums.astype(np.float32).astype(exact) * scales
        if add is not None:
            residual = add.astype(np.float32)
            if p.precision.dst is U8:
                shifted = add.astype(exact) * known["add_scale"] + known["add_shift"]
                residual = shifted.astype(np.float32)
            value = value + residual
        plain = p.activation in LINEAR and add is None
        if not (plain and in_steps(p)):
            value = value.astype(np.float32)
        if p.precision.dst is not U8:
            return activate(value, p.activation).astype(np.float32)
        if not in_steps(p):
            value = activate(value, p.activation).astype(np.float32) * known["inverse"]
        elif p.activation not in LINEAR:
            value = activate(value, p.activation).astype(np.float32)
        whole = np.rint(value) + self.dst_zero
        floor, ceiling = (int(operand[2 * start + i :].view(np.uint8)[0]) for i in (1, 2))
        if p.activation in ("relu", "relu6"):
            whole = np.maximum(whole, floor)
        if p.activation == "relu6":
            whole = np.minimum(whole, ceiling)
        found: NDArray[Any] = np.clip(whole, 0, 255).astype(np.uint8)
        return found


def trial_operands(p: ConvProblem, seed: int) -> tuple[dict[str, NDArray[Any]], Scales]:
    """Operands of an integer problem for checking and timing, and their scales.

    Keys are x, weights, bias, add. Random numbers alone never meet saturation: a quarter of the
    pixels and of the filters have runs of 255 against runs of the largest and the least weight,
    which overflow 16 bits at the second product.
    """
    rng, types = np.random.default_rng(seed), p.precision
    x = rng.integers(0, 256, (p.n, p.c, p.h, p.w), np.uint8)
    x[:, :, rng.random((p.h, p.w)) < 0.25] = 255
    kind = types.weights.numpy
    if types.bits > 8:  # bytes less a zero point
        least = -rng.integers(0, 256, p.oc)
        weights = (rng.integers(0, 256, p.weight_shape) + least[:, None, None, None]).astype(kind)
        extremes = np.where(rng.random(p.oc) < 0.5, least, least + 255).astype(kind)
    else:
        low, high = -types.bound, types.largest
        weights = rng.integers(low, high + 1, p.weight_shape).astype(kind)
        extremes = np.where(rng.random(p.oc) < 0.5, high, low).astype(kind)
    chosen = rng.random(p.oc) < 0.25
    half = max(1, p.group_c // 2)
    weights[chosen, :half] = extremes[chosen, None, None, None]
    filters = weights.reshape(p.oc, -1).astype(np.float64)
    scales = rng.uniform(0.5, 2.0, p.oc).astype(np.float32)
    # Outputs of a standard deviation of about 40 steps, whatever the weights are.
    spread = np.sqrt((filters**2).sum(axis=1)) * 80
    scales *= (1 / np.maximum(spread, 1)).astype(np.float32)
    known = Scales(0.75, TRIAL_ZERO, scales, 1 / 40, 101, 0.7 / 40, 77)
    bias = rng.standard_normal(p.oc).astype(np.float32)
    shape = (p.n, p.oc, p.oh, p.ow)
    add = rng.integers(0, 256, shape, np.uint8)
    if types.dst is F32:
        add = rng.standard_normal(shape, np.float32)
        known = Scales(0.75, TRIAL_ZERO, scales)
    return {"x": x, "weights": weights, "bias": bias, "add": add}, known


def steps_off(found: NDArray[Any], truth: NDArray[np.float64]) -> tuple[float, float]:
    """(rms, maximum) of the error that a kernel adds to that of rounding, in output steps.

    Both are 0 for a kernel whose output is the true result, rounded.
    """
    ideal = np.clip(np.rint(truth), 0, 255)
    exact = np.clip(truth, 0, 255)
    extra = np.square(found - exact).mean() - np.square(ideal - exact).mean()
    return math.sqrt(max(0.0, float(extra))), float(np.abs(found - ideal).max())

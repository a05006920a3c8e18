"""What happens to an accumulator on its way to memory: residual, activation, rounding.

The bias is not added here: accumulators start with it, which costs nothing. Scales and zero points
of integers are operands (`kernels.core.quantised`), so one kernel serves all layers of a shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastrun.kernels.codegen.builder import Buffer, Int, Vec, fma
from fastrun.kernels.codegen.elementary import exp, gelu, gelu_tanh, sigmoid, tanh
from fastrun.kernels.codegen.estimates import quotient
from fastrun.kernels.codegen.narrow import side_by_side
from fastrun.kernels.codegen.values import Vectors
from fastrun.kernels.core.dtype import F32, I32, U8, DType
from fastrun.kernels.core.problem import ConvProblem, slope
from fastrun.kernels.core.quantised import LINEAR, ROUNDING, SCALARS, in_steps, operand_room


def finish(p: ConvProblem, total: Vec, add: Vec | None, channel: Int = 0) -> Vec:
    """`activation(total + add)` in the output's type; `add` is the residual, if there is one.

    Sums of integers, of the channels from `channel` on, are scaled before.
    """
    if p.precision.integer:
        return finish_run(p, [total], [add], [channel])
    value = total if add is None else total + add.to(F32)
    return activate(value, p.activation).to(p.precision.dst)


def longest_run(p: ConvProblem) -> int:
    """Vectors that are best finished together where they lie side by side: four fill a register."""
    return 4 if p.precision.dst is U8 else 1


def finish_run(
    p: ConvProblem, totals: Sequence[Vec], adds: Sequence[Vec | None], channels: Sequence[Int]
) -> Vec:
    """`finish` of up to `longest_run` vectors of sums that lie side by side, as one vector.

    It has a power of two of lanes; those behind the last are undefined.
    """
    if not p.precision.integer:
        (total,), (add,) = totals, adds
        return finish(p, total, add)
    k, lanes = totals[0].k, totals[0].lanes
    return finish_scaled(p, totals, adds, [scales_at(p, k, i, lanes) for i in channels])


def scales_at(p: ConvProblem, k: Vectors, channel: Int, lanes: int) -> Vec:
    """The scales of output channels of integers."""
    return Buffer(k, "%bias", (1,)).at(operand_room(p)).load(channel, lanes=lanes)


def finish_scaled(
    p: ConvProblem,
    totals: Sequence[Vec],
    adds: Sequence[Vec | None],
    scales: Sequence[Vec],
    quads: Sequence[int] = (),
) -> Vec:
    """`finish_run` of integers with the channels' scales, in any order of channels.

    `quads` is the order of bytes, as in `narrow.side_by_side`.
    """
    if p.precision.dst is F32:
        (total,), (add,), (scale,) = totals, adds, scales
        return _scaled(p, total, add, scale)
    k = totals[0].k
    steps = [_steps(p, *one) for one in zip(totals, adds, scales, strict=True)]
    found = side_by_side(steps, quads)
    if p.activation in ("relu", "relu6"):
        found = found.max(_scalar(p, k, "floor", U8, found.lanes))
    if p.activation == "relu6":
        found = found.min(_scalar(p, k, "ceiling", U8, found.lanes))
    return found


def _scalar(p: ConvProblem, k: Vectors, name: str, dtype: DType, lanes: int) -> Vec:
    place = Buffer(k, "%bias", (1,)).at(2 * operand_room(p) + SCALARS.index(name))
    return replace(place, dtype=dtype).splat(0, lanes=lanes)


def _scaled(p: ConvProblem, total: Vec, add: Vec | None, scales: Vec) -> Vec:
    """Sums, which may be float32 already, as float32 output."""
    value = total.to(F32)
    value = value * scales if add is None else fma(value, scales, add)
    return activate(value, p.activation)


def _steps(p: ConvProblem, total: Vec, add: Vec | None, scales: Vec) -> Vec:
    """Sums, which may be float32 already, as int32 output before it is clipped to bytes."""
    k, lanes = total.k, total.lanes

    def scalar(name: str, dtype: DType = F32) -> Vec:
        return _scalar(p, k, name, dtype, lanes)

    value, rounding = total.to(F32), k.const(ROUNDING, lanes)
    linear = p.activation in LINEAR and in_steps(p)
    if linear and add is None:
        rounded = fma(value, scales, rounding)
    else:
        if add is None:
            value = value * scales
        else:
            residual = fma(add.to(F32), scalar("add_scale"), scalar("add_shift"))
            value = fma(value, scales, residual)
        if not linear:
            value = activate(value, p.activation)
        rounded = value + rounding if in_steps(p) else fma(value, scalar("inverse"), rounding)
    return rounded.bits_as(I32) + scalar("shift", I32)


def activate(x: Vec, activation: str) -> Vec:
    """The activation named as in `ConvProblem`. NaN passes through."""
    k = x.k
    if activation == "relu":
        return x.max(0.0)
    if activation == "relu6":
        return x.max(0.0).min(6.0)
    if activation == "hardsigmoid":
        return fma(x, k.const(1 / 6, x.lanes), k.const(0.5, x.lanes)).max(0.0).min(1.0)
    if activation == "hardswish":
        return x * activate(x, "hardsigmoid")
    if activation == "sigmoid":
        return sigmoid(x)
    if activation == "silu":
        return quotient(x, exp(x * -1.0) + 1.0)
    if activation == "gelu":
        return gelu(x)
    if activation == "gelu_tanh":
        return gelu_tanh(x)
    if activation == "tanh":
        return tanh(x)
    if (factor := slope(activation)) is not None:
        return x.max(x * factor)
    return x

"""What happens to an accumulator on its way to memory: residual, activation, rounding.

The bias is not added here: accumulators start with it, which costs nothing. Scales and zero points
of integers are operands (`kernels.core.quantised`), so one kernel serves all layers of a shape.
"""

from __future__ import annotations

from fastrun.kernels.codegen.builder import Buffer, Int, Vec, fma
from fastrun.kernels.codegen.elementary import exp, gelu, sigmoid, tanh
from fastrun.kernels.core.dtype import F32, I32, U8
from fastrun.kernels.core.problem import ConvProblem, slope
from fastrun.kernels.core.quantised import LINEAR, SCALARS, in_steps, operand_room


def finish(p: ConvProblem, total: Vec, add: Vec | None, channel: Int = 0) -> Vec:
    """`activation(total + add)` in the output's type; `add` is the residual, if there is one.

    Sums of integers, of the channels from `channel` on, are scaled before.
    """
    if p.precision.integer:
        return _requantised(p, total, add, channel)
    value = total if add is None else total + add.to(F32)
    return activate(value, p.activation).to(p.precision.dst)


def _requantised(p: ConvProblem, total: Vec, add: Vec | None, channel: Int) -> Vec:
    """The output for sums of integers, which may be float32 already."""
    k, lanes = total.k, total.lanes

    def scalar(name: str) -> Vec:
        place = 2 * operand_room(p) + SCALARS.index(name)
        return Buffer(k, "%bias", (1,)).splat(place, lanes=lanes)

    scales = Buffer(k, "%bias", (1,)).at(operand_room(p))
    value = total.to(F32) * scales.load(channel, lanes=lanes)
    if add is not None:
        residual = add.to(F32)
        if add.dtype is U8:
            residual = (residual - scalar("add_zero")) * scalar("add_scale")
        value = value + residual
    if p.precision.dst is F32:
        return activate(value, p.activation)
    if not in_steps(p):
        value = activate(value, p.activation) * scalar("inverse")
    elif p.activation not in LINEAR:
        value = activate(value, p.activation)
    bounded = value.max(scalar("low")).min(scalar("high"))
    return (bounded.to(I32) + scalar("zero").to(I32)).to(U8)


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
        return x / (exp(x * -1.0) + 1.0)
    if activation == "gelu":
        return gelu(x)
    if activation == "tanh":
        return tanh(x)
    if (factor := slope(activation)) is not None:
        return x.max(x * factor)
    return x

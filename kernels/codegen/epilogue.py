"""What happens to an accumulator on its way to memory: residual, then activation.

The bias is not added here: accumulators start with it, which costs nothing.
"""

from __future__ import annotations

from fastrun.kernels.codegen.builder import Vec, fma
from fastrun.kernels.codegen.elementary import exp, gelu, sigmoid, tanh
from fastrun.kernels.core.problem import ConvProblem, slope


def finish(p: ConvProblem, value: Vec, add: Vec | None) -> Vec:
    """`activation(value + add)`; `add` is given where the problem has a residual."""
    if add is not None:
        value = value + add
    return activate(value, p.activation)


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

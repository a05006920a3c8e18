"""What happens to an accumulator on its way to memory: residual, then activation.

Bias is not here: it is what accumulators start from, which costs nothing.
"""

from __future__ import annotations

from kernels.codegen.builder import Vec, fma
from kernels.core.problem import ConvProblem


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
    if activation == "hardswish":
        gate = fma(x, k.const(1 / 6, x.lanes), k.const(0.5, x.lanes))
        return x * gate.max(0.0).min(1.0)
    if activation == "sigmoid":
        one = k.const(1.0, x.lanes)
        return one / (one + exp(x * -1.0))
    return x


# Taylor terms of 2^f = e^(f ln 2) on |f| <= 1/2: below one unit in the last place at degree 6.
_EXP2 = (1.0, 0.6931471805599453, 0.2402265069591007, 0.05550410866482158,
         0.009618129107628477, 0.0013333558146428441, 0.00015403530393381608)  # fmt: skip


def exp(x: Vec) -> Vec:
    """e^x within 2e-7 relative: 2^n times a polynomial. Clamped where float32 ends; NaN stays."""
    k = x.k
    scaled = x.max(-87.0).min(88.0) * 1.4426950408889634
    whole = k.intrinsic("rint", scaled)
    f = scaled - whole
    result = k.const(_EXP2[-1], x.lanes)
    for c in reversed(_EXP2[:-1]):
        result = fma(result, f, k.const(c, x.lanes))
    return k.scale_by_power_of_two(result, whole)

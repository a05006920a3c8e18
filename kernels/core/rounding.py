"""Which problems of float32 may round their weights to 16 bits, and where that can be faster.

Tensors stay float32. `f32f16` only reads less, so it pays where weights do not stay in the cache.
`f32bf16` multiplies pairs of bf16 where the processor can, and then rounds the input as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F16, F32
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.types import Types

Roundings = Callable[[ConvProblem], Sequence[str]]
"""The types as which a problem of float32 may run beside its own."""


def no_rounding(p: ConvProblem) -> Sequence[str]:
    """No types but float32."""
    return ()


def roundings(limit: float | None, cpu: Cpu) -> Roundings:
    """The types within a limit of the rms error, relative to the output's, that may be faster.

    Without a limit weights are not rounded.
    """
    # The help of commands needs no numpy.
    from fastrun.kernels.core.template import ROUNDING

    pairs = "+avx512bf16" in cpu.features.split(",")

    def found(p: ConvProblem) -> Sequence[str]:
        if limit is None or p.types or p.groups > 1:
            return ()
        streams = F32.bytes(p.oc * p.depth) > cpu.l2 // 2
        halves = [Types(F32, F16, F32, 16)] if streams and ROUNDING[F16] <= limit else []
        both = math.sqrt(2) * ROUNDING[BF16]
        doubled = pairs and p.c % 2 == 0 and both <= limit
        doubles = [Types(F32, BF16, F32, 16)] if doubled else []
        return [str(types) for types in (*halves, *doubles)]

    return found


def rounds_weights(types: Types) -> bool:
    """Whether they differ from float32 by the weights alone."""
    return types.src is F32 and types.weights is not F32

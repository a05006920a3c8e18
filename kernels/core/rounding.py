"""Which problems of float32 may round their operands to 16 bits, and where that can be faster.

Tensors stay float32. `f32f16` only reads less, so it pays where weights do not stay in the cache.
`f32bf16` multiplies pairs of bf16 where the processor can, and then rounds the input as well.
`f32s16` multiplies pairs of int16 in Winograd's transformed domain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F16, F32, I16
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.types import Types

# The least error of products of int16: that of Winograd's smallest tiles.
INT16_ERROR = 2e-4
# The fewest channels for which they may be faster.
INT16_CHANNELS = 32

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
        many = max(p.kernel) > 1 and min(p.c, p.oc) >= INT16_CHANNELS
        whole = many and cpu.machine == "x86_64" and limit >= INT16_ERROR
        integers = [Types(F32, I16, F32, 16)] if whole else []
        return [str(types) for types in (*halves, *doubles, *integers)]

    return found


def rounds_weights(types: Types) -> bool:
    """Whether tensors are float32 and weights are not."""
    return types.src is F32 and types.weights is not F32

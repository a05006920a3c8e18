"""Tensors of small element types for tests, and their scales."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrun.kernels.core.dtype import U8, DType
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.scales import Quantisation, scales

SRC, DST, ADD = Quantisation(0.05, 117), Quantisation(0.037, 93), Quantisation(0.021, 140)


def values(dtype: DType, *shape: int) -> np.ndarray:
    """Random numbers that elements of this type have; all of u8."""
    rng = np.random.default_rng(sum(shape))
    if dtype is U8:
        return rng.integers(0, 256, shape, np.uint8)
    return dtype.decode(dtype.encode(3 * rng.standard_normal(shape, np.float32))).astype(np.float32)


def with_scales(**operands: Any) -> dict[str, Any]:
    """Operands of `execute` together with the scales of src, add and dst."""
    slack = np.zeros(READ_SLACK, np.float32)
    return {"packed_bias": np.concatenate([scales(SRC, DST, ADD), slack]), "poison": 85, **operands}

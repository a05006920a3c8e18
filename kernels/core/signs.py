"""One bit: numbers that count by their signs alone, as in XNOR-Net (Rastegari et al., 2016).

An input counts as -1 if it is below zero, else as 1 (zero and NaN too); a weight as the same times
the mean absolute weight of its output channel. Sums of products are then counts of bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def signs(x: NDArray[Any]) -> NDArray[np.float64]:
    """-1 for numbers below zero, 1 for all others."""
    return np.where(x < 0, -1.0, 1.0)


def magnitudes(weights: NDArray[Any]) -> NDArray[np.float32]:
    """The mean absolute weight of each output channel; `weights` are (oc, c/groups, kh, kw)."""
    flat = np.abs(weights.reshape(len(weights), -1))
    found: NDArray[np.float32] = flat.mean(axis=1, dtype=np.float64).astype(np.float32)
    return found


def by_signs(weights: NDArray[Any]) -> NDArray[np.float64]:
    """The weights that count: signs times magnitudes."""
    scale = magnitudes(weights).astype(np.float64)
    return signs(weights) * scale.reshape(-1, *[1] * (weights.ndim - 1))

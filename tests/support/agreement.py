"""Whether results are equal to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def assert_close(
    found: NDArray[Any], expected: NDArray[Any], what: str = "", share: float = 1e-4
) -> None:
    """Equal shapes, and values within a share of themselves and of the rms of all values.

    Kernels round at the scale of the output, whatever a single value is, and the processor and its
    caches decide which kernel runs: Winograd, or products of numbers in parts.
    """
    assert np.shape(found) == np.shape(expected), what
    values = np.asarray(expected)
    finite = values[np.isfinite(values)].astype(np.float64)
    size = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    np.testing.assert_allclose(found, expected, rtol=share, atol=share * size + 1e-6, err_msg=what)

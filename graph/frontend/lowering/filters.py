"""The matrices of resizing along an axis by cubic or antialiased filters, as ONNX defines them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Filters:
    """How an output is mixed of pixels: `mode` is "linear" or "cubic", `a` the cubic parameter.

    With `antialias` the filter is as wide as a smaller output's pixel. Pixels outside get no weight
    if they are to be excluded; else the nearest pixel inside stands for them.
    """

    mode: str
    coordinates: str
    a: float
    antialias: bool
    exclude_outside: bool

    def matrix(self, size: int, out: int, scale: float) -> F64:
        """The weights (out, size) of the pixels of an axis in each output."""
        at = self._source(size, out, scale)
        low = np.floor(at)
        stretch = min(scale, 1.0) if self.antialias else 1.0
        reach = (2 if self.mode == "cubic" else 1) / stretch
        first = int(np.floor(-reach)) + 1
        offsets = np.arange(first, 2 - first)
        distances = (offsets - (at - low)[:, None]) * stretch
        weights = self._filter(distances)
        if self.antialias:
            weights = weights / weights.sum(axis=1, keepdims=True)
        places = low[:, None].astype(np.int64) + offsets
        if self.exclude_outside:
            weights = np.where((places >= 0) & (places < size), weights, 0)
            weights = weights / weights.sum(axis=1, keepdims=True)
        found = np.zeros((out, size))
        rows = np.broadcast_to(np.arange(out)[:, None], places.shape)
        np.add.at(found, (rows, places.clip(0, size - 1)), weights)
        return found

    def _filter(self, distance: F64) -> F64:
        d, a = np.abs(distance), self.a
        if self.mode == "linear":
            triangle: F64 = np.maximum(1 - d, 0)
            return triangle
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        kernel: F64 = np.where(d <= 1, near, np.where(d < 2, far, 0))
        return kernel

    def _source(self, size: int, out: int, scale: float) -> F64:
        """The coordinate in the input of each output."""
        # As in PyTorch and onnxruntime, the corners are those of the pixels that there are.
        x, whole = np.arange(out, dtype=np.float64), scale * size
        match self.coordinates:
            case "asymmetric":
                return x / scale
            case "align_corners":
                return x * (size - 1) / max(out - 1, 1)
            case "pytorch_half_pixel" if out == 1:
                return np.full(out, -0.5)
            case "half_pixel_symmetric":
                return size / 2 * (1 - out / whole) + (x + 0.5) / scale - 0.5
        return (x + 0.5) / scale - 0.5

"""Strided and large filters as filters of stride 1 and few taps on more channels.

The taps of a strided filter that are a stride apart read every stride-th pixel: they are a filter
of stride 1 on those pixels. A large filter is a sum of smaller ones side by side. In both cases the
parts of a filter read the input from different places, as further channels would, and their
products are added before they are transformed back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.problem import ConvProblem

# Taps on an axis that one part can have, and about how many the parts of a larger filter have.
MOST_TAPS, USUAL_TAPS = 7, 5


@dataclass(frozen=True)
class Axis:
    """`count` parts of `taps` taps. Tap t of part b is tap `b * apart + t * step` of the filter.

    Outputs and taps of a part lie `step` pixels apart in the input.
    """

    count: int
    taps: int
    apart: int
    step: int

    @classmethod
    def of(cls, kernel: int, stride: int) -> Axis:
        """The parts of a filter on one axis."""
        if stride > 1:
            return cls(min(stride, kernel), -(-kernel // stride), 1, stride)
        count = 1 if kernel <= MOST_TAPS else -(-kernel // USUAL_TAPS)
        taps = -(-kernel // count)
        return cls(count, taps, taps, 1)

    def numbers(self, kernel: int) -> NDArray[Any]:
        """The taps of every part, `kernel` for those that the filter lacks."""
        at = np.arange(self.count)[:, None] * self.apart + np.arange(self.taps) * self.step
        taps: NDArray[Any] = np.minimum(at, kernel)
        return taps


@dataclass(frozen=True)
class Parts:
    """How the filter of a problem is cut."""

    vertical: Axis
    horizontal: Axis

    @classmethod
    def of(cls, p: ConvProblem) -> Parts:
        """The parts of a problem's filter."""
        return cls(*(Axis.of(k, s) for k, s in zip(p.kernel, p.stride, strict=True)))

    @property
    def count(self) -> int:
        """How many parts there are: 1 if the filter stays whole."""
        return self.vertical.count * self.horizontal.count

    def filters(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Weights (oc, c / groups, kh, kw) as those of `widened`: (oc, parts * c / groups, ...)."""
        if self.count == 1:
            return weights
        (kh, kw), rows = weights.shape[2:], self.vertical
        filled = np.pad(weights, [(0, 0), (0, 0), (0, 1), (0, 1)])
        taken = filled.take(self.horizontal.numbers(kw), 3).take(rows.numbers(kh), 2)
        # (oc, c, part, tap, part, tap) -> (oc, part, part, c, tap, tap)
        ordered = taken.transpose(0, 2, 4, 1, 3, 5)
        return ordered.reshape(len(weights), -1, rows.taps, self.horizontal.taps)


def widened(p: ConvProblem) -> ConvProblem:
    """The problem of stride 1 in which the parts of the filter are further channels."""
    parts = Parts.of(p)
    if p.stride == (1, 1) and parts.count == 1:
        return p
    kernel = parts.vertical.taps, parts.horizontal.taps
    spans = ((k - 1) * d for k, d in zip(kernel, p.dilation, strict=True))
    h, w = (n + span for n, span in zip((p.oh, p.ow), spans, strict=True))
    c = p.c * parts.count
    return replace(p, c=c, h=h, w=w, kernel=kernel, stride=(1, 1), padding=(0, 0, 0, 0))


def refusal(p: ConvProblem) -> str | None:
    """Why a problem's filter cannot be cut; None if it can, or need not."""
    if widened(p) is p:
        return None
    if p.dilation != (1, 1):
        return "filters with gaps between their taps are not cut"
    if p.precision.integer:
        return "Winograd of integers needs stride 1"
    return None


def expansion(p: ConvProblem, planes: int) -> float:
    """How many times as many numbers the transformed weights are as the weights."""
    return planes * widened(p).c / (p.c * math.prod(p.kernel))

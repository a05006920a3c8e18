"""Decides where in the arena each buffer lies: those needed at the same time never overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastrun.kernels.core.cpu import CACHE_LINE


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `size` bytes, needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


def allocate(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets in bytes, one per lifetime, and the size of the arena. Buffers begin at cache lines.

    The largest comes first; each takes the smallest gap between those needed at the same time.
    """
    placed: list[tuple[int, int, Lifetime]] = []
    offsets = [0] * len(lifetimes)
    for i in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, i)):
        new = lifetimes[i]
        size = -(-new.size // CACHE_LINE) * CACHE_LINE
        start, gaps = 0, []
        for begin, end, other in sorted(placed, key=lambda p: p[:2]):
            if other.first <= new.last and new.first <= other.last:
                if begin - start >= size:
                    gaps.append((begin - start, start))
                start = max(start, end)
        offsets[i] = min(gaps)[1] if gaps else start
        placed.append((offsets[i], offsets[i] + size, new))
    return offsets, max((end for _, end, _ in placed), default=0)

"""Decides where in the arena each buffer lies: those needed at the same time never overlap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastrun.kernels.core.cpu import CACHE_LINE
from fastrun.kernels.core.layout import Placement


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `size` bytes, needed from step `first` to step `last`, both included.

    The halo of a tensor that lies as `kept` says stays zero from run to run: no step zeroes it, so
    only tensors that lie alike may take turns in that memory.
    """

    size: int
    first: int
    last: int
    kept: Placement | None = None


def allocate(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Offsets in bytes, one per lifetime, and the size of the arena. Buffers begin at cache lines.

    The largest comes first; each takes the smallest gap between those needed at the same time.
    """
    placed: list[tuple[int, int, Lifetime]] = []
    offsets = [0] * len(lifetimes)
    rooms = [*_rooms(lifetimes)]
    for new, tenants in sorted(rooms, key=lambda room: (-room[0].size, room[1])):
        size = -(-new.size // CACHE_LINE) * CACHE_LINE
        start, gaps = 0, []
        for begin, end, other in sorted(placed, key=lambda p: p[:2]):
            if other.first <= new.last and new.first <= other.last:
                if begin - start >= size:
                    gaps.append((begin - start, start))
                start = max(start, end)
        start = min(gaps)[1] if gaps else start
        placed.append((start, start + size, new))
        for i in tenants:
            offsets[i] = start
    return offsets, max((end for _, end, _ in placed), default=0)


def _rooms(lifetimes: Sequence[Lifetime]) -> Iterable[tuple[Lifetime, list[int]]]:
    """What needs memory, and the buffers that lie there: one, or several with equal halos in turn.

    Memory whose halos are kept is needed all the time.
    """
    end = max((x.last for x in lifetimes), default=0)
    shared: dict[Placement, list[list[int]]] = {}
    for i, new in sorted(enumerate(lifetimes), key=lambda item: item[1].first):
        if new.kept is None:
            yield new, [i]
            continue
        turns = shared.setdefault(new.kept, [])
        free = (turn for turn in turns if lifetimes[turn[-1]].last < new.first)
        if turn := next(free, None):
            turn.append(i)
        else:
            turns.append([i])
    for kept, turns in shared.items():
        for turn in turns:
            yield Lifetime(max(lifetimes[i].size for i in turn), 0, end, kept), turn

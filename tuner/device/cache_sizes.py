"""Sizes of a device's caches, measured where its system does not say them.

A chain of loads walks through memory, each from the line that the one before names. While the
memory fits a cache, a step takes that cache's time; where the time jumps, the cache ends.
"""

from __future__ import annotations

import math
from typing import cast

from fastrun.tuner.device.channel import Operations
from fastrun.tuner.device.session import Child, Session

_LINE = 64
_SMALLEST, _LARGEST = 8 << 10, 32 << 20
_STEPS = 1 << 16
_TRIES = 3
_JUMP = 1.8  # times that a step takes as long in the next cache; misses of the TLB cost less
_SECONDS = 60.0


def measured_caches(session: Session, core: int) -> dict[int, int]:
    """Level -> bytes, as far as jumps show levels; a guess is better than none."""
    child = Child(session, _SECONDS)
    memory = child.map(_LARGEST)  # in huge pages, because small ones slow down long walks
    where = session.scratch
    bind = Operations().poke(where, (1 << core).to_bytes(128, "little"))
    child.ask(session.system(bind, "sched_setaffinity", 0, 128, where))
    sizes = [_SMALLEST << i for i in range((_LARGEST // _SMALLEST).bit_length())]
    # Three quarters of a size fit well into a cache of that size, beside other data.
    times = [_step(session, child, memory, size * 3 // 4) for size in sizes]
    return levels(sizes, times)


def levels(sizes: list[int], times: list[float]) -> dict[int, int]:
    """The levels that seconds per step show, for memory of these sizes in rising order.

    A level ends before the first size whose step takes `_JUMP` times that of the level; the rise to
    the next level may take several sizes.
    """
    found, level, i = dict[int, int](), 1, 0
    while i < len(sizes) and level <= 3:
        plain = times[i]
        end = i
        while end + 1 < len(sizes) and times[end + 1] < _JUMP * plain:
            end += 1
        if end + 1 == len(sizes):
            break  # what follows is memory, or larger than what was looked at
        found[level] = sizes[end]
        i, level = end + 1, level + 1
        while i + 1 < len(sizes) and times[i + 1] > _JUMP * times[i]:
            i += 1
    return found


def _step(session: Session, child: Child, memory: int, size: int) -> float:
    """Nanoseconds of a step through `size` bytes."""
    lines = size // _LINE
    # A stride prime to the number of lines visits all; the golden section leaves no pattern.
    stride = max(1, int(lines * (math.sqrt(5) - 1) / 2)) | 1
    make = Operations().call(session.function("chain"), memory, lines, stride)
    child.ask(make)
    timed, chase = session.function("timed"), session.function("chase")
    asked = Operations()
    for _ in range(_TRIES + 1):
        asked.call(timed, chase, memory, _STEPS)
    return min(cast(list[int], child.ask(asked))[1:]) / _STEPS

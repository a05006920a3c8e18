"""The cores that this process may use: what an affinity mask or a container's cpuset leaves it."""

from __future__ import annotations

import os

from fastrun.tuner.records.units import plural


def usable_cores() -> list[int]:
    """Their numbers, in rising order."""
    return sorted(os.sched_getaffinity(0))


def check_threads(threads: int) -> None:
    """Check that each thread can have a core of its own: others would wait for it, spinning.

    Raises:
        ValueError: less than one thread, or more than cores.
    """
    cores = len(usable_cores())
    if not 1 <= threads <= cores:
        raise ValueError(f"{threads} threads, but this process may use {plural(cores, 'core')}")

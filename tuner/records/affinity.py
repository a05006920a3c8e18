"""The cores that this process may use, by its affinity mask and a container's set of cores."""

from __future__ import annotations

import os

from fastrun.tuner.records.units import plural


def usable_cores() -> list[int]:
    """The numbers of the cores, ascending."""
    return sorted(os.sched_getaffinity(0))


def check_threads(threads: int) -> None:
    """Check that every thread can have a core of its own. Threads that share one wait, spinning.

    Raises:
        ValueError: there is less than one thread, or there are more threads than cores.
    """
    cores = len(usable_cores())
    if not 1 <= threads <= cores:
        raise ValueError(f"{threads} threads, but this process may use {plural(cores, 'core')}")

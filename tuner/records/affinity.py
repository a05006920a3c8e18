"""The cores that this process may use, by its affinity mask and a container's set of cores."""

from __future__ import annotations

import math
import os
from typing import Literal

from fastrun.kernels.core.cgroup import cpu_limit
from fastrun.tuner.records.units import plural


def usable_cores() -> list[int]:
    """The numbers of the cores, ascending."""
    return sorted(os.sched_getaffinity(0))


Threads = int | Literal["auto"]


def thread_number(threads: Threads) -> int:
    """The number itself, or for "auto" as many threads as the process can keep busy.

    These are the cores that it may use, or fewer if a control group limits its CPU time: threads
    beyond that would wait, spinning, for threads that have no time left.
    """
    if threads != "auto":
        return threads
    cores = len(usable_cores())
    return max(1, math.floor(min(cores, cpu_limit() or cores)))


def check_threads(threads: int) -> None:
    """Check that every thread can have a core of its own. Threads that share one wait, spinning.

    Raises:
        ValueError: there is less than one thread, or there are more threads than cores.
    """
    cores = len(usable_cores())
    if not 1 <= threads <= cores:
        raise ValueError(f"{threads} threads, but this process may use {plural(cores, 'core')}")

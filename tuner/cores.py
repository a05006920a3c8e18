"""Which cores time candidates and which do everything else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

# Cores that compile as fast as one core times.
ENOUGH = 8


class Cores:
    """A division of the cores. Where `timing` and `compiling` overlap, the two take turns.

    Args:
        timing: the cores that run candidates, one per thread.
        compiling: the cores that compile them.
    """

    def __init__(self, timing: Sequence[int], compiling: Sequence[int]) -> None:
        self.timing, self.compiling = tuple(timing), tuple(compiling)
        self.shared = bool(set(timing) & set(compiling))
        self._free = threading.Semaphore(len(self.compiling))

    @classmethod
    def split(cls, threads: int) -> Cores:
        """The last `threads` cores this process may use for timing, the others for compiling.

        The first core takes most interrupts, so it times last. Compiling a candidate takes some
        ten times as long as timing it, so where fewer than `ENOUGH` cores are left, all of them
        compile, between timings.

        Raises:
            ValueError: there are fewer cores than threads.
        """
        allowed = sorted(os.sched_getaffinity(0))
        if not 1 <= threads <= len(allowed):
            raise ValueError(f"cannot time {threads} threads on {len(allowed)} cores")
        first = len(allowed) - threads
        others = allowed[:first]
        return cls(allowed[first:], others if len(others) >= ENOUGH else allowed)

    @contextmanager
    def compile_turn(self) -> Iterator[None]:
        """One compilation: waits while a shared core is timing."""
        if self.shared:
            with self._free:
                yield
        else:
            yield

    @contextmanager
    def timing_turn(self) -> Iterator[None]:
        """One timing: waits until no compilation uses a shared core."""
        taken = len(self.compiling) if self.shared else 0
        for _ in range(taken):
            self._free.acquire()
        try:
            yield
        finally:
            if taken:
                self._free.release(taken)

    @contextmanager
    def keep_clear(self) -> Iterator[None]:
        """Keep this process, too, off the cores that time, as far as there are others."""
        before = os.sched_getaffinity(0)
        pin(before - set(self.timing) or before)
        try:
            yield
        finally:
            pin(before)


def pin(cores: Sequence[int] | set[int]) -> None:
    """Bind every thread of this process, those of libraries included, to these cores."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it ended since it was listed
            os.sched_setaffinity(int(thread), cores)

"""Which cores time candidates and which do everything else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from fastrun.tuner.records.affinity import check_threads, usable_cores

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
        self._free, self._wanted = set(self.compiling), set[int]()
        self._change, self._one_timing = threading.Condition(), threading.Lock()

    @classmethod
    def split(cls, threads: int) -> Cores:
        """The last `threads` cores this process may use for timing, the others for compiling.

        The first core takes most interrupts, so it times last. Compiling a candidate takes some
        ten times as long as timing it, so where fewer than `ENOUGH` cores are left, all of them
        compile, between timings.

        Raises:
            ValueError: there are fewer cores than threads.
        """
        check_threads(threads)
        allowed = usable_cores()
        first = len(allowed) - threads
        others = allowed[:first]
        return cls(allowed[first:], others if len(others) >= ENOUGH else allowed)

    @contextmanager
    def compile_turn(self) -> Iterator[int]:
        """One compilation, on the core that this gives: waits until one is free."""
        with self._change:
            self._change.wait_for(lambda: self._free - self._wanted)
            core = min(self._free - self._wanted)
            self._free.remove(core)
        try:
            yield core
        finally:
            self._release({core})

    @contextmanager
    def timing_turn(self) -> Iterator[None]:
        """One timing: waits until nothing compiles on its cores, before what waits to compile."""
        with self._one_timing:
            mine = set(self.timing) & set(self.compiling)
            with self._change:
                self._wanted = mine
                self._change.wait_for(lambda: mine <= self._free)
                self._wanted = set()
                self._free -= mine
            try:
                yield
            finally:
                self._release(mine)

    def _release(self, cores: set[int]) -> None:
        with self._change:
            self._free |= cores
            self._change.notify_all()

    @contextmanager
    def keep_clear(self) -> Iterator[None]:
        """Keep this process, too, off the cores that time, as far as there are others."""
        before = os.sched_getaffinity(0)
        pin(before - set(self.timing) or before)
        try:
            with one_thread():
                yield
        finally:
            pin(before)


def one_thread() -> threadpool_limits:
    """Let NumPy's linear algebra use one thread: more of them on one core wait for each other.

    From now on; as a context manager, until it ends.
    """
    return threadpool_limits(1, user_api="blas")


def pin(cores: Sequence[int] | set[int]) -> None:
    """Bind every thread of this process, those of libraries included, to these cores.

    Raises:
        OSError: one of the cores may not be used, or the system does not let us choose.
    """
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it ended since it was listed
            continue
        except OSError as error:
            listed = ", ".join(map(str, sorted(cores)))
            refusal = f"cannot be bound to core {listed}: {error.strerror}"
            raise OSError(error.errno, refusal) from error

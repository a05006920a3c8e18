"""Which cores time kernels, and which do all other work."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from fastrun.tuner.records.affinity import check_threads, usable_cores

# So many cores compile as fast as one core times.
ENOUGH = 8


class Cores:
    """A division of the cores. On cores of both groups, timing and compiling take turns.

    Args:
        timing: the cores that run kernels, one per thread.
        compiling: the cores that compile them.
    """

    def __init__(self, timing: Sequence[int], compiling: Sequence[int]) -> None:
        self.timing, self.compiling = tuple(timing), tuple(compiling)
        self.shared = bool(set(timing) & set(compiling))
        self._free, self._wanted = set(self.compiling), set[int]()
        self._change, self._one_timing = threading.Condition(), threading.Lock()

    @classmethod
    def split(cls, threads: int) -> Cores:
        """The last `threads` cores of this process for timing, the others for compiling.

        The first core handles most interrupts, so it is the last one to be chosen for timing.
        Compiling a kernel takes some ten times as long as timing it. So if fewer than `ENOUGH`
        cores are left, all cores compile, in turns with timing.

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
        """One compilation on the core that this returns; waits until a core is free."""
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
        """One timing; waits until its cores do not compile. Waiting compilations come later."""
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
        """Keep this process off the cores that time, if there are other cores."""
        before = os.sched_getaffinity(0)
        pin(before - set(self.timing) or before)
        try:
            with one_thread():
                yield
        finally:
            pin(before)


def one_thread() -> threadpool_limits:
    """Let NumPy's linear algebra use one thread, because several on one core wait for each other.

    It holds from now on, or inside a `with` block.
    """
    return threadpool_limits(1, user_api="blas")


def pin(cores: Sequence[int] | set[int]) -> None:
    """Bind every thread of this process, including those of libraries, to these cores.

    Raises:
        OSError: a core may not be used, or the system does not allow a choice.
    """
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # the thread has ended since it was listed
            continue
        except OSError as error:
            listed = ", ".join(map(str, sorted(cores)))
            refusal = f"cannot be bound to core {listed}: {error.strerror}"
            raise OSError(error.errno, refusal) from error

"""Steps of native code walked by a team of threads, with barriers between them."""

from __future__ import annotations

import _thread
import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.forks import ONCE, once, renewed_in_children
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.driver import (
    APART,
    ARRIVED,
    AVOIDED,
    COUNTERS,
    DUE,
    JOB_WORDS,
    TALLY,
    driver_ir,
    team_bytes,
)
from fastrun.kernels.native.fallback import Fallback
from fastrun.kernels.native.library import Library


class Step(ctypes.Structure):
    """A stage at its address, its tasks and the addresses of its operands.

    With `joins` at 0 a thread continues with the next step before all tasks of this one are done.
    """

    _fields_ = [
        ("stage", ctypes.c_void_p),
        ("tasks", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("src", "weights", "bias", "add", "dst", "shared")),
        ("joins", ctypes.c_int64),
    ]


class _Job(ctypes.Structure):
    """What the driver is called with."""

    _fields_ = [(name, ctypes.c_int64) for name in JOB_WORDS]


class Script:
    """A list of steps for a number of threads, and the counters of the walk.

    `local` are the addresses of one workspace for each thread. The last step joins. `fallback`
    knows the times so far.

    Raises:
        ValueError: there are no steps, or fewer workspaces than threads.
    """

    def __init__(self, steps: Sequence[Step], threads: int, local: Sequence[int]) -> None:
        if not steps or len(local) < threads:
            raise ValueError(f"{threads} threads need a step and as many workspaces")
        self.threads, self.count = threads, len(steps)
        self._steps = (Step * len(steps))(*steps)
        self._steps[-1].joins = 1
        self._local = (ctypes.c_void_p * threads)(*local[:threads])
        self._tally = _Lines(TALLY + 2 * len(steps) * threads * COUNTERS)
        self._job = _Job(
            steps=ctypes.addressof(self._steps),
            count=len(steps),
            threads=threads,
            local=ctypes.addressof(self._local),
            copies=1,
            tally=self._tally.address,
        )
        self.fallback = Fallback()
        renewed_in_children(self, Script._renew)

    def job(self) -> _Job:
        """A new job that walks the steps."""
        # A copy takes a tenth of the time of filling in the words.
        return _Job.from_buffer_copy(self._job)

    def _renew(self) -> None:
        """Forget a walk: this process has no threads that could end it."""
        self._tally.clear()


class _Lines:
    """Zeroed memory in whole cache lines."""

    def __init__(self, size: int) -> None:
        self._room = ctypes.create_string_buffer(size + APART)
        self.address = -(-ctypes.addressof(self._room) // APART) * APART

    def clear(self) -> None:
        ctypes.memset(self._room, 0, len(self._room))


Answers = SimpleQueue[OSError | None]


class Team:
    """The caller's thread and others that wait for its jobs, each bound to a core if given.

    Raises:
        OSError: one of the cores may not be used.
    """

    def __init__(self, threads: int, cores: Sequence[int] = ()) -> None:
        self._state = _Lines(team_bytes(threads))
        self._arrived, self._due, self._avoided = (
            ctypes.c_int64.from_address(self._state.address + at) for at in (ARRIVED, DUE, AVOIDED)
        )
        # A late thread still reads the script of the last job that it was called to.
        self._scripts = list[Script]()
        self._lead, self._serve = _driver()
        self._size, self._cores = threads, tuple(cores)
        self._renew()
        renewed_in_children(self, Team._renew)
        try:
            for number in range(1, threads):
                self._recruit(number)
        except BaseException:
            self.disband()
            raise

    def _renew(self) -> None:
        """Have no other threads, as in a forked process."""
        # A signal handler may run in the middle of a call, and must not wait for that to end.
        self._lock = threading.RLock()
        self._state.clear()
        self._avoided.value = -1 if self._cores else 0
        self._members, self._ready, self._left = 0, Answers(), Answers()
        self._disbanding = False

    def _recruit(self, number: int) -> None:
        ready, left = self._ready, self._left

        def work() -> None:
            refusal = None
            try:
                if self._cores:
                    os.sched_setaffinity(0, {self._cores[number]})
            except OSError as error:
                refusal = error
            ready.put(refusal)
            if not refusal:
                self._serve(self._state.address, number)
            left.put(None)

        try:
            # Not by `threading`: an exception at the wrong moment would leave its threads locked.
            _thread.start_new_thread(work, ())
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "the system allows no more threads") from error
        self._members += 1
        if refusal := ready.get():
            raise refusal

    def run(
        self,
        script: Script,
        repeats: int = 1,
        copies: tuple[int, int, int] = (0, 1, 0),
        stamps: int = 0,
        meet: bool = False,
    ) -> float:
        """Walk the steps `repeats` times; seconds for all of it, as the caller sees it.

        `copies` are the number of the first copy of the weights, the number of copies, and the
        bytes from one to the next. At the address `stamps`, two 64-bit integers for each thread and
        step receive nanoseconds: when the thread had no work left in the step, and when it went on.
        With `meet` the clock starts when all threads
        have arrived. Without `meet` and `stamps` the caller's thread may do it all, if other
        programs want the cores and it is faster alone.

        An exception in a signal handler leaves the team as it is before this walk or after it.

        Raises:
            ValueError: the script is for another number of threads.
        """
        if script.threads != self._size:
            raise ValueError(f"a script for {script.threads} threads, a team of {self._size}")
        if self._disbanding:
            time.sleep(0.001)
        with self._lock:
            left = self._arrived.value >= self._due.value  # no thread is still in a job
            if left:
                self._scripts.clear()
            self._scripts.append(script)
            chooses = self._size > 1 and not (meet or stamps)
            job = script.job()
            job.meet, job.repeats, job.stamps = meet, repeats, stamps
            job.copy, job.copies, job.stride = copies
            job.alone = chooses and script.fallback.alone
            seconds = self._call(job)
            if chooses:
                script.fallback.saw(seconds / repeats, late=not left)
            return seconds

    def disband(self) -> None:
        """Let the threads end; the team cannot run any more."""
        # Threads that run all the time would take the lock again before this one wakes up.
        self._disbanding = True
        with self._lock:
            self._call(_Job(threads=self._size))
            for _ in range(self._members):
                self._left.get()
        self._disbanding = False

    def _call(self, job: _Job) -> float:
        return self._lead(self._state.address, ctypes.addressof(job)) * 1e-9


teams: dict[tuple[int, tuple[int, ...]], Team] = {}


def team(threads: int, cores: Sequence[int] = ()) -> Team:
    """The process's team of this size on these cores; its runs take turns.

    Raises:
        OSError: one of the cores may not be used, or the system allows no more threads.
    """
    key = threads, tuple(cores)
    if key not in teams:
        with ONCE:
            if key not in teams:
                teams[key] = Team(*key)
    return teams[key]


def disband_all() -> None:
    """End the threads of all teams; the next call of each starts them again."""
    # The interpreter unloads the code, which a spinning thread must not lose. A team that another
    # thread makes after this stays until the process ends.
    for key in list(teams):
        teams.pop(key).disband()


@once
def _library() -> Library:
    cpu = Cpu.host()
    return Library(ObjectCache().object(driver_ir(cpu.triple), cpu), ["lead", "serve"])


@once
def _driver() -> tuple[Callable[..., int], Callable[..., None]]:
    """`lead` and `serve`, called without Python's lock."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    lead = ctypes.CFUNCTYPE(number, pointer, pointer)(_library().address("lead"))
    serve = ctypes.CFUNCTYPE(None, pointer, number)(_library().address("serve"))
    return lead, serve

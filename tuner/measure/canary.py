"""The canary: fixed work that is timed around a measurement and shows disturbances."""

from __future__ import annotations

import ctypes
import functools
import time
from pathlib import Path

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library
from fastrun.tuner.measure.timing import calibrate

CANARY_SECONDS = 2e-4


def canary() -> float:
    """How much longer fixed work took just now than at its best so far: 0.1 is ten per cent.

    This is the larger of two readings, which take some 0.4 ms together. A loop in registers shows
    a slower clock or a shared core. A loop over memory that only the last cache can hold shows
    other users of the caches and of the way to memory.
    """
    return _Canary.get().deviation()


def runnable() -> int:
    """The number of tasks of this machine that can run at this moment, without the caller.

    If it exceeds the number of other cores, a task is waiting for a core.
    """
    running = Path("/proc/loadavg").read_text().split()[3]
    return max(0, int(running.partition("/")[0]) - 1)


def canary_ir(triple: str) -> str:
    """The loops of the canary.

    `spin` is a chain of multiply-adds, each of which needs the result of the one before. `walk`
    reads one number of every cache line.
    """
    return _CODE.format(triple=triple)


_CODE = """target triple = "{triple}"

define i64 @spin(ptr %memory, i64 %count) nounwind {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %loop ]
  %x = phi i64 [ %count, %entry ], [ %x.next, %loop ]
  %scaled = mul i64 %x, 6364136223846793005
  %x.next = add i64 %scaled, 1442695040888963407
  %i.next = add i64 %i, 1
  %again = icmp ult i64 %i.next, %count
  br i1 %again, label %loop, label %done
done:
  ret i64 %x.next
}}

define i64 @walk(ptr %memory, i64 %count) nounwind {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %loop ]
  %sum = phi i64 [ 0, %entry ], [ %sum.next, %loop ]
  %at = getelementptr i64, ptr %memory, i64 %i
  %x = load i64, ptr %at
  %sum.next = add i64 %sum, %x
  %i.next = add i64 %i, 8
  %again = icmp ult i64 %i.next, %count
  br i1 %again, label %loop, label %done
done:
  ret i64 %sum.next
}}
"""


_KIND = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)


class _Canary:
    def __init__(self) -> None:
        cpu = Cpu.host()
        object_ = ObjectCache().object(canary_ir(cpu.triple), cpu)
        self._library = Library(object_, ["spin", "walk"])
        self._spin, self._walk = (_KIND(self._library.address(name)) for name in ("spin", "walk"))
        self._count, _ = calibrate(self._spinning, CANARY_SECONDS)
        self._memory = (ctypes.c_int64 * (4 * cpu.l2 // 8))()
        # Pages that were never written are all the same page, which the nearest cache would hold.
        ctypes.memset(self._memory, 1, ctypes.sizeof(self._memory))
        self._spun = min(self._spinning(self._count) for _ in range(5))
        self._walked = min(self._walking() for _ in range(5))

    @staticmethod
    @functools.cache
    def get() -> _Canary:
        return _Canary()

    def deviation(self) -> float:
        spun, walked = self._spinning(self._count), self._walking()
        self._spun, self._walked = min(self._spun, spun), min(self._walked, walked)
        return max(spun / self._spun, walked / self._walked) - 1

    def _spinning(self, count: int) -> float:
        start = time.perf_counter()
        self._spin(None, count)
        return time.perf_counter() - start

    def _walking(self) -> float:
        """Seconds of the faster of two walks, after a first one that refills the cache."""
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self._walk(self._memory, len(self._memory))
            times.append(time.perf_counter() - start)
        return min(times[1:])

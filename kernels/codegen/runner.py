"""The native driver: runs stages in order, many times, on some threads, with a barrier between.

Nothing of Python runs between the first call and the last, so a block of calls costs what the
kernel costs: a few nanoseconds per stage are added. Each thread walks the same list of steps and
does its own share of every step's tasks.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kernels.codegen.jit import Library, ObjectCache
from kernels.core.cpu import Cpu
from kernels.core.template import Stage

# What a core is told while it spins, so that it leaves power and issue slots to its neighbours.
_SPIN_HINTS = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}

_LINE = 128  # bytes that no two variables of different threads should share


def driver_ir(triple: str) -> str:
    """The driver as IR.

    `run_steps` returns the nanoseconds between two barriers: before the first call, when every
    thread has come, and after the last. The barrier counts arrivals and never goes back, so it
    needs no reset between steps; it must be zero when a run begins.
    """
    declaration, hint = _SPIN_HINTS.get(triple.partition("-")[0], ("", ""))
    return f"""target triple = "{triple}"

%step = type {{ ptr, i64, ptr, ptr, ptr, ptr, ptr, ptr }}

declare i32 @clock_gettime(i32, ptr)
{declaration}

define internal i64 @now() nounwind {{
  %time = alloca [2 x i64], align 8
  %failed = call i32 @clock_gettime(i32 1, ptr %time)
  %seconds = load i64, ptr %time, align 8
  %rest = getelementptr i64, ptr %time, i64 1
  %nanoseconds = load i64, ptr %rest, align 8
  %scaled = mul i64 %seconds, 1000000000
  %total = add i64 %scaled, %nanoseconds
  ret i64 %total
}}

define internal i64 @meet(ptr %arrived, i64 %target, i64 %threads) nounwind {{
  %before = atomicrmw add ptr %arrived, i64 1 acq_rel
  br label %look
look:
  %count = load atomic i64, ptr %arrived acquire, align 8
  %complete = icmp uge i64 %count, %target
  br i1 %complete, label %go, label %spin
spin:
  {hint}
  br label %look
go:
  %next = add i64 %target, %threads
  ret i64 %next
}}

define i64 @run_steps(ptr %steps, i64 %count, i64 %thread, i64 %threads, ptr %local,
                      ptr %arrived, i64 %repeats, i64 %copy, i64 %copies, i64 %stride) nounwind {{
entry:
  %after = add i64 %thread, 1
  %target.start = call i64 @meet(ptr %arrived, i64 %threads, i64 %threads)
  %start = call i64 @now()
  br label %repeat
repeat:
  %r = phi i64 [ 0, %entry ], [ %r.next, %repeated ]
  %c = phi i64 [ %copy, %entry ], [ %c.next, %repeated ]
  %target.repeat = phi i64 [ %target.start, %entry ], [ %target.next, %repeated ]
  %moved = mul i64 %c, %stride
  br label %step
step:
  %s = phi i64 [ 0, %repeat ], [ %s.next, %done ]
  %target = phi i64 [ %target.repeat, %repeat ], [ %target.next, %done ]
  %at = getelementptr %step, ptr %steps, i64 %s
  %step.value = load %step, ptr %at, align 8
  %stage = extractvalue %step %step.value, 0
  %tasks = extractvalue %step %step.value, 1
  %low = mul i64 %tasks, %thread
  %begin = udiv i64 %low, %threads
  %high = mul i64 %tasks, %after
  %end = udiv i64 %high, %threads
  %some = icmp ult i64 %begin, %end
  br i1 %some, label %work, label %done
work:
  %src = extractvalue %step %step.value, 2
  %packed = extractvalue %step %step.value, 3
  %weights = getelementptr i8, ptr %packed, i64 %moved
  %bias = extractvalue %step %step.value, 4
  %add = extractvalue %step %step.value, 5
  %dst = extractvalue %step %step.value, 6
  %shared = extractvalue %step %step.value, 7
  call void %stage(ptr %src, ptr %weights, ptr %bias, ptr %add, ptr %dst, ptr %shared,
                   ptr %local, i64 %begin, i64 %end)
  br label %done
done:
  %target.next = call i64 @meet(ptr %arrived, i64 %target, i64 %threads)
  %s.next = add i64 %s, 1
  %more = icmp ult i64 %s.next, %count
  br i1 %more, label %step, label %repeated
repeated:
  %c.after = add i64 %c, 1
  %wraps = icmp eq i64 %c.after, %copies
  %c.next = select i1 %wraps, i64 0, i64 %c.after
  %r.next = add i64 %r, 1
  %again = icmp ult i64 %r.next, %repeats
  br i1 %again, label %repeat, label %finish
finish:
  %stop = call i64 @now()
  %elapsed = sub i64 %stop, %start
  ret i64 %elapsed
}}
"""


class _Step(ctypes.Structure):
    _fields_ = [
        ("stage", ctypes.c_void_p),
        ("tasks", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("src", "weights", "bias", "add", "dst", "shared")),
    ]


@dataclass(frozen=True)
class Buffers:
    """Addresses of a program's operands.

    `local` has one workspace per thread. Of the weights there may be `copies`, `stride` bytes
    apart; each call takes the next one, so that their total size decides what is still cached.
    """

    src: int
    weights: int
    bias: int
    add: int
    dst: int
    shared: int
    local: tuple[int, ...]
    copies: int = 1
    stride: int = 0


class Runner:
    """Runs the stages of a loaded program.

    With `cores` given, thread t is bound to cores[t]; thread 0 is the caller's and is left alone.
    """

    def __init__(
        self, library: Library, stages: Sequence[Stage], cores: Sequence[int] = ()
    ) -> None:
        self._library = library  # keeps the code mapped
        self._stages = tuple(stages)
        self._cores = tuple(cores)
        self._copy = 0

    def run(self, buffers: Buffers, threads: int = 1, repeats: int = 1) -> float:
        """Call the program `repeats` times; seconds for all of them, as thread 0 sees it.

        Raises:
            ValueError: fewer cores or local workspaces than threads.
            OSError: one of the cores may not be used.
        """
        if threads > min(len(buffers.local), len(self._cores) or threads):
            raise ValueError(f"{threads} threads need as many cores and local workspaces")
        steps = self._steps(buffers)
        room = ctypes.create_string_buffer(2 * _LINE)
        arrived = -(-ctypes.addressof(room) // _LINE) * _LINE
        drive = _driver()

        def share(thread: int) -> float:
            nanoseconds = drive(
                steps, len(steps), thread, threads, buffers.local[thread],
                arrived, repeats, self._copy, buffers.copies, buffers.stride,
            )  # fmt: skip
            return float(nanoseconds) * 1e-9

        def work(thread: int) -> None:
            try:
                if self._cores:
                    os.sched_setaffinity(0, {self._cores[thread]})
            finally:
                share(thread)  # or the others would wait at the barrier for ever

        others = [_team(threads).submit(work, t) for t in range(1, threads)]
        seconds = share(0)
        for other in others:
            other.result()
        self._copy = (self._copy + repeats) % buffers.copies
        return seconds

    def _steps(self, b: Buffers) -> ctypes.Array[_Step]:
        return (_Step * len(self._stages))(
            *(
                _Step(
                    self._library.address(stage.symbol), stage.tasks,
                    b.src, b.weights, b.bias, b.add, b.dst, b.shared,
                )
                for stage in self._stages
            )
        )  # fmt: skip


@functools.cache
def _team(threads: int) -> ThreadPoolExecutor:
    """The threads beside the caller's; all of them must run at once to pass a barrier."""
    return ThreadPoolExecutor(threads - 1)


@functools.cache
def _library() -> Library:
    cpu = Cpu.host()
    return Library(ObjectCache().object(driver_ir(cpu.triple), cpu), ["run_steps"])


@functools.cache
def _driver() -> Callable[..., int]:
    """`run_steps`, called without Python's lock."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    sizes = (pointer, number, number, number, pointer, pointer, number, number, number, number)
    return ctypes.CFUNCTYPE(number, *sizes)(_library().address("run_steps"))

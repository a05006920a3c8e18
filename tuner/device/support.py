"""What a device is sent before any kernel: threads, clock, canary, and work on memory.

It is compiled here for the device's processor and mapped from a file there, like kernels.
"""

from __future__ import annotations

from fastrun.kernels.core.processors import baseline
from fastrun.kernels.native.apart import compile_all
from fastrun.kernels.native.driver import driver_ir
from fastrun.kernels.native.flat import Blob, flat
from fastrun.tuner.device.machine_code import NUMBERS, STUBS
from fastrun.tuner.measure.canary import canary_ir


def support(machine: str) -> Blob:
    """The functions for every device of this machine: `x86_64`, `aarch64` or `riscv64`.

    `lead` and `serve` are the driver's; `live(argument)` binds a thread to cores and serves.
    `fill(address, size, word)` writes a word of four bytes again and again, `unlike` gives the
    place of the first byte that is no longer so, `differ(a, b, size)` that of the first different
    byte, -1 if there is none. `memcpy` and `memset` are C's. `timed(f, a, b)` gives the nanoseconds
    of f(a, b), which may be the canary's `spin` and `walk`. `chain(memory, lines, stride)` lays a
    ring of addresses through memory, and `chase(memory, steps)` follows it.
    """
    cpu = baseline(machine)
    here = f"{_SUPPORT}\n{_LOOPS}"
    for name, number in NUMBERS[machine].items():
        here = here.replace(f"${name},", f"i64 {number},")
    texts = [f'target triple = "{cpu.triple}"\n\n{here}', canary_ir(cpu.triple),
             driver_ir(cpu.triple)]  # fmt: skip
    stubs = {name: stub for name, stub in STUBS[machine].items() if name != "start"}
    return flat([*compile_all([(text, cpu) for text in texts]), library(machine)], stubs)


def library(machine: str) -> bytes:
    """An object with all that kernels need of a C library: `memcpy` and `memset`."""
    cpu = baseline(machine)
    return compile_all([(f'target triple = "{cpu.triple}"\n\n{_LIBRARY}', cpu)])[0]


def kernel(code: bytes, library: bytes) -> Blob:
    """A kernel's object, ready to be mapped."""
    return flat([code, library])


# `$name,` stands for the number of a system call.
_SUPPORT = """attributes #0 = { nounwind "no-builtins" }

declare hidden i64 @syscall(i64, i64, i64, i64, i64, i64, i64)
declare hidden void @serve(ptr, i64)

define i32 @clock_gettime(i32 %clock, ptr %time) #0 {
  %number = sext i32 %clock to i64
  %at = ptrtoint ptr %time to i64
  %r = call i64 @syscall($clock_gettime, i64 %number, i64 %at, i64 0, i64 0, i64 0, i64 0)
  %failed = trunc i64 %r to i32
  ret i32 %failed
}

define i32 @sched_yield() #0 {
  %r = call i64 @syscall($sched_yield, i64 0, i64 0, i64 0, i64 0, i64 0, i64 0)
  ret i32 0
}

define internal i64 @monotonic() #0 {
  %time = alloca [2 x i64], align 8
  %failed = call i32 @clock_gettime(i32 1, ptr %time)
  %seconds = load i64, ptr %time
  %rest = getelementptr i64, ptr %time, i64 1
  %nanoseconds = load i64, ptr %rest
  %scaled = mul i64 %seconds, 1000000000
  %total = add i64 %scaled, %nanoseconds
  ret i64 %total
}

define i64 @timed(ptr %f, i64 %a, i64 %b) #0 {
  %start = call i64 @monotonic()
  %result = call i64 %f(i64 %a, i64 %b)
  %stop = call i64 @monotonic()
  %spent = sub i64 %stop, %start
  ret i64 %spent
}

define void @live(ptr %argument) #0 {
  %team = load ptr, ptr %argument
  %number.at = getelementptr i64, ptr %argument, i64 1
  %number = load i64, ptr %number.at
  %cores = getelementptr i64, ptr %argument, i64 2
  %cores.at = ptrtoint ptr %cores to i64
  %bound = call i64 @syscall($sched_setaffinity, i64 0, i64 128, i64 %cores.at, i64 0, i64 0, i64 0)
  call void @serve(ptr %team, i64 %number)
  ret void
}

define i64 @chain(ptr %memory, i64 %lines, i64 %stride) #0 {
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %from = phi i64 [ 0, %entry ], [ %to, %next ]
  %sum = add i64 %from, %stride
  %to = urem i64 %sum, %lines
  %from.bytes = mul i64 %from, 64
  %to.bytes = mul i64 %to, 64
  %from.at = getelementptr i8, ptr %memory, i64 %from.bytes
  %to.at = getelementptr i8, ptr %memory, i64 %to.bytes
  store ptr %to.at, ptr %from.at
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %lines
  br i1 %more, label %next, label %out
out:
  ret i64 0
}

define i64 @chase(ptr %memory, i64 %steps) #0 {
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %at = phi ptr [ %memory, %entry ], [ %to, %next ]
  %to = load volatile ptr, ptr %at
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %steps
  br i1 %more, label %next, label %out
out:
  ret i64 0
}
"""

_OVER_BYTES = """define i64 @{name}({arguments}) #0 {{
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %same ]
  %more = icmp ult i64 %i, %size
  br i1 %more, label %one, label %none
one:
{body}
same:
  %i.next = add i64 %i, 1
  br label %next
here:
  ret i64 %i
none:
  ret i64 -1
}}
"""
"""A loop over bytes: each goes on to `same`, or ends the loop by `here`."""

_BYTE_OF_WORD = """  %which = and i64 %i, 3
  %bits = mul i64 %which, 8
  %moved = lshr i64 %word, %bits
  %y = trunc i64 %moved to i8
  %at = getelementptr i8, ptr %a, i64 %i"""

_COMPARED = """  %x = load i8, ptr %at, align 1
  %equal = icmp eq i8 %x, %y
  br i1 %equal, label %same, label %here"""

_OTHER_BYTE = """  %at = getelementptr i8, ptr %a, i64 %i
  %b.at = getelementptr i8, ptr %b, i64 %i
  %y = load i8, ptr %b.at, align 1"""

_FILLED = """  store i8 %y, ptr %at, align 1
  br label %same"""

_LOOPS = "\n".join(
    _OVER_BYTES.format(name=name, arguments=arguments, body=f"{first}\n{then}")
    for name, arguments, first, then in (
        ("fill", "ptr %a, i64 %size, i64 %word", _BYTE_OF_WORD, _FILLED),
        ("unlike", "ptr %a, i64 %size, i64 %word", _BYTE_OF_WORD, _COMPARED),
        ("differ", "ptr %a, ptr %b, i64 %size", _OTHER_BYTE, _COMPARED),
    )
)

_LIBRARY = """attributes #0 = { nounwind "no-builtins" }

define ptr @memcpy(ptr %to, ptr %from, i64 %size) #0 {
entry:
  br label %wide
wide:
  %i = phi i64 [ 0, %entry ], [ %i.next, %sixteen ]
  %i.next = add i64 %i, 16
  %fits = icmp ule i64 %i.next, %size
  br i1 %fits, label %sixteen, label %narrow
sixteen:
  %from.wide = getelementptr i8, ptr %from, i64 %i
  %to.wide = getelementptr i8, ptr %to, i64 %i
  %values = load <2 x i64>, ptr %from.wide, align 1
  store <2 x i64> %values, ptr %to.wide, align 1
  br label %wide
narrow:
  %j = phi i64 [ %i, %wide ], [ %j.next, %one ]
  %more = icmp ult i64 %j, %size
  br i1 %more, label %one, label %out
one:
  %from.at = getelementptr i8, ptr %from, i64 %j
  %to.at = getelementptr i8, ptr %to, i64 %j
  %byte = load i8, ptr %from.at, align 1
  store i8 %byte, ptr %to.at, align 1
  %j.next = add i64 %j, 1
  br label %narrow
out:
  ret ptr %to
}

define ptr @memset(ptr %to, i32 %value, i64 %size) #0 {
entry:
  %byte = trunc i32 %value to i8
  %first = insertelement <16 x i8> poison, i8 %byte, i32 0
  %all = shufflevector <16 x i8> %first, <16 x i8> poison, <16 x i32> zeroinitializer
  br label %wide
wide:
  %i = phi i64 [ 0, %entry ], [ %i.next, %sixteen ]
  %i.next = add i64 %i, 16
  %fits = icmp ule i64 %i.next, %size
  br i1 %fits, label %sixteen, label %narrow
sixteen:
  %to.wide = getelementptr i8, ptr %to, i64 %i
  store <16 x i8> %all, ptr %to.wide, align 1
  br label %wide
narrow:
  %j = phi i64 [ %i, %wide ], [ %j.next, %one ]
  %more = icmp ult i64 %j, %size
  br i1 %more, label %one, label %out
one:
  %to.at = getelementptr i8, ptr %to, i64 %j
  store i8 %byte, ptr %to.at, align 1
  %j.next = add i64 %j, 1
  br label %narrow
out:
  ret ptr %to
}
"""

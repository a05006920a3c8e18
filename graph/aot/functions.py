"""The functions of an exported library that other programs call.

A struct of options has 64 bytes. Those of earlier versions have 48 or 56, and what they lack is
zero.
"""

from __future__ import annotations

from fastrun.graph.aot.layout import (
    COUNT_AT,
    IN_PLACE_AT,
    INPUT,
    JOB_AT,
    KIND_BITS,
    MAPPED_AT,
    MAPPED_SIZE_AT,
    MOST_THREADS,
    OUTPUT,
    OWN_AT,
    STEP_BYTES,
    STEPS_AT,
    STRIDES_AT,
    TEAM_AT,
    THREADS_AT,
    VARIANT_AT,
    WEIGHTS_AT,
    Interface,
    code,
)
from fastrun.graph.aot.weights import room_size

FUNCTIONS = ("open", "memory", "run", "clone", "close", "isa", "input", "output")
"""The functions of the interface, behind the prefix."""


def functions(x: Interface) -> str:
    """All of them."""
    others = [f(x.prefix) for f in (_memory, _run, _close, _isa)]
    told = [
        _described(x.prefix, "input", 0, len(x.inputs)),
        _described(x.prefix, "output", len(x.inputs), len(x.outputs)),
    ]
    return "\n\n".join([_open(x), _clone(x), *others, *told])


def _open(x: Interface) -> str:
    """Read the options, choose the code, map or copy the weights, make a context."""
    embedded, room = f"@{x.embed}" if x.embed else "null", room_size(x.file_size)
    return f"""define i32 @{x.prefix}_open(ptr %out, ptr %options) nounwind {{
entry:
  store ptr null, ptr %out, align 8
  %all = alloca [8 x i64], align 8
  %size = load i64, ptr %options, align 8
  %known = icmp uge i64 %size, 48
  %longer = icmp ugt i64 %size, 64
  %read.size = select i1 %longer, i64 64, i64 %size
  br i1 %known, label %read, label %bad
read:
  call void @llvm.memset.p0.i64(ptr %all, i8 0, i64 64, i1 false)
  call void @llvm.memcpy.p0.p0.i64(ptr %all, ptr %options, i64 %read.size, i1 false)
{_OPTIONS}
  %isa = sub i32 %isa.given, 1
  %default = icmp eq i32 %threads.given, 0
  %number.of = select i1 %default, i32 1, i32 %threads.given
  %positive = icmp sgt i32 %number.of, 0
  %few = icmp sle i32 %number.of, {MOST_THREADS}
  %possible = and i1 %positive, %few
  br i1 %possible, label %choose, label %bad
choose:
  %threads = sext i32 %number.of to i64
  %number = call i64 @choose(i32 %isa)
  %runs = icmp sge i64 %number, 0
  br i1 %runs, label %source, label %unsupported
source:
  %variant.at = getelementptr %variant, ptr @variants, i64 %number
  %variant = load %variant, ptr %variant.at, align 8
  %offset = extractvalue %variant %variant, 4
  %bytes = extractvalue %variant %variant, 7
  %named = icmp ne ptr %path, null
  br i1 %named, label %file, label %inside
inside:
  %embedded = icmp ne ptr {embedded}, null
  br i1 %embedded, label %found, label %lacking
file:
  %mapped = call {{ i32, ptr }} @map_weights(ptr %path)
  %refused = extractvalue {{ i32, ptr }} %mapped, 0
  %room = extractvalue {{ i32, ptr }} %mapped, 1
  %fine = icmp eq i32 %refused, 0
  br i1 %fine, label %there, label %no.weights
there:
  %start = call ptr @behind(ptr %room)
  br label %found
found:
  %all.weights = phi ptr [ {embedded}, %inside ], [ %start, %there ]
  %from.file = phi ptr [ null, %inside ], [ %room, %there ]
  %from.size = phi i64 [ 0, %inside ], [ {room}, %there ]
  %mine = getelementptr i8, ptr %all.weights, i64 %offset
  %copies = icmp ne i32 %copy, 0
  br i1 %copies, label %copy.them, label %begin
copy.them:
  %copied = call {{ i32, ptr }} @copy_weights(ptr %mine, i64 %bytes)
  call void @drop(ptr %from.file, i64 %from.size)
  %failed = extractvalue {{ i32, ptr }} %copied, 0
  %private = extractvalue {{ i32, ptr }} %copied, 1
  %private.size = add i64 %bytes, {room_size(0)}
  %copied.well = icmp eq i32 %failed, 0
  br i1 %copied.well, label %moved, label %no.room
moved:
  %private.start = call ptr @behind(ptr %private)
  br label %begin
begin:
  %packed = phi ptr [ %mine, %found ], [ %private.start, %moved ]
  %held = phi ptr [ %from.file, %found ], [ %private, %moved ]
  %held.size = phi i64 [ %from.size, %found ], [ %private.size, %moved ]
  %result = call i32 @begin(ptr %out, i64 %number, i64 %threads, ptr %packed, ptr %memory,
                            i64 %memory.size, ptr %held, i64 %held.size,
                            ptr %in.strides, ptr %out.strides, i32 %in.place)
  %opened = icmp eq i32 %result, 0
  br i1 %opened, label %answer, label %unmap
unmap:
  call void @drop(ptr %held, i64 %held.size)
  br label %answer
answer:
  ret i32 %result
no.weights:
  ret i32 %refused
no.room:
  ret i32 %failed
lacking:
  ret i32 {code("WEIGHTS_MISSING")}
unsupported:
  %unknown = icmp eq i64 %number, -2
  br i1 %unknown, label %bad, label %lacks
lacks:
  ret i32 {code("PROCESSOR")}
bad:
  ret i32 {code("OPTIONS")}
}}"""


_OPTIONS = "\n".join(
    f"  %{name}.at = getelementptr i8, ptr %all, i64 {place}\n"
    f"  %{name} = load {kind}, ptr %{name}.at, align 4"
    for name, place, kind in (
        ("path", 8, "ptr"), ("threads.given", 16, "i32"), ("isa.given", 20, "i32"),
        ("memory", 24, "ptr"), ("memory.size", 32, "i64"), ("in.strides", 40, "ptr"),
        ("out.strides", 48, "ptr"), ("copy", 56, "i32"), ("in.place", 60, "i32"),
    )
)  # fmt: skip
"""Load all options but the size."""


def _memory(p: str) -> str:
    """The bytes of a context."""
    return f"""define i64 @{p}_memory(i32 %threads, i32 %isa.given) nounwind {{
entry:
  %isa = sub i32 %isa.given, 1
  %number = call i64 @choose(i32 %isa)
  %runs = icmp sge i64 %number, 0
  %positive = icmp sgt i32 %threads, 0
  %few = icmp sle i32 %threads, {MOST_THREADS}
  %some = and i1 %positive, %few
  %fine = and i1 %runs, %some
  br i1 %fine, label %ask, label %none
ask:
  %number.of = sext i32 %threads to i64
  %size = call i64 @whole(i64 %number, i64 %number.of)
  ret i64 %size
none:
  ret i64 0
}}"""


def _run(p: str) -> str:
    """Put the caller's arrays into the steps, and walk them."""
    return f"""define i32 @{p}_run(ptr %context, ptr %inputs, ptr %outputs) nounwind {{
entry:
  %number.at = getelementptr i8, ptr %context, i64 {VARIANT_AT}
  %number = load i64, ptr %number.at, align 8
  %table.at = getelementptr %variant, ptr @variants, i64 %number
  %table = load ptr, ptr %table.at, align 8
  %count.at = getelementptr i8, ptr %context, i64 {COUNT_AT}
  %count = load i64, ptr %count.at, align 8
  %steps = getelementptr i8, ptr %context, i64 {STEPS_AT}
  br label %step
step:
  %i = phi i64 [ 0, %entry ], [ %next, %stepped ]
  %src.at = getelementptr %entry, ptr %table, i64 %i, i32 2, i64 0
  %dst.at = getelementptr %entry, ptr %table, i64 %i, i32 2, i64 4
  %src = load i64, ptr %src.at, align 8
  %dst = load i64, ptr %dst.at, align 8
  %offset = mul i64 %i, {STEP_BYTES}
  %place = getelementptr i8, ptr %steps, i64 %offset
  %src.kind = lshr i64 %src, {KIND_BITS}
  %reads = icmp eq i64 %src.kind, {INPUT}
  br i1 %reads, label %read, label %perhaps
read:
  %which = and i64 %src, {(1 << KIND_BITS) - 1}
  %in.at = getelementptr ptr, ptr %inputs, i64 %which
  %in = load ptr, ptr %in.at, align 8
  %in.missing = icmp eq ptr %in, null
  br i1 %in.missing, label %bad, label %take
take:
  %in.place = getelementptr ptr, ptr %place, i64 2
  store ptr %in, ptr %in.place, align 8
  br label %perhaps
perhaps:
  %dst.kind = lshr i64 %dst, {KIND_BITS}
  %writes = icmp eq i64 %dst.kind, {OUTPUT}
  br i1 %writes, label %write, label %stepped
write:
  %whose = and i64 %dst, {(1 << KIND_BITS) - 1}
  %out.at = getelementptr ptr, ptr %outputs, i64 %whose
  %out = load ptr, ptr %out.at, align 8
  %out.missing = icmp eq ptr %out, null
  br i1 %out.missing, label %bad, label %give
give:
  %out.place = getelementptr ptr, ptr %place, i64 6
  store ptr %out, ptr %out.place, align 8
  br label %stepped
stepped:
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %count
  br i1 %more, label %step, label %run
run:
  %fitting.at = getelementptr i8, ptr %context, i64 {IN_PLACE_AT}
  %fitting = load i64, ptr %fitting.at, align 8
  %copied = icmp eq i64 %fitting, 0
  br i1 %copied, label %walk, label %replace
replace:
  call void @put_in_place(ptr %context, ptr %inputs, ptr %outputs)
  br label %walk
walk:
  %team = getelementptr i8, ptr %context, i64 {TEAM_AT}
  %job = getelementptr i8, ptr %context, i64 {JOB_AT}
  %elapsed = call i64 @lead(ptr %team, ptr %job)
  ret i32 0
bad:
  ret i32 {code("OPTIONS")}
}}"""


def _clone(x: Interface) -> str:
    """Another context with the same weights."""
    return f"""define i32 @{x.prefix}_clone(ptr %out, ptr %context) nounwind {{
  store ptr null, ptr %out, align 8
  %threads.at = getelementptr i8, ptr %context, i64 {THREADS_AT}
  %threads = load i64, ptr %threads.at, align 8
  %number.at = getelementptr i8, ptr %context, i64 {VARIANT_AT}
  %number = load i64, ptr %number.at, align 8
  %weights.at = getelementptr i8, ptr %context, i64 {WEIGHTS_AT}
  %weights = load ptr, ptr %weights.at, align 8
  %mapped.at = getelementptr i8, ptr %context, i64 {MAPPED_AT}
  %mapped = load ptr, ptr %mapped.at, align 8
  %mapped.size.at = getelementptr i8, ptr %context, i64 {MAPPED_SIZE_AT}
  %mapped.size = load i64, ptr %mapped.size.at, align 8
  %in.strides.at = getelementptr i8, ptr %context, i64 {STRIDES_AT}
  %in.strides = load ptr, ptr %in.strides.at, align 8
  %out.strides = getelementptr ptr, ptr %in.strides, i64 {len(x.inputs)}
  %fitting.at = getelementptr i8, ptr %context, i64 {IN_PLACE_AT}
  %fitting = load i64, ptr %fitting.at, align 8
  %asked = icmp ne i64 %fitting, 0
  %in.place = zext i1 %asked to i32
  %result = call i32 @begin(ptr %out, i64 %number, i64 %threads, ptr %weights, ptr null, i64 0,
                            ptr %mapped, i64 %mapped.size, ptr %in.strides, ptr %out.strides,
                            i32 %in.place)
  %made = icmp eq i32 %result, 0
  %counted = icmp ne ptr %mapped, null
  %shares = and i1 %made, %counted
  br i1 %shares, label %share, label %out.here
share:
  %before = atomicrmw add ptr %mapped, i64 1 monotonic
  br label %out.here
out.here:
  ret i32 %result
}}"""


def _close(p: str) -> str:
    """Let the threads end, and free what the context owns."""
    return f"""define void @{p}_close(ptr %context) nounwind {{
entry:
  %there = icmp ne ptr %context, null
  br i1 %there, label %end, label %out
end:
  %threads.at = getelementptr i8, ptr %context, i64 {THREADS_AT}
  %threads = load i64, ptr %threads.at, align 8
  call void @dismiss(ptr %context, i64 %threads)
  %mapped.at = getelementptr i8, ptr %context, i64 {MAPPED_AT}
  %mapped = load ptr, ptr %mapped.at, align 8
  %mapped.size.at = getelementptr i8, ptr %context, i64 {MAPPED_SIZE_AT}
  %mapped.size = load i64, ptr %mapped.size.at, align 8
  %own.at = getelementptr i8, ptr %context, i64 {OWN_AT}
  %own = load i64, ptr %own.at, align 8
  %file = icmp ne ptr %mapped, null
  br i1 %file, label %leave, label %perhaps
leave:
  %shared = atomicrmw sub ptr %mapped, i64 1 acq_rel
  %last = icmp eq i64 %shared, 1
  br i1 %last, label %unmap, label %perhaps
unmap:
  call void @drop(ptr %mapped, i64 %mapped.size)
  br label %perhaps
perhaps:
  %owned = icmp ne i64 %own, 0
  br i1 %owned, label %free, label %out
free:
  %freed = call i32 @munmap(ptr %context, i64 %own)
  br label %out
out:
  ret void
}}"""


def _isa(p: str) -> str:
    """The name of the code that runs."""
    return f"""define ptr @{p}_isa(ptr %context) nounwind {{
  %number.at = getelementptr i8, ptr %context, i64 {VARIANT_AT}
  %number = load i64, ptr %number.at, align 8
  %name.at = getelementptr %variant, ptr @variants, i64 %number, i32 5
  %name = load ptr, ptr %name.at, align 8
  ret ptr %name
}}"""


def _described(p: str, kind: str, first: int, count: int) -> str:
    """What an input or output is, of `count` from port `first` on; null for other numbers."""
    return f"""define ptr @{p}_{kind}(i32 %i) nounwind {{
  %number = zext i32 %i to i64
  %known = icmp ult i64 %number, {count}
  %port = add i64 %number, {first}
  %at = getelementptr %tensor, ptr @ports, i64 %port
  %found = select i1 %known, ptr %at, ptr null
  ret ptr %found
}}"""

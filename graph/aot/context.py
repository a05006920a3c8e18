"""Functions inside an exported library that make a context: its size, weights, threads, steps."""

from __future__ import annotations

from fastrun.graph.aot.layout import (
    ARENA,
    ARGUMENTS_AT,
    COUNT_AT,
    HANDLES_AT,
    HEAD_BYTES,
    INPUT,
    KIND_BITS,
    LOCALS_AT,
    OUTPUT,
    SHARED_BYTES,
    STEP_BYTES,
    STEPS_AT,
    STRIDES_AT,
    TEAM_AT,
    THREADS_AT,
    VARIANT_AT,
    WEIGHTS,
    WEIGHTS_AT,
    code,
    job_word,
    word,
)
from fastrun.kernels.native.driver import COUNTERS, JOB_WORDS, TALLY

SIZES = f"""define internal {{ i64, i64, i64 }} @sizes(i64 %number, i64 %threads) nounwind {{
  %at = getelementptr %variant, ptr @variants, i64 %number
  %v = load %variant, ptr %at, align 8
  %count = extractvalue %variant %v, 1
  %arena = extractvalue %variant %v, 2
  %local = extractvalue %variant %v, 3
  %steps = mul i64 %count, {STEP_BYTES}
  %strides.end = add i64 %steps, STRIDES_SIZE
  %steps.end = add i64 %strides.end, {STEPS_AT + 127}
  %tally = and i64 %steps.end, -128
  %each = mul i64 %count, {2 * COUNTERS}
  %counters = mul i64 %each, %threads
  %counters.end = add i64 %tally, %counters
  %arena.far = add i64 %counters.end, {TALLY + 4095}
  %arena.at = and i64 %arena.far, -4096
  %local.far = add i64 %arena.at, %arena
  %local.far.end = add i64 %local.far, 4095
  %local.at = and i64 %local.far.end, -4096
  %found.0 = insertvalue {{ i64, i64, i64 }} poison, i64 %tally, 0
  %found.1 = insertvalue {{ i64, i64, i64 }} %found.0, i64 %arena.at, 1
  %found.2 = insertvalue {{ i64, i64, i64 }} %found.1, i64 %local.at, 2
  ret {{ i64, i64, i64 }} %found.2
}}

define internal i64 @whole(i64 %number, i64 %threads) nounwind {{
  %parts = call {{ i64, i64, i64 }} @sizes(i64 %number, i64 %threads)
  %local.at = extractvalue {{ i64, i64, i64 }} %parts, 2
  %each.at = getelementptr %variant, ptr @variants, i64 %number, i32 3
  %each = load i64, ptr %each.at, align 8
  %all = mul i64 %each, %threads
  %size = add i64 %local.at, %all
  ret i64 %size
}}"""
"""Offsets of counters, arena and workspaces in a context, and its size, for some threads."""

STRIDES = """define internal void @take_strides(ptr %table, ptr %tensors, i64 %first, i64 %count,
                                   ptr %given) nounwind {
entry:
  %nothing = icmp eq ptr %given, null
  %some = icmp ne i64 %count, 0
  br i1 %some, label %port, label %out
port:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  %number = add i64 %first, %i
  %own.at = getelementptr ptr, ptr %table, i64 %number
  store ptr null, ptr %own.at, align 8
  br i1 %nothing, label %next, label %look
look:
  %mine.at = getelementptr ptr, ptr %given, i64 %i
  %mine = load ptr, ptr %mine.at, align 8
  %dense = icmp eq ptr %mine, null
  br i1 %dense, label %next, label %measure
measure:
  %slots = getelementptr i8, ptr %table, i64 PORTS_SIZE
  %far = mul i64 %number, SLOT
  %slot = getelementptr i8, ptr %slots, i64 %far
  store ptr %slot, ptr %own.at, align 8
  %rank.at = getelementptr %tensor, ptr %tensors, i64 %i, i32 3
  %rank = load i64, ptr %rank.at, align 8
  %axes = icmp ne i64 %rank, 0
  br i1 %axes, label %axis, label %next
axis:
  %a = phi i64 [ 0, %measure ], [ %a.next, %axis ]
  %from = getelementptr i64, ptr %mine, i64 %a
  %stride = load i64, ptr %from, align 8
  %to = getelementptr i64, ptr %slot, i64 %a
  store i64 %stride, ptr %to, align 8
  %a.next = add i64 %a, 1
  %more.axes = icmp ult i64 %a.next, %rank
  br i1 %more.axes, label %axis, label %next
next:
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %count
  br i1 %more, label %port, label %out
out:
  ret void
}"""
"""Copy the caller's strides into a context: a table of their addresses, null for dense arrays."""

MAP_WEIGHTS = f"""define internal {{ i32, ptr }} @map_weights(ptr %path) nounwind {{
entry:
  %file = call i32 (ptr, i32, ...) @open(ptr %path, i32 524288)
  %opened = icmp sge i32 %file, 0
  br i1 %opened, label %measure, label %missing
measure:
  %size = call i64 @lseek(i32 %file, i64 0, i32 2)
  %whole = icmp eq i64 %size, FILE_SIZE
  br i1 %whole, label %map, label %unlike
map:
  %room = call ptr @mmap(ptr null, i64 ROOM_SIZE, i32 3, i32 16418, i32 -1, i64 0)
  %room.address = ptrtoint ptr %room to i64
  %none = icmp eq i64 %room.address, -1
  br i1 %none, label %full, label %fill
fill:
  %wanted = getelementptr i8, ptr %room, i64 {SHARED_BYTES}
  %start = call ptr @mmap(ptr %wanted, i64 FILE_SIZE, i32 1, i32 18, i32 %file, i64 0)
  %closed = call i32 @close(i32 %file)
  %address = ptrtoint ptr %start to i64
  %failed = icmp eq i64 %address, -1
  br i1 %failed, label %lost, label %compare
compare:
  %i = phi i64 [ 0, %fill ], [ %next, %same ]
  %a.at = getelementptr i64, ptr %start, i64 %i
  %b.at = getelementptr i64, ptr @head, i64 %i
  %a = load i64, ptr %a.at, align 8
  %b = load i64, ptr %b.at, align 8
  %equal = icmp eq i64 %a, %b
  br i1 %equal, label %same, label %foreign
same:
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, {HEAD_BYTES // 8}
  br i1 %more, label %compare, label %done
done:
  store atomic i64 1, ptr %room monotonic, align 8
  %good = insertvalue {{ i32, ptr }} {{ i32 0, ptr poison }}, ptr %room, 1
  ret {{ i32, ptr }} %good
foreign:
  %freed = call i32 @munmap(ptr %room, i64 ROOM_SIZE)
  ret {{ i32, ptr }} {{ i32 {code("WEIGHTS_OTHER")}, ptr null }}
unlike:
  %shut = call i32 @close(i32 %file)
  ret {{ i32, ptr }} {{ i32 {code("WEIGHTS_OTHER")}, ptr null }}
full:
  %shut.too = call i32 @close(i32 %file)
  ret {{ i32, ptr }} {{ i32 {code("MEMORY")}, ptr null }}
lost:
  %dropped = call i32 @munmap(ptr %room, i64 ROOM_SIZE)
  br label %missing
missing:
  ret {{ i32, ptr }} {{ i32 {code("WEIGHTS_MISSING")}, ptr null }}
}}"""
"""Map the file of weights read-only, if it is the one that belongs to this library.

In front of it lies the number of contexts that share it: the last one to close unmaps it.
"""

START = f"""define internal ptr @live(ptr %argument) nounwind {{
  %context = load ptr, ptr %argument, align 8
  %number.at = getelementptr i64, ptr %argument, i64 1
  %number = load i64, ptr %number.at, align 8
  %team = getelementptr i8, ptr %context, i64 {TEAM_AT}
  call void @serve(ptr %team, i64 %number)
  ret ptr null
}}

define internal void @dismiss(ptr %context, i64 %recruited) nounwind {{
entry:
  %job = alloca [{len(JOB_WORDS)} x i64], align 8
  call void @llvm.memset.p0.i64(ptr %job, i8 0, i64 {8 * len(JOB_WORDS)}, i1 false)
  %threads.at = getelementptr i64, ptr %job, i64 {JOB_WORDS.index("threads")}
  store i64 %recruited, ptr %threads.at, align 8
  %several = icmp ugt i64 %recruited, 1
  br i1 %several, label %call, label %out
call:
  %team = getelementptr i8, ptr %context, i64 {TEAM_AT}
  %gone = call i64 @lead(ptr %team, ptr %job)
  br label %join
join:
  %i = phi i64 [ 1, %call ], [ %next, %join ]
  %handles = getelementptr i8, ptr %context, i64 {HANDLES_AT}
  %handle.at = getelementptr ptr, ptr %handles, i64 %i
  %handle = load ptr, ptr %handle.at, align 8
  %joined = call i32 @pthread_join(ptr %handle, ptr null)
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %recruited
  br i1 %more, label %join, label %out
out:
  ret void
}}

define internal i32 @recruit(ptr %context, i64 %threads) nounwind {{
entry:
  %several = icmp ugt i64 %threads, 1
  br i1 %several, label %next, label %good
next:
  %i = phi i64 [ 1, %entry ], [ %i.next, %started ]
  %arguments = getelementptr i8, ptr %context, i64 {ARGUMENTS_AT}
  %offset = mul i64 %i, 16
  %argument = getelementptr i8, ptr %arguments, i64 %offset
  store ptr %context, ptr %argument, align 8
  %number.at = getelementptr i64, ptr %argument, i64 1
  store i64 %i, ptr %number.at, align 8
  %handles = getelementptr i8, ptr %context, i64 {HANDLES_AT}
  %handle = getelementptr ptr, ptr %handles, i64 %i
  %refused = call i32 @pthread_create(ptr %handle, ptr null, ptr @live, ptr %argument)
  %lives = icmp eq i32 %refused, 0
  br i1 %lives, label %started, label %bad
started:
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, %threads
  br i1 %more, label %next, label %good
good:
  ret i32 0
bad:
  call void @dismiss(ptr %context, i64 %i)
  ret i32 {code("THREADS")}
}}"""
"""Start the other threads of a context, and let them end."""


MAKE = f"""define internal i32 @make(ptr %context, i64 %number, i64 %threads, ptr %weights,
                          ptr %in.strides, ptr %out.strides) nounwind {{
entry:
  %variant.at = getelementptr %variant, ptr @variants, i64 %number
  %v = load %variant, ptr %variant.at, align 8
  %table = extractvalue %variant %v, 0
  %count = extractvalue %variant %v, 1
  %local.size = extractvalue %variant %v, 3
  %begin = extractvalue %variant %v, 4
  %packed = getelementptr i8, ptr %weights, i64 %begin
  %parts = call {{ i64, i64, i64 }} @sizes(i64 %number, i64 %threads)
  %tally.at = extractvalue {{ i64, i64, i64 }} %parts, 0
  %arena.at = extractvalue {{ i64, i64, i64 }} %parts, 1
  %local.at = extractvalue {{ i64, i64, i64 }} %parts, 2
  %tally = getelementptr i8, ptr %context, i64 %tally.at
  %arena = getelementptr i8, ptr %context, i64 %arena.at
  %local.first = getelementptr i8, ptr %context, i64 %local.at
  %steps = getelementptr i8, ptr %context, i64 {STEPS_AT}
  %locals = getelementptr i8, ptr %context, i64 {LOCALS_AT}
{word(THREADS_AT, "%threads")}
{word(VARIANT_AT, "%number")}
{word(WEIGHTS_AT, "%weights", "ptr")}
{word(COUNT_AT, "%count")}
{job_word("steps", "%steps", "ptr")}
{job_word("count", "%count")}
{job_word("threads", "%threads")}
{job_word("local", "%locals", "ptr")}
{job_word("repeats", "1")}
{job_word("copies", "1")}
{job_word("tally", "%tally", "ptr")}
  %loose.at = getelementptr %variant, ptr @variants, i64 %number, i32 6
  %loose = load ptr, ptr %loose.at, align 8
  %steps.size = mul i64 %count, {STEP_BYTES}
  %strides = getelementptr i8, ptr %steps, i64 %steps.size
{word(STRIDES_AT, "%strides", "ptr")}
  call void @take_strides(ptr %strides, ptr @inputs, i64 0, i64 INPUT_COUNT, ptr %in.strides)
  call void @take_strides(ptr %strides, ptr @outputs, i64 INPUT_COUNT, i64 OUTPUT_COUNT,
                          ptr %out.strides)
  br label %workspace
workspace:
  %t = phi i64 [ 0, %entry ], [ %t.next, %workspace ]
  %t.offset = mul i64 %t, %local.size
  %mine = getelementptr i8, ptr %local.first, i64 %t.offset
  %mine.at = getelementptr ptr, ptr %locals, i64 %t
  store ptr %mine, ptr %mine.at, align 8
  %t.next = add i64 %t, 1
  %t.more = icmp ult i64 %t.next, %threads
  br i1 %t.more, label %workspace, label %step
step:
  %i = phi i64 [ 0, %workspace ], [ %i.next, %stepped ]
  %entry.at = getelementptr %entry, ptr %table, i64 %i
  %given = load %entry, ptr %entry.at, align 8
  %step.offset = mul i64 %i, {STEP_BYTES}
  %step.at = getelementptr i8, ptr %steps, i64 %step.offset
  %stage = extractvalue %entry %given, 0
  store ptr %stage, ptr %step.at, align 8
  %tasks = extractvalue %entry %given, 1
  %tasks.at = getelementptr i64, ptr %step.at, i64 1
  store i64 %tasks, ptr %tasks.at, align 8
  %joins = extractvalue %entry %given, 3
  %joins.at = getelementptr i64, ptr %step.at, i64 8
  store i64 %joins, ptr %joins.at, align 8
  br label %operand
operand:
  %o = phi i64 [ 0, %step ], [ %o.next, %operand ]
  %code.at = getelementptr %entry, ptr %entry.at, i64 0, i32 2, i64 %o
  %code = load i64, ptr %code.at, align 8
  %kind = lshr i64 %code, {KIND_BITS}
  %offset = and i64 %code, {(1 << KIND_BITS) - 1}
  %in.arena = icmp eq i64 %kind, {ARENA}
  %in.weights = icmp eq i64 %kind, {WEIGHTS}
  %a = getelementptr i8, ptr %arena, i64 %offset
  %w = getelementptr i8, ptr %packed, i64 %offset
  %or.null = select i1 %in.weights, ptr %w, ptr null
  %address = select i1 %in.arena, ptr %a, ptr %or.null
  %place = add i64 %o, 2
  %place.at = getelementptr ptr, ptr %step.at, i64 %place
  store ptr %address, ptr %place.at, align 8
  %o.next = add i64 %o, 1
  %o.more = icmp ult i64 %o.next, 6
  br i1 %o.more, label %operand, label %edge
edge:
  %src.at = getelementptr %entry, ptr %entry.at, i64 0, i32 2, i64 0
  %dst.at = getelementptr %entry, ptr %entry.at, i64 0, i32 2, i64 4
  %src = load i64, ptr %src.at, align 8
  %dst = load i64, ptr %dst.at, align 8
  %src.kind = lshr i64 %src, {KIND_BITS}
  %dst.kind = lshr i64 %dst, {KIND_BITS}
  %reads = icmp eq i64 %src.kind, {INPUT}
  %writes = icmp eq i64 %dst.kind, {OUTPUT}
  %outside = or i1 %reads, %writes
  br i1 %outside, label %port, label %stepped
port:
  %input = and i64 %src, {(1 << KIND_BITS) - 1}
  %output = and i64 %dst, {(1 << KIND_BITS) - 1}
  %behind = add i64 %output, INPUT_COUNT
  %which = select i1 %reads, i64 %input, i64 %behind
  %given.at = getelementptr ptr, ptr %strides, i64 %which
  %strided = load ptr, ptr %given.at, align 8
  %dense = icmp eq ptr %strided, null
  br i1 %dense, label %stepped, label %replace
replace:
  %other.at = getelementptr %loose, ptr %loose, i64 %which
  %other = load %loose, ptr %other.at, align 8
  %other.stage = extractvalue %loose %other, 0
  %other.tasks = extractvalue %loose %other, 1
  store ptr %other.stage, ptr %step.at, align 8
  store i64 %other.tasks, ptr %tasks.at, align 8
  %strides.operand = getelementptr ptr, ptr %step.at, i64 3
  store ptr %strided, ptr %strides.operand, align 8
  br label %stepped
stepped:
  %i.next = add i64 %i, 1
  %i.more = icmp ult i64 %i.next, %count
  br i1 %i.more, label %step, label %threads.start
threads.start:
  %refused = call i32 @recruit(ptr %context, i64 %threads)
  ret i32 %refused
}}"""
"""Fill a zeroed context, and start its threads."""

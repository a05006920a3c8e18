"""A context of an exported network is made: its size, the caller's strides, its steps."""

from __future__ import annotations

from fastrun.graph.aot.layout import (
    ARENA,
    COUNT_AT,
    IN_PLACE_AT,
    INPUT,
    KIND_BITS,
    LOCALS_AT,
    MADV_HUGEPAGE,
    MAPPED_AT,
    MAPPED_SIZE_AT,
    OUTPUT,
    OWN_AT,
    PORT_BITS,
    STEP_BYTES,
    STEPS_AT,
    STRIDES_AT,
    TAKEN,
    THREADS_AT,
    VARIANT_AT,
    WEIGHTS,
    WEIGHTS_AT,
    Interface,
    code,
    job_word,
    word,
)
from fastrun.kernels.native.driver import COUNTERS, TALLY


def context(x: Interface) -> str:
    """The functions that make a context."""
    return "\n\n".join([_sizes(x), _strides(x), _make(x), _BEGIN])


def _sizes(x: Interface) -> str:
    """Offsets of counters, arena and workspaces in a context, and its size, for some threads."""
    return f"""define internal {{ i64, i64, i64 }} @sizes(i64 %number, i64 %threads) nounwind {{
  %at = getelementptr %variant, ptr @variants, i64 %number
  %v = load %variant, ptr %at, align 8
  %count = extractvalue %variant %v, 1
  %arena = extractvalue %variant %v, 2
  %local = extractvalue %variant %v, 3
  %steps = mul i64 %count, {STEP_BYTES}
  %strides.end = add i64 %steps, {x.ports * (8 + x.slot)}
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


def _strides(x: Interface) -> str:
    """Copy the caller's strides into a context: a table of addresses, null for dense arrays."""
    return f"""define internal void @take_strides(ptr %table, i64 %first, i64 %count,
                                   ptr %given) nounwind {{
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
  %slots = getelementptr i8, ptr %table, i64 {8 * x.ports}
  %far = mul i64 %number, {x.slot}
  %slot = getelementptr i8, ptr %slots, i64 %far
  store ptr %slot, ptr %own.at, align 8
  %rank.at = getelementptr %tensor, ptr @ports, i64 %number, i32 3
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
}}"""


def _make(x: Interface) -> str:
    """Fill a zeroed context, and start its threads."""
    return f"""define internal i32 @make(ptr %context, i64 %number, i64 %threads, ptr %packed,
                          ptr %in.strides, ptr %out.strides, i32 %in.place) nounwind {{
entry:
  %variant.at = getelementptr %variant, ptr @variants, i64 %number
  %v = load %variant, ptr %variant.at, align 8
  %table = extractvalue %variant %v, 0
  %count = extractvalue %variant %v, 1
  %local.size = extractvalue %variant %v, 3
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
{word(WEIGHTS_AT, "%packed", "ptr")}
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
  call void @take_strides(ptr %strides, i64 0, i64 {len(x.inputs)}, ptr %in.strides)
  call void @take_strides(ptr %strides, i64 {len(x.inputs)}, i64 {len(x.outputs)}, ptr %out.strides)
  %fitting = call i64 @fitting(ptr %strides, i32 %in.place)
{word(IN_PLACE_AT, "%fitting")}
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
  %takes = icmp eq i64 %kind, {TAKEN}
  %in.either = or i1 %in.arena, %takes
  %place.in.arena = and i64 %code, {(1 << PORT_BITS) - 1}
  %a = getelementptr i8, ptr %arena, i64 %place.in.arena
  %w = getelementptr i8, ptr %packed, i64 %offset
  %or.null = select i1 %in.weights, ptr %w, ptr null
  %address = select i1 %in.either, ptr %a, ptr %or.null
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
  %behind = add i64 %output, {len(x.inputs)}
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


_BEGIN = f"""define internal i32 @begin(ptr %out, i64 %number, i64 %threads, ptr %packed,
                           ptr %given, i64 %given.size, ptr %mapped, i64 %mapped.size,
                           ptr %in.strides, ptr %out.strides, i32 %in.place) nounwind {{
entry:
  %size = call i64 @whole(i64 %number, i64 %threads)
  %own = icmp eq ptr %given, null
  br i1 %own, label %ask, label %check
ask:
  %new = call ptr @mmap(ptr null, i64 %size, i32 3, i32 34, i32 -1, i64 0)
  %address = ptrtoint ptr %new to i64
  %failed = icmp eq i64 %address, -1
  br i1 %failed, label %short, label %advise
advise:
  %advised = call i32 @madvise(ptr %new, i64 %size, i32 {MADV_HUGEPAGE})
  br label %fill
check:
  %enough = icmp uge i64 %given.size, %size
  %place = ptrtoint ptr %given to i64
  %low = and i64 %place, 4095
  %aligned = icmp eq i64 %low, 0
  %usable = and i1 %enough, %aligned
  br i1 %usable, label %clear, label %short
clear:
  call void @llvm.memset.p0.i64(ptr %given, i8 0, i64 %size, i1 false)
  br label %fill
fill:
  %context = phi ptr [ %new, %advise ], [ %given, %clear ]
  %owned = phi i64 [ %size, %advise ], [ 0, %clear ]
{word(OWN_AT, "%owned")}
{word(MAPPED_AT, "%mapped", "ptr")}
{word(MAPPED_SIZE_AT, "%mapped.size")}
  %refused = call i32 @make(ptr %context, i64 %number, i64 %threads, ptr %packed,
                           ptr %in.strides, ptr %out.strides, i32 %in.place)
  %made = icmp eq i32 %refused, 0
  br i1 %made, label %good, label %bad
good:
  store ptr %context, ptr %out, align 8
  ret i32 0
bad:
  br i1 %own, label %return, label %leave
return:
  %returned = call i32 @munmap(ptr %context, i64 %size)
  br label %leave
leave:
  ret i32 %refused
short:
  ret i32 {code("MEMORY")}
}}"""
"""Make a context in memory of its own or of the caller's."""

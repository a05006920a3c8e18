"""Inputs and outputs that steps use where the caller has them, instead of a copy in the arena."""

from __future__ import annotations

from fastrun.graph.aot.layout import (
    IN_PLACE_AT,
    INPUT,
    KIND_BITS,
    MOST_IN_PLACE,
    OUTPUT,
    PORT_BITS,
    STEP_BYTES,
    STEPS_AT,
    STRIDES_AT,
    TAKEN,
    THREADS_AT,
    VARIANT_AT,
    Interface,
)
from fastrun.kernels.core.cpu import CACHE_LINE


def in_place(x: Interface) -> str:
    """A table of how inputs and outputs must lie, and the functions that read it."""
    rows, constants = list[str](), list[str]()
    for i, place in enumerate(x.in_place):
        strides = "null"
        if place is not None:
            strides = f"@place{i}"
            values = ", ".join(f"i64 {stride}" for stride in place.strides)
            count = len(place.strides)
            constants.append(f"{strides} = internal constant [{count} x i64] [{values}]")
        origin, dense = (place.origin, int(place.dense)) if place else (0, 0)
        rows.append(f"%place {{ i64 {origin}, i64 {dense}, ptr {strides} }}")
    table = f"@places = internal constant [{len(rows)} x %place] [{', '.join(rows)}]"
    functions = [_fitting(min(len(rows), MOST_IN_PLACE)), _resolve(x), _put(x)]
    return "\n\n".join(["%place = type { i64, i64, ptr }", *constants, table, *functions])


def _fitting(count: int) -> str:
    """Those of the first ports that lie as steps use them: a bit for each.

    The stride of an axis with one element does not matter.
    """
    return f"""define internal i64 @fitting(ptr %strides, i32 %asked) nounwind {{
entry:
  %none = icmp eq i32 %asked, 0
  br i1 %none, label %nothing, label %port
nothing:
  ret i64 0
port:
  %i = phi i64 [ 0, %entry ], [ %i.next, %judged ]
  %mask = phi i64 [ 0, %entry ], [ %mask.next, %judged ]
  %place.at = getelementptr %place, ptr @places, i64 %i
  %place = load %place, ptr %place.at, align 8
  %wanted = extractvalue %place %place, 2
  %never = icmp eq ptr %wanted, null
  br i1 %never, label %judged, label %look
look:
  %given.at = getelementptr ptr, ptr %strides, i64 %i
  %given = load ptr, ptr %given.at, align 8
  %dense.word = extractvalue %place %place, 1
  %dense = icmp ne i64 %dense.word, 0
  %tensor.at = getelementptr %tensor, ptr @ports, i64 %i
  %tensor = load %tensor, ptr %tensor.at, align 8
  %shape = extractvalue %tensor %tensor, 2
  %rank = extractvalue %tensor %tensor, 3
  %plain = icmp eq ptr %given, null
  br i1 %plain, label %judged, label %axes
axes:
  %any = icmp ne i64 %rank, 0
  br i1 %any, label %axis, label %judged
axis:
  %a = phi i64 [ 0, %axes ], [ %a.next, %alike ]
  %mine.at = getelementptr i64, ptr %wanted, i64 %a
  %other.at = getelementptr i64, ptr %given, i64 %a
  %length.at = getelementptr i64, ptr %shape, i64 %a
  %mine = load i64, ptr %mine.at, align 8
  %other = load i64, ptr %other.at, align 8
  %length = load i64, ptr %length.at, align 8
  %equal = icmp eq i64 %mine, %other
  %single = icmp eq i64 %length, 1
  %same = or i1 %equal, %single
  br i1 %same, label %alike, label %judged
alike:
  %a.next = add i64 %a, 1
  %a.more = icmp ult i64 %a.next, %rank
  br i1 %a.more, label %axis, label %judged
judged:
  %fits = phi i1 [ false, %port ], [ %dense, %look ], [ true, %axes ], [ false, %axis ],
                 [ true, %alike ]
  %one = zext i1 %fits to i64
  %bit = shl i64 %one, %i
  %mask.next = or i64 %mask, %bit
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, {count}
  br i1 %more, label %port, label %done
done:
  ret i64 %mask.next
}}"""


_PORT = (1 << (KIND_BITS - PORT_BITS)) - 1


def _resolve(x: Interface) -> str:
    """The caller's buffer for an operand that a port may take; null if it must be copied."""
    return f"""define internal ptr @in_place(ptr %context, ptr %inputs, ptr %outputs,
                              i64 %code) nounwind {{
  %high = lshr i64 %code, {PORT_BITS}
  %number = and i64 %high, {_PORT}
  %reads = icmp ult i64 %number, {len(x.inputs)}
  %behind = sub i64 %number, {len(x.inputs)}
  %arrays = select i1 %reads, ptr %inputs, ptr %outputs
  %which = select i1 %reads, i64 %number, i64 %behind
  %fitting.at = getelementptr i8, ptr %context, i64 {IN_PLACE_AT}
  %fitting = load i64, ptr %fitting.at, align 8
  %shifted = lshr i64 %fitting, %number
  %bit = and i64 %shifted, 1
  %fits = icmp ne i64 %bit, 0
  %given.at = getelementptr ptr, ptr %arrays, i64 %which
  %given = load ptr, ptr %given.at, align 8
  %place.at = getelementptr %place, ptr @places, i64 %number
  %origin = load i64, ptr %place.at, align 8
  %before = sub i64 0, %origin
  %base = getelementptr i8, ptr %given, i64 %before
  %address = ptrtoint ptr %base to i64
  %low = and i64 %address, {CACHE_LINE - 1}
  %aligned = icmp eq i64 %low, 0
  %usable = and i1 %fits, %aligned
  %found = select i1 %usable, ptr %base, ptr null
  ret ptr %found
}}"""


def _operand(number: int, behind: str) -> str:
    """Put the address of an operand of step `%i` into it, if a port may take its place."""
    o = f"o{number}"
    return f"""{o}:
  %{o}.code.at = getelementptr %entry, ptr %entry.at, i64 0, i32 2, i64 {number}
  %{o}.code = load i64, ptr %{o}.code.at, align 8
  %{o}.kind = lshr i64 %{o}.code, {KIND_BITS}
  %{o}.takes = icmp eq i64 %{o}.kind, {TAKEN}
  br i1 %{o}.takes, label %{o}.put, label %{behind}
{o}.put:
  %{o}.given = call ptr @in_place(ptr %context, ptr %inputs, ptr %outputs, i64 %{o}.code)
  %{o}.offset = and i64 %{o}.code, {(1 << PORT_BITS) - 1}
  %{o}.copy = getelementptr i8, ptr %arena, i64 %{o}.offset
  %{o}.copied = icmp eq ptr %{o}.given, null
  %{o}.address = select i1 %{o}.copied, ptr %{o}.copy, ptr %{o}.given
  %{o}.at = getelementptr ptr, ptr %step.at, i64 {number + 2}
  store ptr %{o}.address, ptr %{o}.at, align 8
  br label %{behind}"""


def _put(x: Interface) -> str:
    """Before a run: steps use the caller's buffers, and those that would copy do nothing.

    These are the steps that fill the copy of an input, and the one that empties that of an output.
    """
    return f"""define internal void @put_in_place(ptr %context, ptr %inputs,
                                   ptr %outputs) nounwind {{
entry:
  %number.at = getelementptr i8, ptr %context, i64 {VARIANT_AT}
  %number = load i64, ptr %number.at, align 8
  %threads.at = getelementptr i8, ptr %context, i64 {THREADS_AT}
  %threads = load i64, ptr %threads.at, align 8
  %variant.at = getelementptr %variant, ptr @variants, i64 %number
  %variant = load %variant, ptr %variant.at, align 8
  %table = extractvalue %variant %variant, 0
  %count = extractvalue %variant %variant, 1
  %loose = extractvalue %variant %variant, 6
  %parts = call {{ i64, i64, i64 }} @sizes(i64 %number, i64 %threads)
  %arena.at = extractvalue {{ i64, i64, i64 }} %parts, 1
  %arena = getelementptr i8, ptr %context, i64 %arena.at
  %strides.at = getelementptr i8, ptr %context, i64 {STRIDES_AT}
  %strides = load ptr, ptr %strides.at, align 8
  %steps = getelementptr i8, ptr %context, i64 {STEPS_AT}
  br label %step
step:
  %i = phi i64 [ 0, %entry ], [ %i.next, %stepped ]
  %entry.at = getelementptr %entry, ptr %table, i64 %i
  %step.offset = mul i64 %i, {STEP_BYTES}
  %step.at = getelementptr i8, ptr %steps, i64 %step.offset
  br label %o0
{_operand(0, "o3")}
{_operand(3, "o4")}
{_operand(4, "used")}
used:
  %src.kind = lshr i64 %o0.code, {KIND_BITS}
  %src.high = lshr i64 %o0.code, {PORT_BITS}
  %src.port = and i64 %src.high, {_PORT}
  %dst.high = lshr i64 %o4.code, {PORT_BITS}
  %dst.port = and i64 %dst.high, {_PORT}
  %of.input = icmp ult i64 %dst.port, {len(x.inputs)}
  %fills = and i1 %o4.takes, %of.input
  %out = icmp eq i64 %o4.kind, {OUTPUT}
  %of.output = icmp uge i64 %src.port, {len(x.inputs)}
  %from.output = and i1 %o0.takes, %of.output
  %empties = and i1 %out, %from.output
  %copies = or i1 %fills, %empties
  br i1 %copies, label %copy, label %stepped
copy:
  %code = select i1 %fills, i64 %o4.code, i64 %o0.code
  %port = select i1 %fills, i64 %dst.port, i64 %src.port
  %given = call ptr @in_place(ptr %context, ptr %inputs, ptr %outputs, i64 %code)
  %needed = icmp eq ptr %given, null
  %own.at = getelementptr %entry, ptr %entry.at, i64 0, i32 1
  %own = load i64, ptr %own.at, align 8
  %in = icmp eq i64 %src.kind, {INPUT}
  %all.of.it = or i1 %in, %empties
  br i1 %all.of.it, label %strided, label %decided
strided:
  %mine.at = getelementptr ptr, ptr %strides, i64 %port
  %mine = load ptr, ptr %mine.at, align 8
  %dense = icmp eq ptr %mine, null
  %other.at = getelementptr %loose, ptr %loose, i64 %port, i32 1
  %other = load i64, ptr %other.at, align 8
  %copying = select i1 %dense, i64 %own, i64 %other
  br label %decided
decided:
  %all = phi i64 [ %own, %copy ], [ %copying, %strided ]
  %tasks = select i1 %needed, i64 %all, i64 0
  %tasks.at = getelementptr i64, ptr %step.at, i64 1
  store i64 %tasks, ptr %tasks.at, align 8
  br label %stepped
stepped:
  %i.next = add i64 %i, 1
  %i.more = icmp ult i64 %i.next, %count
  br i1 %i.more, label %step, label %done
done:
  ret void
}}"""

"""The C interface of an exported network, as IR.

A context is one block of memory: its words, the team of threads, the steps with their addresses,
the counters of the walk, the arena, and a workspace for each thread. It is made by `open`, and its
threads walk the steps with the same driver as in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastrun.kernels.core.processors import Needs
from fastrun.kernels.native.driver import COUNTERS, JOB_WORDS, TALLY, TEAM_BYTES, driver_ir

MOST_THREADS = 64

# Operands of a step are stored as a kind in the top byte and an offset or number below it.
ARENA, WEIGHTS, INPUT, OUTPUT, NONE = range(5)
KIND_BITS = 56

ERRORS = {
    "OPTIONS": "an option is out of range, or the struct has another size",
    "WEIGHTS_MISSING": "the file of weights cannot be read",
    "WEIGHTS_OTHER": "the file of weights belongs to another export",
    "MEMORY": "the system gives no memory, or the caller gave too little",
    "THREADS": "the system allows no more threads",
    "PROCESSOR": "the processor lacks what the code needs",
}
"""Error codes by name, from 1 on in this order."""

HEAD_BYTES = 64  # of a file of weights: what identifies it
WEIGHTS_ALIGN = 4096

ENTRY = "{ ptr, i64, [6 x i64], i64 }"
"""A step as exported: its function, tasks, operands and whether it joins."""

_STEP_BYTES = 72

# Where things lie in a context, in bytes from its start.
_THREADS, _VARIANT, _WEIGHTS, _OWN, _MAPPED, _MAPPED_SIZE, _COUNT = range(0, 56, 8)
_JOB, _TEAM, _HANDLES = 64, 256, 1024
_ARGUMENTS = _HANDLES + 8 * MOST_THREADS
_LOCALS = _ARGUMENTS + 16 * MOST_THREADS
_STEPS = 4096
assert _TEAM + TEAM_BYTES <= _HANDLES
assert _LOCALS + 8 * MOST_THREADS <= _STEPS

SERVES = (
    "open", "lseek", "mmap", "munmap", "close", "pthread_create", "pthread_join", "clock_gettime",
    "sched_yield", "syscall", "memcpy", "memset", "getauxval",
)  # fmt: skip
"""All that an exported library may need of the C library."""


@dataclass(frozen=True)
class Variant:
    """The code for one kind of processor: symbols and sizes in bytes.

    `steps` is the symbol of its table, `weights` where its weights begin in the file.
    """

    name: str
    steps: str
    count: int
    arena: int
    local: int
    weights: int
    needs: Needs


def interface_ir(
    prefix: str, triple: str, variants: Sequence[Variant], head: bytes, file_size: int, embed: str
) -> str:
    """The module with the driver and the functions `prefix_*`, for the baseline of all variants.

    `head` are the first bytes of the file of weights, `embed` is the symbol of weights that lie in
    the library, "" if there are none.
    """
    rows, texts = [], []
    for i, v in enumerate(variants):
        texts.append(f"@{v.steps} = external hidden constant [{v.count} x {ENTRY}]")
        name = v.name.encode() + b"\0"
        texts.append(f'@name{i} = internal constant [{len(name)} x i8] c"{_escaped(name)}"')
        rows.append(
            f"%variant {{ ptr @{v.steps}, i64 {v.count}, i64 {v.arena}, i64 {v.local}, "
            f"i64 {v.weights}, ptr @name{i} }}"
        )
    table = ", ".join(rows)
    parts = [
        driver_ir(triple)
        .replace("define i64 @lead(", "define internal i64 @lead(")
        .replace("define void @serve(", "define internal void @serve("),
        "%variant = type { ptr, i64, i64, i64, i64, ptr }",
        f"%entry = type {ENTRY}",
        "\n".join(texts),
        f"@variants = internal constant [{len(variants)} x %variant] [{table}]",
        f'@head = internal constant [{len(head)} x i8] c"{_escaped(head)}", align 8',
        f"@{embed} = external hidden constant i8" if embed else "",
        _DECLARATIONS,
        _supported(triple, variants),
        _choose(len(variants)),
        _SIZE,
        _MAP_WEIGHTS.replace("FILE_SIZE", str(file_size)),
        _START,
        _MAKE,
        _functions(prefix, embed).replace("FILE_SIZE", str(file_size)),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _escaped(data: bytes) -> str:
    return "".join(f"\\{b:02X}" for b in data)


def code(error: str) -> int:
    """The number of an error."""
    return list(ERRORS).index(error) + 1


_DECLARATIONS = """declare i32 @open(ptr, i32, ...)
declare i64 @lseek(i32, i64, i32)
declare ptr @mmap(ptr, i64, i32, i32, i32, i64)
declare i32 @munmap(ptr, i64)
declare i32 @close(i32)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_join(ptr, ptr)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"""


def _supported(triple: str, variants: Sequence[Variant]) -> str:
    """Whether the processor has what variant `%number` needs."""
    if triple.startswith("x86_64"):
        return _x86_supported(variants)
    asks = "\n".join(
        f"  %held{i} = and i64 %word, {v.needs.hwcap}\n"
        f"  %has{i} = icmp eq i64 %held{i}, {v.needs.hwcap}\n"
        f"  %here{i} = icmp eq i64 %number, {i}\n"
        f"  %ok{i} = select i1 %here{i}, i1 %has{i}, i1 {f'%ok{i - 1}' if i else 'false'}"
        for i, v in enumerate(variants)
    )
    return f"""declare i64 @getauxval(i64)

define internal i1 @supported(i64 %number) nounwind {{
  %word = call i64 @getauxval(i64 16)
{asks}
  ret i1 %ok{len(variants) - 1}
}}"""


def _x86_supported(variants: Sequence[Variant]) -> str:
    """CPUID leaf by leaf, and XGETBV: the system must keep the registers of wide vectors."""
    rows = ", ".join(
        f"[6 x i32] [{', '.join(f'i32 {word - (1 << 32) * (word >> 31)}' for word in v.needs.x86)}]"
        for v in variants
    )
    fields = ((1, 0, 2), (7, 0, 1), (7, 0, 2), (7, 1, 0), (0x80000001 - (1 << 32), 0, 2))
    lines = ["  %most = call { i32, i32, i32, i32 } @cpuid(i32 0, i32 0)"]
    lines.append("  %leaves = extractvalue { i32, i32, i32, i32 } %most, 0")
    for i, (leaf, sub, register) in enumerate(fields):
        lines += [
            f"  %leaf{i} = call {{ i32, i32, i32, i32 }} @cpuid(i32 {leaf}, i32 {sub})",
            f"  %raw{i} = extractvalue {{ i32, i32, i32, i32 }} %leaf{i}, {register}",
            f"  %there{i} = icmp uge i32 %leaves, {leaf if 0 < leaf < 8 else 0}",
            f"  %word{i} = select i1 %there{i}, i32 %raw{i}, i32 0",
        ]
    checks = []
    for i in range(6):
        checks += [
            f"  %need{i}.at = getelementptr [6 x i32], ptr @needs, i64 %number, i64 {i}",
            f"  %need{i} = load i32, ptr %need{i}.at, align 4",
            f"  %held{i} = and i32 %need{i}, %{'state' if i == 5 else f'word{i}'}",
            f"  %has{i} = icmp eq i32 %held{i}, %need{i}",
            f"  %all{i} = and i1 %has{i}, {f'%all{i - 1}' if i else 'true'}",
        ]
    body = "\n".join(lines)
    return f"""@needs = internal constant [{len(variants)} x [6 x i32]] [{rows}]

define internal {{ i32, i32, i32, i32 }} @cpuid(i32 %leaf, i32 %sub) nounwind {{
  %found = call {{ i32, i32, i32, i32 }} asm
      "cpuid", "={{ax}},={{bx}},={{cx}},={{dx}},{{ax}},{{cx}}"(i32 %leaf, i32 %sub)
  ret {{ i32, i32, i32, i32 }} %found
}}

define internal i1 @supported(i64 %number) nounwind {{
entry:
{body}
  %saved.bit = and i32 %word0, 134217728
  %saved = icmp ne i32 %saved.bit, 0
  br i1 %saved, label %ask, label %asked
ask:
  %pair = call {{ i32, i32 }} asm "xgetbv", "={{ax}},={{dx}},{{cx}}"(i32 0)
  %kept = extractvalue {{ i32, i32 }} %pair, 0
  br label %asked
asked:
  %state = phi i32 [ 0, %entry ], [ %kept, %ask ]
{chr(10).join(checks)}
  ret i1 %all5
}}"""


def _choose(count: int) -> str:
    """The variant wanted, or the first that the processor supports; -1 if there is none."""
    return f"""define internal i64 @choose(i32 %wanted) nounwind {{
entry:
  %asked = icmp sge i32 %wanted, 0
  %known = icmp slt i32 %wanted, {count}
  %number = sext i32 %wanted to i64
  br i1 %asked, label %named, label %look
named:
  br i1 %known, label %try, label %none
try:
  %runs = call i1 @supported(i64 %number)
  br i1 %runs, label %this, label %none
this:
  ret i64 %number
look:
  %i = phi i64 [ 0, %entry ], [ %next, %other ]
  %fits = call i1 @supported(i64 %i)
  br i1 %fits, label %first, label %other
first:
  ret i64 %i
other:
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, {count}
  br i1 %more, label %look, label %none
none:
  ret i64 -1
}}"""


_SIZE = f"""define internal {{ i64, i64, i64 }} @sizes(i64 %number, i64 %threads) nounwind {{
  %at = getelementptr %variant, ptr @variants, i64 %number
  %v = load %variant, ptr %at, align 8
  %count = extractvalue %variant %v, 1
  %arena = extractvalue %variant %v, 2
  %local = extractvalue %variant %v, 3
  %steps = mul i64 %count, {_STEP_BYTES}
  %steps.end = add i64 %steps, {_STEPS + 127}
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

_MAP_WEIGHTS = f"""define internal {{ i32, ptr }} @map_weights(ptr %path) nounwind {{
entry:
  %file = call i32 (ptr, i32, ...) @open(ptr %path, i32 524288)
  %opened = icmp sge i32 %file, 0
  br i1 %opened, label %measure, label %missing
measure:
  %size = call i64 @lseek(i32 %file, i64 0, i32 2)
  %whole = icmp eq i64 %size, FILE_SIZE
  br i1 %whole, label %map, label %unlike
map:
  %start = call ptr @mmap(ptr null, i64 FILE_SIZE, i32 1, i32 2, i32 %file, i64 0)
  %closed = call i32 @close(i32 %file)
  %address = ptrtoint ptr %start to i64
  %failed = icmp eq i64 %address, -1
  br i1 %failed, label %missing, label %compare
compare:
  %i = phi i64 [ 0, %map ], [ %next, %same ]
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
  %good = insertvalue {{ i32, ptr }} {{ i32 0, ptr poison }}, ptr %start, 1
  ret {{ i32, ptr }} %good
foreign:
  %freed = call i32 @munmap(ptr %start, i64 FILE_SIZE)
  ret {{ i32, ptr }} {{ i32 {code("WEIGHTS_OTHER")}, ptr null }}
unlike:
  %shut = call i32 @close(i32 %file)
  ret {{ i32, ptr }} {{ i32 {code("WEIGHTS_OTHER")}, ptr null }}
missing:
  ret {{ i32, ptr }} {{ i32 {code("WEIGHTS_MISSING")}, ptr null }}
}}"""
"""Map the file of weights read-only, if it is the one that belongs to this library."""

_START = f"""define internal ptr @live(ptr %argument) nounwind {{
  %context = load ptr, ptr %argument, align 8
  %number.at = getelementptr i64, ptr %argument, i64 1
  %number = load i64, ptr %number.at, align 8
  %team = getelementptr i8, ptr %context, i64 {_TEAM}
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
  %team = getelementptr i8, ptr %context, i64 {_TEAM}
  %gone = call i64 @lead(ptr %team, ptr %job)
  br label %join
join:
  %i = phi i64 [ 1, %call ], [ %next, %join ]
  %handles = getelementptr i8, ptr %context, i64 {_HANDLES}
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
  %arguments = getelementptr i8, ptr %context, i64 {_ARGUMENTS}
  %offset = mul i64 %i, 16
  %argument = getelementptr i8, ptr %arguments, i64 %offset
  store ptr %context, ptr %argument, align 8
  %number.at = getelementptr i64, ptr %argument, i64 1
  store i64 %i, ptr %number.at, align 8
  %handles = getelementptr i8, ptr %context, i64 {_HANDLES}
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


def _job(name: str, value: str, kind: str = "i64") -> str:
    at = f"%job.{name}"
    return (
        f"  {at} = getelementptr i8, ptr %context, i64 {_JOB + 8 * JOB_WORDS.index(name)}\n"
        f"  store {kind} {value}, ptr {at}, align 8"
    )


def _word(place: int, value: str, kind: str = "i64") -> str:
    return (
        f"  %word{place} = getelementptr i8, ptr %context, i64 {place}\n"
        f"  store {kind} {value}, ptr %word{place}, align 8"
    )


_MAKE = f"""define internal i32 @make(ptr %context, i64 %number, i64 %threads,
                          ptr %weights) nounwind {{
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
  %steps = getelementptr i8, ptr %context, i64 {_STEPS}
  %locals = getelementptr i8, ptr %context, i64 {_LOCALS}
{_word(_THREADS, "%threads")}
{_word(_VARIANT, "%number")}
{_word(_WEIGHTS, "%weights", "ptr")}
{_word(_COUNT, "%count")}
{_job("steps", "%steps", "ptr")}
{_job("count", "%count")}
{_job("threads", "%threads")}
{_job("local", "%locals", "ptr")}
{_job("repeats", "1")}
{_job("copies", "1")}
{_job("tally", "%tally", "ptr")}
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
  %step.offset = mul i64 %i, {_STEP_BYTES}
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
  br i1 %o.more, label %operand, label %stepped
stepped:
  %i.next = add i64 %i, 1
  %i.more = icmp ult i64 %i.next, %count
  br i1 %i.more, label %step, label %threads.start
threads.start:
  %refused = call i32 @recruit(ptr %context, i64 %threads)
  ret i32 %refused
}}"""
"""Fill a zeroed context, and start its threads."""


def _functions(p: str, embed: str) -> str:
    """The functions that other programs call. A struct of options has 48 bytes."""
    embedded = f"ptr @{embed}" if embed else "ptr null"
    bad, memory, processor = code("OPTIONS"), code("MEMORY"), code("PROCESSOR")
    return f"""define internal i32 @begin(ptr %out, i64 %number, i64 %threads, ptr %weights,
                           ptr %given, i64 %given.size, ptr %mapped, i64 %mapped.size) nounwind {{
entry:
  %size = call i64 @whole(i64 %number, i64 %threads)
  %own = icmp eq ptr %given, null
  br i1 %own, label %ask, label %check
ask:
  %new = call ptr @mmap(ptr null, i64 %size, i32 3, i32 34, i32 -1, i64 0)
  %address = ptrtoint ptr %new to i64
  %failed = icmp eq i64 %address, -1
  br i1 %failed, label %short, label %fill
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
  %context = phi ptr [ %new, %ask ], [ %given, %clear ]
  %owned = phi i64 [ %size, %ask ], [ 0, %clear ]
{_word(_OWN, "%owned")}
{_word(_MAPPED, "%mapped", "ptr")}
{_word(_MAPPED_SIZE, "%mapped.size")}
  %refused = call i32 @make(ptr %context, i64 %number, i64 %threads, ptr %weights)
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
  ret i32 {memory}
}}

define i32 @{p}_open(ptr %out, ptr %options) nounwind {{
entry:
  store ptr null, ptr %out, align 8
  %size = load i64, ptr %options, align 8
  %known = icmp uge i64 %size, 48
  br i1 %known, label %read, label %bad
read:
  %path.at = getelementptr i8, ptr %options, i64 8
  %path = load ptr, ptr %path.at, align 8
  %threads.at = getelementptr i8, ptr %options, i64 16
  %threads.given = load i32, ptr %threads.at, align 4
  %isa.at = getelementptr i8, ptr %options, i64 20
  %isa.given = load i32, ptr %isa.at, align 4
  %isa = sub i32 %isa.given, 1
  %memory.at = getelementptr i8, ptr %options, i64 24
  %memory = load ptr, ptr %memory.at, align 8
  %memory.size.at = getelementptr i8, ptr %options, i64 32
  %memory.size = load i64, ptr %memory.size.at, align 8
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
  %named = icmp ne ptr %path, null
  br i1 %named, label %file, label %inside
inside:
  %embedded = icmp ne {embedded}, null
  br i1 %embedded, label %begin, label %lacking
file:
  %mapped = call {{ i32, ptr }} @map_weights(ptr %path)
  %refused = extractvalue {{ i32, ptr }} %mapped, 0
  %start = extractvalue {{ i32, ptr }} %mapped, 1
  %fine = icmp eq i32 %refused, 0
  br i1 %fine, label %begin, label %no.weights
begin:
  %weights = phi ptr [ @{embed or "head"}, %inside ], [ %start, %file ]
  %freed = phi ptr [ null, %inside ], [ %start, %file ]
  %freed.size = phi i64 [ 0, %inside ], [ FILE_SIZE, %file ]
  %result = call i32 @begin(ptr %out, i64 %number, i64 %threads, ptr %weights, ptr %memory,
                            i64 %memory.size, ptr %freed, i64 %freed.size)
  %opened = icmp eq i32 %result, 0
  %nothing = icmp eq ptr %freed, null
  %keep = or i1 %opened, %nothing
  br i1 %keep, label %answer, label %unmap
unmap:
  %unmapped = call i32 @munmap(ptr %freed, i64 %freed.size)
  br label %answer
answer:
  ret i32 %result
no.weights:
  ret i32 %refused
lacking:
  ret i32 {code("WEIGHTS_MISSING")}
unsupported:
  ret i32 {processor}
bad:
  ret i32 {bad}
}}

define i64 @{p}_memory(i32 %threads, i32 %isa.given) nounwind {{
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
}}

define i32 @{p}_run(ptr %context, ptr %inputs, ptr %outputs) nounwind {{
entry:
  %number.at = getelementptr i8, ptr %context, i64 {_VARIANT}
  %number = load i64, ptr %number.at, align 8
  %table.at = getelementptr %variant, ptr @variants, i64 %number
  %table = load ptr, ptr %table.at, align 8
  %count.at = getelementptr i8, ptr %context, i64 {_COUNT}
  %count = load i64, ptr %count.at, align 8
  %steps = getelementptr i8, ptr %context, i64 {_STEPS}
  br label %step
step:
  %i = phi i64 [ 0, %entry ], [ %next, %stepped ]
  %src.at = getelementptr %entry, ptr %table, i64 %i, i32 2, i64 0
  %dst.at = getelementptr %entry, ptr %table, i64 %i, i32 2, i64 4
  %src = load i64, ptr %src.at, align 8
  %dst = load i64, ptr %dst.at, align 8
  %offset = mul i64 %i, {_STEP_BYTES}
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
  %team = getelementptr i8, ptr %context, i64 {_TEAM}
  %job = getelementptr i8, ptr %context, i64 {_JOB}
  %elapsed = call i64 @lead(ptr %team, ptr %job)
  ret i32 0
bad:
  ret i32 {bad}
}}

define i32 @{p}_clone(ptr %out, ptr %context) nounwind {{
  store ptr null, ptr %out, align 8
  %threads.at = getelementptr i8, ptr %context, i64 {_THREADS}
  %threads = load i64, ptr %threads.at, align 8
  %number.at = getelementptr i8, ptr %context, i64 {_VARIANT}
  %number = load i64, ptr %number.at, align 8
  %weights.at = getelementptr i8, ptr %context, i64 {_WEIGHTS}
  %weights = load ptr, ptr %weights.at, align 8
  %result = call i32 @begin(ptr %out, i64 %number, i64 %threads, ptr %weights, ptr null, i64 0,
                            ptr null, i64 0)
  ret i32 %result
}}

define void @{p}_close(ptr %context) nounwind {{
entry:
  %there = icmp ne ptr %context, null
  br i1 %there, label %end, label %out
end:
  %threads.at = getelementptr i8, ptr %context, i64 {_THREADS}
  %threads = load i64, ptr %threads.at, align 8
  call void @dismiss(ptr %context, i64 %threads)
  %mapped.at = getelementptr i8, ptr %context, i64 {_MAPPED}
  %mapped = load ptr, ptr %mapped.at, align 8
  %mapped.size.at = getelementptr i8, ptr %context, i64 {_MAPPED_SIZE}
  %mapped.size = load i64, ptr %mapped.size.at, align 8
  %own.at = getelementptr i8, ptr %context, i64 {_OWN}
  %own = load i64, ptr %own.at, align 8
  %file = icmp ne ptr %mapped, null
  br i1 %file, label %unmap, label %perhaps
unmap:
  %unmapped = call i32 @munmap(ptr %mapped, i64 %mapped.size)
  br label %perhaps
perhaps:
  %owned = icmp ne i64 %own, 0
  br i1 %owned, label %free, label %out
free:
  %freed = call i32 @munmap(ptr %context, i64 %own)
  br label %out
out:
  ret void
}}

define ptr @{p}_isa(ptr %context) nounwind {{
  %number.at = getelementptr i8, ptr %context, i64 {_VARIANT}
  %number = load i64, ptr %number.at, align 8
  %name.at = getelementptr %variant, ptr @variants, i64 %number, i32 5
  %name = load ptr, ptr %name.at, align 8
  ret ptr %name
}}"""


FUNCTIONS = ("open", "memory", "run", "clone", "close", "isa")
"""The functions of the interface, behind the prefix."""

"""The native driver as IR: a team of threads walks a list of steps.

Every thread walks the whole list. It first does its own share of a step's tasks, in a few chunks,
and then helps with the shares of the others. A step is over when all its tasks are done, by any
thread: a thread that is late, asleep or has lost its core delays nobody, unless it has a chunk in
hand. While it has not come back from one list, the caller's thread walks further lists alone.

The threads beside the caller's live in `serve`. They wait for the next list: at first they spin,
then they sleep. Before the caller wakes them it keeps them away from its own core: the system may
put a thread that wakes up on the core of the thread that woke it, and then leave it there for
milliseconds while other cores are idle.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Machine:
    """Of a processor: what a core executes while it spins, and Linux's numbers of system calls.

    A core that spins leaves power and issue slots to its neighbours: a declaration and a call.
    """

    declaration: str
    hint: str
    futex: int
    gettid: int
    getcpu: int
    set_affinity: int
    get_affinity: int


_MACHINES = {
    "x86_64": _Machine(
        "declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()",
        futex=202, gettid=186, getcpu=309, set_affinity=203, get_affinity=204,
    ),
    "aarch64": _Machine(
        "declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)",
        futex=98, gettid=178, getcpu=168, set_affinity=122, get_affinity=123,
    ),
    "riscv64": _Machine(
        "declare void @llvm.riscv.pause()", "call void @llvm.riscv.pause()",
        futex=98, gettid=178, getcpu=168, set_affinity=122, get_affinity=123,
    ),
}  # fmt: skip

# Futex operations on memory of one process.
_WAIT, _WAKE = 128, 129

# Bytes that keep variables of different threads apart: two cache lines, since a processor may
# fetch lines in pairs.
APART = 128

# How long an idle thread spins before it sleeps. Waking it takes some 50 microseconds, and the
# calls of a busy program follow each other faster than this.
SPIN_NANOSECONDS = 200_000

# Looks at what a thread waits for before it offers its core to other threads, which may be the
# ones it waits for.
LOOKS_BEFORE_YIELD = 2_000

# Chunks of a thread's share of tasks. More chunks are finer, so that others can take over more.
CHUNKS = 4

# Looks at whether all threads have left the last job before the caller's thread walks alone.
LOOKS_BEFORE_ALONE = 500

# A team's memory: ticket, arrivals and sleepers, then the job, then the number of arrivals at which
# all threads have left the job. In that last line lie also 1 + the core from which the threads are
# kept away (0: none yet, or -1: they are bound), and the bytes of the mask of cores that they were
# born with. That mask comes next, and then their numbers in the system, 32 bits each.
TICKET, ARRIVED, ASLEEP, JOB, DUE = 0, APART, 2 * APART, 3 * APART, 4 * APART
AVOIDED, MASK_BYTES, MASK, MEMBERS = DUE + 8, DUE + 16, 5 * APART, 6 * APART

# Bytes of a mask of cores. With more cores the threads are not kept away.
_MASK = 128


def team_bytes(threads: int) -> int:
    """Bytes of a team's memory: whole lines."""
    return MEMBERS + -(-4 * threads // APART) * APART


# Words of the job. A null pointer to the steps ends the threads. `alone` leaves all work to the
# caller's thread. `lead` fills in the last two: arrivals before the job, and which set of counters
# is zero.
JOB_WORDS = (
    "steps", "count", "threads", "local", "meet", "repeats", "copy", "copies", "stride",
    "stamps", "tally", "alone", "base", "parity",
)  # fmt: skip
_POINTERS = ("steps", "local", "stamps", "tally")

# A script's tally: the parity of its repeats so far, then two sets of counters.
TALLY = APART

# Bytes of a thread's counters for a step: tasks taken and tasks done of its share.
COUNTERS = 64


def driver_ir(triple: str) -> str:
    """The driver for a target.

    `lead(team, job)` runs a job as thread 0 and returns the nanoseconds it took. With `meet`
    the clock starts when all threads have met and before any of them continues. A caller whose
    core is taken away at this moment therefore cannot make the work look short. `serve(team,
    thread)` is the life of another thread.

    `lead` also works alone if a thread has not left the job before: it has nothing in hand any
    more, but perhaps no core. With `meet` or `stamps` it waits for that thread.

    The job repeats its steps; repeat i gets weights displaced by (copy + i) % copies times
    `stride` bytes. If `stamps` is not null, the time after each step is left there.

    Arrivals are counted and never taken back, so that a thread that still looks at the count
    misses nothing; `base` is the count when all threads have left the job before. The counters of
    a list exist twice: while one repeat uses one set, every thread zeroes its own of the other.

    What one job leaves to the next is kept in the team's memory and the script's tally. Only
    `lead` changes it, so that an exception in Python between two calls cannot leave it half done.

    Raises:
        ValueError: the processor is none of `_MACHINES`.
    """
    machine = triple.partition("-")[0]
    if machine not in _MACHINES:
        raise ValueError(f"threads are not supported on {machine}: only on {', '.join(_MACHINES)}")
    calls = _MACHINES[machine]
    hint = calls.hint
    texts = [_head(triple, calls.declaration), _NOW, _await(hint), _MEET, _wait_for(hint)]
    texts += [_WORK, _WALK, _keep_away(calls), _lead(calls), _serve(calls)]
    return "\n\n".join(texts) + "\n"


_JOB = "\n".join(
    f"  %{name}.at = getelementptr i64, ptr %job, i64 {i}\n"
    f"  %{name} = load {'ptr' if name in _POINTERS else 'i64'}, ptr %{name}.at, align 8"
    for i, name in enumerate(JOB_WORDS)
)
"""Load the words of a job."""


def _head(triple: str, declaration: str) -> str:
    """Types and declarations. A step is a stage, its tasks, its operands and whether it joins."""
    return f"""target triple = "{triple}"

%step = type {{ ptr, i64, ptr, ptr, ptr, ptr, ptr, ptr, i64 }}

declare i32 @clock_gettime(i32, ptr)
declare i32 @sched_yield()
declare i64 @syscall(i64, ...)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare i64 @llvm.ctpop.i64(i64)
{declaration}"""


def _until(reached: str, hint: str) -> str:
    """The body of a function that returns when `%complete`, which the text `reached` computes.

    It spins, and now and then offers its core to other threads.
    """
    return f"""entry:
  br label %look
look:
  %looks = phi i64 [ 0, %entry ], [ %looks.next, %spin ], [ 0, %yield ]
{reached}
  br i1 %complete, label %go, label %wait
wait:
  %looks.next = add i64 %looks, 1
  %tired = icmp ugt i64 %looks.next, {LOOKS_BEFORE_YIELD}
  br i1 %tired, label %yield, label %spin
spin:
  {hint}
  br label %look
yield:
  %yielded = call i32 @sched_yield()
  br label %look
go:
  ret void"""


_NOW = """define internal i64 @now() nounwind {
  %time = alloca [2 x i64], align 8
  %failed = call i32 @clock_gettime(i32 1, ptr %time)
  %seconds = load i64, ptr %time, align 8
  %rest = getelementptr i64, ptr %time, i64 1
  %nanoseconds = load i64, ptr %rest, align 8
  %scaled = mul i64 %seconds, 1000000000
  %total = add i64 %scaled, %nanoseconds
  ret i64 %total
}"""
"""The monotonic clock in nanoseconds."""

_MEET = """define internal i64 @meet(ptr %arrived, i64 %target, i64 %threads) nounwind {
  %before = atomicrmw add ptr %arrived, i64 1 acq_rel
  call void @await(ptr %arrived, i64 %target)
  %next = add i64 %target, %threads
  ret i64 %next
}"""
"""Arrive and wait for all threads; returns the count of arrivals of the next meeting."""

_WORK = f"""define internal void @work(ptr %at, i64 %thread, i64 %threads, ptr %mine, i64 %moved,
                           ptr %counters) nounwind {{
entry:
  %step.value = load %step, ptr %at, align 8
  %stage = extractvalue %step %step.value, 0
  %tasks = extractvalue %step %step.value, 1
  %src = extractvalue %step %step.value, 2
  %packed = extractvalue %step %step.value, 3
  %weights = getelementptr i8, ptr %packed, i64 %moved
  %bias = extractvalue %step %step.value, 4
  %add = extractvalue %step %step.value, 5
  %dst = extractvalue %step %step.value, 6
  %shared = extractvalue %step %step.value, 7
  %single = icmp eq i64 %threads, 1
  br i1 %single, label %all, label %share
all:
  call void %stage(ptr %src, ptr %weights, ptr %bias, ptr %add, ptr %dst, ptr %shared,
                   ptr %mine, i64 0, i64 %tasks)
  ret void
share:
  %v = phi i64 [ 0, %entry ], [ %v.next, %shared.out ]
  %did = phi i64 [ 0, %entry ], [ %did.now, %shared.out ]
  %whose.far = add i64 %thread, %v
  %wraps = icmp uge i64 %whose.far, %threads
  %whose.back = sub i64 %whose.far, %threads
  %u = select i1 %wraps, i64 %whose.back, i64 %whose.far
  %low.scaled = mul i64 %tasks, %u
  %low = udiv i64 %low.scaled, %threads
  %u.after = add i64 %u, 1
  %high.scaled = mul i64 %tasks, %u.after
  %high = udiv i64 %high.scaled, %threads
  %size = sub i64 %high, %low
  %rounded = add i64 %size, {CHUNKS - 1}
  %chunk = udiv i64 %rounded, {CHUNKS}
  %offset = mul i64 %u, {COUNTERS}
  %taken.at = getelementptr i8, ptr %counters, i64 %offset
  br label %look
look:
  %did.now = phi i64 [ %did, %share ], [ %did.next, %run ]
  %seen = load atomic i64, ptr %taken.at monotonic, align 8
  %left = icmp ult i64 %seen, %size
  br i1 %left, label %take, label %shared.out
take:
  %from = atomicrmw add ptr %taken.at, i64 %chunk monotonic
  %got = icmp ult i64 %from, %size
  br i1 %got, label %run, label %shared.out
run:
  %to.far = add i64 %from, %chunk
  %beyond = icmp ugt i64 %to.far, %size
  %to = select i1 %beyond, i64 %size, i64 %to.far
  %begin = add i64 %low, %from
  %end = add i64 %low, %to
  call void %stage(ptr %src, ptr %weights, ptr %bias, ptr %add, ptr %dst, ptr %shared,
                   ptr %mine, i64 %begin, i64 %end)
  %number = sub i64 %to, %from
  %did.next = add i64 %did.now, %number
  br label %look
shared.out:
  %v.next = add i64 %v, 1
  %more = icmp ult i64 %v.next, %threads
  br i1 %more, label %share, label %report
report:
  %own = mul i64 %thread, {COUNTERS}
  %line = getelementptr i8, ptr %counters, i64 %own
  %done.at = getelementptr i64, ptr %line, i64 1
  store atomic i64 %did.now, ptr %done.at release, align 8
  ret void
}}"""
"""Do tasks of one step: first the own share, then what is left of the others' shares."""

_WALK = f"""define internal i64 @walk(ptr %team, ptr %job, i64 %thread, i1 %single) nounwind {{
entry:
  %arrived = getelementptr i8, ptr %team, i64 {ARRIVED}
{_JOB}
  %home = icmp eq ptr %steps, null
  br i1 %home, label %leave, label %begin
leave:
  ret i64 -1
begin:
  %mine.at = getelementptr ptr, ptr %local, i64 %thread
  %mine = load ptr, ptr %mine.at, align 8
  %keeps = icmp ne ptr %stamps, null
  %leads = icmp eq i64 %thread, 0
  %ends = and i1 %keeps, %leads
  %stamps.row = mul i64 %count, 16
  %stamps.mine = mul i64 %stamps.row, %thread
  %stamped = getelementptr i8, ptr %stamps, i64 %stamps.mine
  %workers = select i1 %single, i64 1, i64 %threads
  %row = mul i64 %threads, {COUNTERS}
  %set = mul i64 %row, %count
  %counters = getelementptr i8, ptr %tally, i64 {TALLY}
  %own = mul i64 %thread, {COUNTERS}
  %target.base = add i64 %base, %threads
  %asked = icmp ne i64 %meet, 0
  %several = xor i1 %single, true
  %meets = and i1 %asked, %several
  br i1 %meets, label %assemble, label %start
assemble:
  %target.met = add i64 %target.base, %threads
  br i1 %leads, label %count.others, label %follow
follow:
  %followed = call i64 @meet(ptr %arrived, i64 %target.base, i64 %threads)
  br label %start
count.others:
  %others = sub i64 %target.base, 1
  call void @await(ptr %arrived, i64 %others)
  %released = call i64 @now()
  %last = atomicrmw add ptr %arrived, i64 1 acq_rel
  br label %timed
start:
  %target.now = phi i64 [ %target.base, %begin ], [ %target.met, %follow ]
  %started = call i64 @now()
  br label %timed
timed:
  %target.start = phi i64 [ %target.now, %start ], [ %target.met, %count.others ]
  %clock = phi i64 [ %started, %start ], [ %released, %count.others ]
  br label %repeat
repeat:
  %r = phi i64 [ 0, %timed ], [ %r.next, %rejoined ]
  %c = phi i64 [ %copy, %timed ], [ %c.next, %rejoined ]
  %p = phi i64 [ %parity, %timed ], [ %p.other, %rejoined ]
  %target = phi i64 [ %target.start, %timed ], [ %target.next, %rejoined ]
  %moved = mul i64 %c, %stride
  %p.other = xor i64 %p, 1
  %set.used = mul i64 %set, %p
  %set.other = mul i64 %set, %p.other
  %used = getelementptr i8, ptr %counters, i64 %set.used
  %other = getelementptr i8, ptr %counters, i64 %set.other
  br label %step
step:
  %s = phi i64 [ 0, %repeat ], [ %s.next, %done ]
  %since = phi i64 [ 0, %repeat ], [ %since.next, %done ]
  %at = getelementptr %step, ptr %steps, i64 %s
  %row.at = mul i64 %row, %s
  %counting = getelementptr i8, ptr %used, i64 %row.at
  call void @work(ptr %at, i64 %thread, i64 %workers, ptr %mine, i64 %moved, ptr %counting)
  br i1 %keeps, label %note, label %onward
note:
  %moment.work = call i64 @now()
  %place.work = getelementptr [2 x i64], ptr %stamped, i64 %s
  store i64 %moment.work, ptr %place.work, align 8
  br label %onward
onward:
  br i1 %single, label %worked, label %share
share:
  %own.at = add i64 %row.at, %own
  %zeroed = getelementptr i8, ptr %other, i64 %own.at
  store atomic i64 0, ptr %zeroed monotonic, align 8
  %zeroed.done = getelementptr i64, ptr %zeroed, i64 1
  store atomic i64 0, ptr %zeroed.done monotonic, align 8
  %joins.at = getelementptr %step, ptr %steps, i64 %s, i32 8
  %joins = load i64, ptr %joins.at, align 8
  %free = icmp eq i64 %joins, 0
  br i1 %free, label %worked, label %join
join:
  %q = phi i64 [ %since, %share ], [ %q.next, %join ]
  %tasks.at = getelementptr %step, ptr %steps, i64 %q, i32 1
  %tasks = load i64, ptr %tasks.at, align 8
  %q.row = mul i64 %row, %q
  %awaited = getelementptr i8, ptr %used, i64 %q.row
  call void @wait_for(ptr %awaited, i64 %tasks, i64 %threads)
  %q.next = add i64 %q, 1
  %earlier = icmp ule i64 %q.next, %s
  br i1 %earlier, label %join, label %worked
worked:
  %since.next = phi i64 [ 0, %onward ], [ %since, %share ], [ %q.next, %join ]
  br i1 %keeps, label %write, label %done
write:
  %moment = call i64 @now()
  %moment.at = getelementptr [2 x i64], ptr %stamped, i64 %s, i64 1
  store i64 %moment, ptr %moment.at, align 8
  br label %done
done:
  %s.next = add i64 %s, 1
  %more = icmp ult i64 %s.next, %count
  br i1 %more, label %step, label %repeated
repeated:
  %c.after = add i64 %c, 1
  %wraps = icmp eq i64 %c.after, %copies
  %c.next = select i1 %wraps, i64 0, i64 %c.after
  %r.next = add i64 %r, 1
  %again = icmp ult i64 %r.next, %repeats
  br i1 %again, label %rejoin, label %finish
rejoin:
  br i1 %single, label %rejoined, label %meeting
meeting:
  %target.later = call i64 @meet(ptr %arrived, i64 %target, i64 %threads)
  br label %rejoined
rejoined:
  %target.next = phi i64 [ %target, %rejoin ], [ %target.later, %meeting ]
  br label %repeat
finish:
  %stop = call i64 @now()
  %elapsed = sub i64 %stop, %clock
  br i1 %single, label %leave.it, label %depart
depart:
  %left = atomicrmw add ptr %arrived, i64 1 acq_rel
  br i1 %ends, label %collect, label %leave.it
collect:
  %due.all = getelementptr i8, ptr %team, i64 {DUE}
  %everybody = load i64, ptr %due.all, align 8
  call void @await(ptr %arrived, i64 %everybody)
  br label %leave.it
leave.it:
  ret i64 %elapsed
}}"""
"""Walk the steps as often as the job says: nanoseconds, or -1 if the team ends."""


def _await(hint: str) -> str:
    """Wait until the arrivals reach a target."""
    reached = """  %count = load atomic i64, ptr %arrived acquire, align 8
  %complete = icmp uge i64 %count, %target"""
    head = "define internal void @await(ptr %arrived, i64 %target) nounwind {"
    return f"{head}\n{_until(reached, hint)}\n}}"


def _wait_for(hint: str) -> str:
    """Wait until all tasks of a step are done: the threads' counters add up to them."""
    reached = f"""  br label %sum
sum:
  %u = phi i64 [ 0, %look ], [ %u.next, %sum ]
  %total = phi i64 [ 0, %look ], [ %total.next, %sum ]
  %offset = mul i64 %u, {COUNTERS}
  %line = getelementptr i8, ptr %counters, i64 %offset
  %done.at = getelementptr i64, ptr %line, i64 1
  %done = load atomic i64, ptr %done.at acquire, align 8
  %total.next = add i64 %total, %done
  %u.next = add i64 %u, 1
  %more = icmp ult i64 %u.next, %threads
  br i1 %more, label %sum, label %summed
summed:
  %complete = icmp uge i64 %total.next, %tasks"""
    head = "define internal void @wait_for(ptr %counters, i64 %tasks, i64 %threads) nounwind {"
    return f"{head}\n{_until(reached, hint)}\n}}"


def _keep_away(calls: _Machine) -> str:
    """Keep the other threads away from the caller's core.

    They get the cores that they were born with but the caller's, if these are enough for all, and
    else all of them. A thread that has not told its number yet makes the next call try again.
    """
    return f"""define internal void @keep_away(ptr %team, i64 %threads) nounwind {{
entry:
  %core.at = alloca i64, align 8
  %mask = alloca [{_MASK} x i8], align 8
  %avoided.at = getelementptr i8, ptr %team, i64 {AVOIDED}
  %avoided = load i64, ptr %avoided.at, align 8
  %bound = icmp slt i64 %avoided, 0
  br i1 %bound, label %out, label %find
find:
  store i64 0, ptr %core.at, align 8
  %unknown = call i64 (i64, ...) @syscall(i64 {calls.getcpu}, ptr %core.at, ptr null, ptr null)
  %core = load i64, ptr %core.at, align 8
  %number = add i64 %core, 1
  %known = icmp eq i64 %unknown, 0
  %differs = icmp ne i64 %number, %avoided
  %moved = and i1 %known, %differs
  br i1 %moved, label %read, label %out
read:
  store i64 %number, ptr %avoided.at, align 8
  %born = getelementptr i8, ptr %team, i64 {MASK}
  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %mask, ptr align 8 %born, i64 {_MASK}, i1 false)
  %bytes.at = getelementptr i8, ptr %team, i64 {MASK_BYTES}
  %bytes = load i64, ptr %bytes.at, align 8
  %words = sdiv i64 %bytes, 8
  %word.number = lshr i64 %core, 6
  %within = icmp slt i64 %word.number, %words
  br i1 %within, label %clear, label %out
clear:
  %word.at = getelementptr i64, ptr %mask, i64 %word.number
  %word = load i64, ptr %word.at, align 8
  %place = and i64 %core, 63
  %bit = shl i64 1, %place
  %others = xor i64 %bit, -1
  %cleared = and i64 %word, %others
  store i64 %cleared, ptr %word.at, align 8
  br label %count
count:
  %w = phi i64 [ 0, %clear ], [ %w.next, %count ]
  %sum = phi i64 [ 1, %clear ], [ %sum.next, %count ]
  %cores.at = getelementptr i64, ptr %mask, i64 %w
  %cores = load i64, ptr %cores.at, align 8
  %ones = call i64 @llvm.ctpop.i64(i64 %cores)
  %sum.next = add i64 %sum, %ones
  %w.next = add i64 %w, 1
  %further = icmp slt i64 %w.next, %words
  br i1 %further, label %count, label %counted
counted:
  %suffice = icmp uge i64 %sum.next, %threads
  %given = select i1 %suffice, ptr %mask, ptr %born
  br label %member
member:
  %m = phi i64 [ 1, %counted ], [ %m.next, %next ]
  %tid.at.base = getelementptr i8, ptr %team, i64 {MEMBERS}
  %tid.at = getelementptr i32, ptr %tid.at.base, i64 %m
  %tid = load atomic i32, ptr %tid.at monotonic, align 4
  %absent = icmp eq i32 %tid, 0
  br i1 %absent, label %again, label %bind
again:
  store i64 0, ptr %avoided.at, align 8
  br label %next
bind:
  %refused = call i64 (i64, ...) @syscall(i64 {calls.set_affinity}, i32 %tid, i64 %bytes,
                                          ptr %given)
  br label %next
next:
  %m.next = add i64 %m, 1
  %more = icmp ult i64 %m.next, %threads
  br i1 %more, label %member, label %out
out:
  ret void
}}"""


def _lead(calls: _Machine) -> str:
    """Run a job as thread 0: wake the team, walk the steps, keep what the next job needs."""
    wanted = "\n".join(
        f"  %{name}.at = getelementptr i64, ptr %given, i64 {JOB_WORDS.index(name)}\n"
        f"  %{name} = load {'ptr' if name in _POINTERS else 'i64'}, ptr %{name}.at, align 8"
        for name in ("steps", "threads", "meet", "repeats", "stamps", "tally", "alone")
    )
    hint = calls.hint
    return f"""define i64 @lead(ptr %team, ptr %given) nounwind {{
entry:
  %arrived = getelementptr i8, ptr %team, i64 {ARRIVED}
  %due.at = getelementptr i8, ptr %team, i64 {DUE}
  %due = load i64, ptr %due.at, align 8
{wanted}
  %home = icmp eq ptr %steps, null
  %meets = icmp ne i64 %meet, 0
  %keeps = icmp ne ptr %stamps, null
  %measures = or i1 %meets, %keeps
  %patient = or i1 %home, %measures
  %one = icmp eq i64 %threads, 1
  %sent = icmp ne i64 %alone, 0
  %single = or i1 %one, %sent
  br i1 %single, label %do.it, label %look
look:
  %looks = phi i64 [ 0, %entry ], [ %looks.next, %wait ], [ 0, %yield ]
  %arrivals = load atomic i64, ptr %arrived acquire, align 8
  %settled = icmp uge i64 %arrivals, %due
  br i1 %settled, label %call, label %wait
wait:
  {hint}
  %looks.next = add i64 %looks, 1
  %tired = icmp ugt i64 %looks.next, {LOOKS_BEFORE_ALONE}
  br i1 %tired, label %decide, label %look
decide:
  br i1 %patient, label %yield, label %do.it
yield:
  %yielded = call i32 @sched_yield()
  br label %look
do.it:
  %elapsed.single = call i64 @walk(ptr %team, ptr %given, i64 0, i1 true)
  ret i64 %elapsed.single
call:
  %job = getelementptr i8, ptr %team, i64 {JOB}
  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %job, ptr align 8 %given,
                                   i64 {8 * len(JOB_WORDS)}, i1 false)
  %base.at = getelementptr i64, ptr %job, i64 {JOB_WORDS.index("base")}
  store i64 %due, ptr %base.at, align 8
  br i1 %home, label %announce, label %plan
plan:
  %parity.at = getelementptr i64, ptr %job, i64 {JOB_WORDS.index("parity")}
  %even = load i64, ptr %tally, align 8
  store i64 %even, ptr %parity.at, align 8
  %turned = add i64 %even, %repeats
  %odd = and i64 %turned, 1
  store i64 %odd, ptr %tally, align 8
  %rounds = add i64 %repeats, %meet
  %arriving = mul i64 %rounds, %threads
  %due.next = add i64 %due, %arriving
  store i64 %due.next, ptr %due.at, align 8
  br label %announce
announce:
  %ticket = getelementptr i8, ptr %team, i64 {TICKET}
  %before = atomicrmw add ptr %ticket, i32 1 seq_cst
  %asleep = getelementptr i8, ptr %team, i64 {ASLEEP}
  %sleepers = load atomic i64, ptr %asleep seq_cst, align 8
  %none = icmp eq i64 %sleepers, 0
  br i1 %none, label %run, label %wake
wake:
  call void @keep_away(ptr %team, i64 %threads)
  %woken = call i64 (i64, ...) @syscall(i64 {calls.futex}, ptr %ticket, i64 {_WAKE},
                                        i64 2147483647, ptr null, ptr null, i64 0)
  br label %run
run:
  %elapsed = call i64 @walk(ptr %team, ptr %job, i64 0, i1 false)
  ret i64 %elapsed
}}"""


def _serve(calls: _Machine) -> str:
    """The life of another thread: wait for a job, walk its steps, begin again."""
    return f"""define void @serve(ptr %team, i64 %thread) nounwind {{
entry:
  %ticket = getelementptr i8, ptr %team, i64 {TICKET}
  %asleep = getelementptr i8, ptr %team, i64 {ASLEEP}
  %job = getelementptr i8, ptr %team, i64 {JOB}
  %born = getelementptr i8, ptr %team, i64 {MASK}
  %bytes = call i64 (i64, ...) @syscall(i64 {calls.get_affinity}, i64 0, i64 {_MASK}, ptr %born)
  %bytes.at = getelementptr i8, ptr %team, i64 {MASK_BYTES}
  store atomic i64 %bytes, ptr %bytes.at monotonic, align 8
  %members = getelementptr i8, ptr %team, i64 {MEMBERS}
  %member.at = getelementptr i32, ptr %members, i64 %thread
  %member = call i64 (i64, ...) @syscall(i64 {calls.gettid})
  %tid = trunc i64 %member to i32
  store atomic i32 %tid, ptr %member.at monotonic, align 4
  br label %idle
idle:
  %seen = phi i32 [ 0, %entry ], [ %now.on, %work ]
  %since = call i64 @now()
  br label %look
look:
  %now.on = load atomic i32, ptr %ticket acquire, align 4
  %called = icmp ne i32 %now.on, %seen
  br i1 %called, label %work, label %wait
wait:
  {calls.hint}
  %time = call i64 @now()
  %spent = sub i64 %time, %since
  %tired = icmp ugt i64 %spent, {SPIN_NANOSECONDS}
  br i1 %tired, label %sleep, label %look
sleep:
  %lying = atomicrmw add ptr %asleep, i64 1 seq_cst
  %slept = call i64 (i64, ...) @syscall(i64 {calls.futex}, ptr %ticket, i64 {_WAIT},
                                        i32 %seen, ptr null, ptr null, i64 0)
  %rising = atomicrmw sub ptr %asleep, i64 1 seq_cst
  br label %look
work:
  %result = call i64 @walk(ptr %team, ptr %job, i64 %thread, i1 false)
  %home = icmp slt i64 %result, 0
  br i1 %home, label %leave, label %idle
leave:
  ret void
}}"""

"""The native driver as IR: walks a list of steps on some threads, with a barrier after each.

Every thread walks the whole list and does its own share of every step's tasks, so nothing is
handed out or scheduled. Threads beside the caller's live in `serve`: they wait for the next list,
spinning at first and then asleep.
"""

from __future__ import annotations

# What a core is told while it spins, so that it leaves power and issue slots to its neighbours.
_SPIN_HINTS = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.hint(i32)", "call void @llvm.aarch64.hint(i32 1)"),
}

# Linux: number of the futex system call, and its operations on memory of one process.
_FUTEX = {"x86_64": 202, "aarch64": 98}
_WAIT, _WAKE = 128, 129

LINE = 128  # bytes that no two variables of different threads should share

# Nanoseconds that an idle thread spins before it sleeps. Waking up takes some 50 microseconds,
# and the calls of a busy program come closer together than this.
SPIN = 200_000

# Looks at the barrier before the core is offered to others, who may be what is waited for.
PATIENCE = 2_000

# A team's memory: ticket, arrivals and sleepers on lines of their own, then the job.
TICKET, ARRIVED, ASLEEP, JOB = 0, LINE, 2 * LINE, 3 * LINE
TEAM_BYTES = 4 * LINE

# Words of the job: a null pointer to the steps sends the threads home.
JOB_WORDS = (
    "steps", "count", "threads", "local", "base", "repeats", "copy", "copies", "stride", "stamps",
)  # fmt: skip


def driver_ir(triple: str) -> str:
    """The driver for a target.

    `lead(team)` runs the job that lies in the team's memory, as thread 0, and returns the
    nanoseconds between two barriers: before the first step, when every thread has come, and after
    the last. `serve(team, thread)` is the life of another thread.

    The barrier counts arrivals and never goes back, so that nobody who still looks at it misses
    anything; `base` is its count when the job begins. The job repeats its steps; repeat i gets
    weights displaced by (copy + i) % copies times `stride` bytes. If `stamps` is not null, the
    time after each step is left there.
    """
    machine = triple.partition("-")[0]
    declaration, hint = _SPIN_HINTS.get(machine, ("", ""))
    job = "\n".join(
        f"  %{name}.at = getelementptr i64, ptr %job, i64 {i}\n"
        f"  %{name} = load {'ptr' if name in ('steps', 'local', 'stamps') else 'i64'}, "
        f"ptr %{name}.at, align 8"
        for i, name in enumerate(JOB_WORDS)
    )
    return f"""target triple = "{triple}"

%step = type {{ ptr, i64, ptr, ptr, ptr, ptr, ptr, ptr, i64 }}

declare i32 @clock_gettime(i32, ptr)
declare i32 @sched_yield()
declare i64 @syscall(i64, ...)
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
entry:
  %before = atomicrmw add ptr %arrived, i64 1 acq_rel
  br label %look
look:
  %looks = phi i64 [ 0, %entry ], [ %looks.next, %spin ], [ 0, %yield ]
  %count = load atomic i64, ptr %arrived acquire, align 8
  %complete = icmp uge i64 %count, %target
  br i1 %complete, label %go, label %wait
wait:
  %looks.next = add i64 %looks, 1
  %tired = icmp ugt i64 %looks.next, {PATIENCE}
  br i1 %tired, label %yield, label %spin
spin:
  {hint}
  br label %look
yield:
  %yielded = call i32 @sched_yield()
  br label %look
go:
  %next = add i64 %target, %threads
  ret i64 %next
}}

define internal i64 @walk(ptr %team, i64 %thread) nounwind {{
entry:
  %arrived = getelementptr i8, ptr %team, i64 {ARRIVED}
  %job = getelementptr i8, ptr %team, i64 {JOB}
{job}
  %home = icmp eq ptr %steps, null
  br i1 %home, label %leave, label %begin
leave:
  ret i64 -1
begin:
  %mine.at = getelementptr ptr, ptr %local, i64 %thread
  %mine = load ptr, ptr %mine.at, align 8
  %after = add i64 %thread, 1
  %keeps = icmp ne ptr %stamps, null
  %leads = icmp eq i64 %thread, 0
  %stamping = and i1 %keeps, %leads
  %target.base = add i64 %base, %threads
  %target.start = call i64 @meet(ptr %arrived, i64 %target.base, i64 %threads)
  %start = call i64 @now()
  br label %repeat
repeat:
  %r = phi i64 [ 0, %begin ], [ %r.next, %repeated ]
  %c = phi i64 [ %copy, %begin ], [ %c.next, %repeated ]
  %target.repeat = phi i64 [ %target.start, %begin ], [ %target.next, %repeated ]
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
  %first = udiv i64 %low, %threads
  %high = mul i64 %tasks, %after
  %end = udiv i64 %high, %threads
  %some = icmp ult i64 %first, %end
  br i1 %some, label %work, label %worked
work:
  %src = extractvalue %step %step.value, 2
  %packed = extractvalue %step %step.value, 3
  %weights = getelementptr i8, ptr %packed, i64 %moved
  %bias = extractvalue %step %step.value, 4
  %add = extractvalue %step %step.value, 5
  %dst = extractvalue %step %step.value, 6
  %shared = extractvalue %step %step.value, 7
  call void %stage(ptr %src, ptr %weights, ptr %bias, ptr %add, ptr %dst, ptr %shared,
                   ptr %mine, i64 %first, i64 %end)
  br label %worked
worked:
  %joins = extractvalue %step %step.value, 8
  %alone = icmp eq i64 %joins, 0
  br i1 %alone, label %stamp, label %join
join:
  %target.met = call i64 @meet(ptr %arrived, i64 %target, i64 %threads)
  br label %stamp
stamp:
  %target.next = phi i64 [ %target, %worked ], [ %target.met, %join ]
  br i1 %stamping, label %write, label %done
write:
  %moment = call i64 @now()
  %moment.at = getelementptr i64, ptr %stamps, i64 %s
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
  br i1 %again, label %repeat, label %finish
finish:
  %stop = call i64 @now()
  %elapsed = sub i64 %stop, %start
  ret i64 %elapsed
}}

define i64 @lead(ptr %team) nounwind {{
  %ticket = getelementptr i8, ptr %team, i64 {TICKET}
  %before = atomicrmw add ptr %ticket, i32 1 seq_cst
  %asleep = getelementptr i8, ptr %team, i64 {ASLEEP}
  %sleepers = load atomic i64, ptr %asleep seq_cst, align 8
  %none = icmp eq i64 %sleepers, 0
  br i1 %none, label %run, label %wake
wake:
  %woken = call i64 (i64, ...) @syscall(i64 {_FUTEX.get(machine, 0)}, ptr %ticket, i64 {_WAKE},
                                        i64 2147483647, ptr null, ptr null, i64 0)
  br label %run
run:
  %elapsed = call i64 @walk(ptr %team, i64 0)
  ret i64 %elapsed
}}

define void @serve(ptr %team, i64 %thread) nounwind {{
entry:
  %ticket = getelementptr i8, ptr %team, i64 {TICKET}
  %asleep = getelementptr i8, ptr %team, i64 {ASLEEP}
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
  {hint}
  %time = call i64 @now()
  %spent = sub i64 %time, %since
  %tired = icmp ugt i64 %spent, {SPIN}
  br i1 %tired, label %sleep, label %look
sleep:
  %lying = atomicrmw add ptr %asleep, i64 1 seq_cst
  %slept = call i64 (i64, ...) @syscall(i64 {_FUTEX.get(machine, 0)}, ptr %ticket, i64 {_WAIT},
                                        i32 %seen, ptr null, ptr null, i64 0)
  %rising = atomicrmw sub ptr %asleep, i64 1 seq_cst
  br label %look
work:
  %result = call i64 @walk(ptr %team, i64 %thread)
  %home = icmp slt i64 %result, 0
  br i1 %home, label %leave, label %idle
leave:
  ret void
}}
"""

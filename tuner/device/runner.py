"""The program that runs on a device: it reads and writes its memory and calls functions, as told.

All else is done by the machine that tunes: what a kernel is, where operands lie, how calls are
timed and checked. So the program is a few kilobytes and changes rarely.

Frames on standard input and output have the number of bytes that follow in front (64 bits,
little-endian, as all numbers here). A frame to the runner is a kind, milliseconds, the most bytes
of the answer, then operations:

    POKE address size bytes    write memory; the bytes are padded to a multiple of 8
    PEEK address size          the answer gets these bytes, padded likewise
    CALL address a b c d e f g call a function; the answer gets its result

OWN performs them in the runner itself. FORK makes a child in the place of the one before, ASK
performs operations in the child. An answer is a status and bytes: DONE, or what happened to the
child.
"""

from __future__ import annotations

from fastrun.kernels.core.processors import baseline
from fastrun.kernels.native.apart import compile_all
from fastrun.kernels.native.flat import program
from fastrun.tuner.device.machine_code import NUMBERS, STUBS

PROTOCOL = 0x31_6E_75_72_74_73_61_66  # "fastrun1", the first word of a runner

OWN, FORK, ASK = range(3)
"""Kinds of frames."""

POKE, PEEK, CALL = range(3)
"""Operations."""

DONE, DIED, LATE, GARBLED, NO_CHILD = range(5)
"""Statuses: the child's answer follows, or the status it died with."""

_LINGER = 20_000
"""Looks of an idle child before it sleeps, so that its core keeps its clock between blocks."""


def runner(machine: str) -> bytes:
    """The static program for `x86_64`, `aarch64` or `riscv64`; the same bytes each time."""
    cpu = baseline(machine)
    (main,) = compile_all([(_ir(cpu.triple, NUMBERS[machine]), cpu)])
    stubs = {name: STUBS[machine][name] for name in ("syscall", "start")}
    return program([main], stubs, "start")


def _ir(triple: str, numbers: dict[str, int]) -> str:
    text = "\n\n".join([_CALLS, _POLL, _TAKE, _GIVE, _COPY, _PERFORM, _FINISH, _CHILD, _FORK, _ASK,
                        _MAIN])  # fmt: skip
    for name, number in numbers.items():
        text = text.replace(f"${name},", f"i64 {number},")
    return f'target triple = "{triple}"\n\n{text}\n\nattributes #0 = {{ nounwind "no-builtins" }}\n'


# `$name,` stands for the number of a system call.
_CALLS = """declare hidden i64 @syscall(i64, i64, i64, i64, i64, i64, i64)

define internal i64 @ask3(i64 %number, i64 %a, i64 %b, i64 %c) #0 {
  %r = call i64 @syscall(i64 %number, i64 %a, i64 %b, i64 %c, i64 0, i64 0, i64 0)
  ret i64 %r
}

define internal ptr @room(i64 %size) #0 {
  %more = add i64 %size, 4096
  %at = call i64 @syscall($mmap, i64 0, i64 %more, i64 3, i64 34, i64 -1, i64 0)
  %to = inttoptr i64 %at to ptr
  ret ptr %to
}

define internal void @free(ptr %at, i64 %size) #0 {
  %more = add i64 %size, 4096
  %start = ptrtoint ptr %at to i64
  %done = call i64 @ask3($munmap, i64 %start, i64 %more, i64 0)
  ret void
}"""

_POLL = """define internal i1 @poll(i64 %fd, i64 %ms) #0 {
entry:
  %what = alloca { i32, i16, i16 }, align 8
  %time = alloca [2 x i64], align 8
  %fd.word = trunc i64 %fd to i32
  %set = insertvalue { i32, i16, i16 } { i32 0, i16 1, i16 0 }, i32 %fd.word, 0
  store { i32, i16, i16 } %set, ptr %what, align 8
  %seconds = udiv i64 %ms, 1000
  %rest = urem i64 %ms, 1000
  %nanoseconds = mul i64 %rest, 1000000
  store i64 %seconds, ptr %time, align 8
  %second = getelementptr i64, ptr %time, i64 1
  store i64 %nanoseconds, ptr %second, align 8
  %what.at = ptrtoint ptr %what to i64
  %time.at = ptrtoint ptr %time to i64
  %r = call i64 @syscall($ppoll, i64 %what.at, i64 1, i64 %time.at, i64 0, i64 8, i64 0)
  %came = icmp ne i64 %r, 0
  ret i1 %came
}"""
"""Whether there is something to read from a file within so many milliseconds."""

_TAKE = """define internal i64 @take(i64 %fd, ptr %to, i64 %size, i64 %ms) #0 {
entry:
  %start = ptrtoint ptr %to to i64
  %waits = icmp sge i64 %ms, 0
  br label %next
next:
  %done = phi i64 [ 0, %entry ], [ %done.next, %got ]
  %more = icmp ult i64 %done, %size
  br i1 %more, label %look, label %whole
look:
  br i1 %waits, label %wait, label %read
wait:
  %came = call i1 @poll(i64 %fd, i64 %ms)
  br i1 %came, label %read, label %late
read:
  %left = sub i64 %size, %done
  %at = add i64 %start, %done
  %n = call i64 @ask3($read, i64 %fd, i64 %at, i64 %left)
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %got, label %gone
got:
  %done.next = add i64 %done, %n
  br label %next
whole:
  ret i64 0
gone:
  ret i64 1
late:
  ret i64 2
}"""
"""Read a number of bytes: 0, 1 if the file has ended, 2 if nothing came for so many milliseconds.

A negative number waits for ever.
"""

_GIVE = """define internal i64 @give(i64 %fd, ptr %from, i64 %size) #0 {
entry:
  %start = ptrtoint ptr %from to i64
  br label %next
next:
  %done = phi i64 [ 0, %entry ], [ %done.next, %gave ]
  %more = icmp ult i64 %done, %size
  br i1 %more, label %write, label %whole
write:
  %left = sub i64 %size, %done
  %at = add i64 %start, %done
  %n = call i64 @ask3($write, i64 %fd, i64 %at, i64 %left)
  %some = icmp sgt i64 %n, 0
  br i1 %some, label %gave, label %gone
gave:
  %done.next = add i64 %done, %n
  br label %next
whole:
  ret i64 0
gone:
  ret i64 1
}"""

_COPY = """define internal void @copy(ptr %to, ptr %from, i64 %size) #0 {
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %one ]
  %more = icmp ult i64 %i, %size
  br i1 %more, label %one, label %out
one:
  %from.at = getelementptr i8, ptr %from, i64 %i
  %byte = load i8, ptr %from.at, align 1
  %to.at = getelementptr i8, ptr %to, i64 %i
  store i8 %byte, ptr %to.at, align 1
  %i.next = add i64 %i, 1
  br label %next
out:
  ret void
}"""

_ARGUMENTS = "\n".join(
    f"  %v{i}.at = getelementptr i64, ptr %at, i64 {i + 2}\n  %v{i} = load i64, ptr %v{i}.at"
    for i in range(7)
)

_PERFORM = f"""define internal i64 @perform(ptr %ops, ptr %end, ptr %reply) #0 {{
entry:
  br label %next
next:
  %at = phi ptr [ %ops, %entry ], [ %at.poked, %poke ], [ %at.peeked, %peek ], [ %at.called, %call ]
  %out = phi ptr [ %reply, %entry ], [ %out, %poke ], [ %out.peeked, %peek ], [ %out.called, %call ]
  %more = icmp ult ptr %at, %end
  br i1 %more, label %look, label %done
look:
  %op = load i64, ptr %at
  %a.at = getelementptr i64, ptr %at, i64 1
  %a = load i64, ptr %a.at
  %place = inttoptr i64 %a to ptr
  %size.at = getelementptr i64, ptr %at, i64 2
  %size = load i64, ptr %size.at
  %size.up = add i64 %size, 7
  %padded = and i64 %size.up, -8
  %behind = getelementptr i64, ptr %at, i64 3
  switch i64 %op, label %done [
    i64 {POKE}, label %poke
    i64 {PEEK}, label %peek
    i64 {CALL}, label %call
  ]
poke:
  call void @copy(ptr %place, ptr %behind, i64 %size)
  %at.poked = getelementptr i8, ptr %behind, i64 %padded
  br label %next
peek:
  call void @copy(ptr %out, ptr %place, i64 %size)
  %at.peeked = getelementptr i64, ptr %at, i64 3
  %out.peeked = getelementptr i8, ptr %out, i64 %padded
  br label %next
call:
{_ARGUMENTS}
  %r = call i64 %place(i64 %v0, i64 %v1, i64 %v2, i64 %v3, i64 %v4, i64 %v5, i64 %v6)
  store i64 %r, ptr %out
  %at.called = getelementptr i64, ptr %at, i64 9
  %out.called = getelementptr i64, ptr %out, i64 1
  br label %next
done:
  %first = ptrtoint ptr %reply to i64
  %last = ptrtoint ptr %out to i64
  %bytes = sub i64 %last, %first
  ret i64 %bytes
}}

define internal i64 @answer(i64 %fd, ptr %message, i64 %length) #0 {{
entry:
  %most.at = getelementptr i64, ptr %message, i64 2
  %most = load i64, ptr %most.at
  %reply = call ptr @room(i64 %most)
  %ops = getelementptr i64, ptr %message, i64 3
  %end = getelementptr i8, ptr %message, i64 %length
  %content = getelementptr i64, ptr %reply, i64 2
  %bytes = call i64 @perform(ptr %ops, ptr %end, ptr %content)
  %counted = add i64 %bytes, 8
  store i64 %counted, ptr %reply
  %all = add i64 %bytes, 16
  %gone = call i64 @give(i64 %fd, ptr %reply, i64 %all)
  call void @free(ptr %reply, i64 %most)
  ret i64 %gone
}}

define internal void @tell(i64 %status, i64 %value) #0 {{
  %words = alloca [3 x i64], align 8
  store i64 16, ptr %words
  %status.at = getelementptr i64, ptr %words, i64 1
  store i64 %status, ptr %status.at
  %value.at = getelementptr i64, ptr %words, i64 2
  store i64 %value, ptr %value.at
  %gone = call i64 @give(i64 1, ptr %words, i64 24)
  ret void
}}"""
"""Perform the operations of a message: bytes of the answer. `answer` sends it, `tell` a status."""

_FINISH = """define internal i64 @finish(ptr %state) #0 {
  %status = alloca i64, align 8
  store i64 0, ptr %status
  %child = load i64, ptr %state
  store i64 0, ptr %state
  %killed = call i64 @ask3($kill, i64 %child, i64 9, i64 0)
  %status.at = ptrtoint ptr %status to i64
  %waited = call i64 @syscall($wait4, i64 %child, i64 %status.at, i64 0, i64 0, i64 0, i64 0)
  %to.at = getelementptr i64, ptr %state, i64 1
  %to = load i64, ptr %to.at
  %closed = call i64 @ask3($close, i64 %to, i64 0, i64 0)
  %from.at = getelementptr i64, ptr %state, i64 2
  %from = load i64, ptr %from.at
  %closed.too = call i64 @ask3($close, i64 %from, i64 0, i64 0)
  %how = load i64, ptr %status
  ret i64 %how
}"""
"""End the child: the status with which it ended. The state is its number and two pipes."""

_CHILD = f"""define internal void @child() #0 {{
entry:
  %length = alloca i64, align 8
  br label %idle
idle:
  br label %look
look:
  %looks = phi i64 [ 0, %idle ], [ %looks.next, %nothing ]
  %came = call i1 @poll(i64 0, i64 0)
  br i1 %came, label %read, label %nothing
nothing:
  %yielded = call i64 @ask3($sched_yield, i64 0, i64 0, i64 0)
  %looks.next = add i64 %looks, 1
  %awake = icmp ult i64 %looks.next, {_LINGER}
  br i1 %awake, label %look, label %read
read:
  %ended = call i64 @take(i64 0, ptr %length, i64 8, i64 -1)
  %more = icmp eq i64 %ended, 0
  br i1 %more, label %message, label %out
message:
  %size = load i64, ptr %length
  %at = call ptr @room(i64 %size)
  %cut = call i64 @take(i64 0, ptr %at, i64 %size, i64 -1)
  %whole = icmp eq i64 %cut, 0
  br i1 %whole, label %do, label %out
do:
  %gone = call i64 @answer(i64 1, ptr %at, i64 %size)
  call void @free(ptr %at, i64 %size)
  %heard = icmp eq i64 %gone, 0
  br i1 %heard, label %idle, label %out
out:
  %left = call i64 @ask3($exit_group, i64 0, i64 0, i64 0)
  br label %out
}}"""
"""The life of a child: it answers until its pipe ends."""

_FORK = f"""define internal void @fork(ptr %state) #0 {{
entry:
  %old = load i64, ptr %state
  %living = icmp ne i64 %old, 0
  br i1 %living, label %end, label %make
end:
  %ended = call i64 @finish(ptr %state)
  br label %make
make:
  %to = alloca [2 x i32], align 8
  %from = alloca [2 x i32], align 8
  %to.at = ptrtoint ptr %to to i64
  %from.at = ptrtoint ptr %from to i64
  %piped = call i64 @ask3($pipe2, i64 %to.at, i64 0, i64 0)
  %piped.too = call i64 @ask3($pipe2, i64 %from.at, i64 0, i64 0)
  %to.read.word = load i32, ptr %to
  %to.read = sext i32 %to.read.word to i64
  %to.write.at = getelementptr i32, ptr %to, i64 1
  %to.write.word = load i32, ptr %to.write.at
  %to.write = sext i32 %to.write.word to i64
  %from.read.word = load i32, ptr %from
  %from.read = sext i32 %from.read.word to i64
  %from.write.at = getelementptr i32, ptr %from, i64 1
  %from.write.word = load i32, ptr %from.write.at
  %from.write = sext i32 %from.write.word to i64
  %pid = call i64 @syscall($clone, i64 17, i64 0, i64 0, i64 0, i64 0, i64 0)
  %inside = icmp eq i64 %pid, 0
  br i1 %inside, label %child, label %parent
child:
  %in = call i64 @ask3($dup3, i64 %to.read, i64 0, i64 0)
  %out = call i64 @ask3($dup3, i64 %from.write, i64 1, i64 0)
  %c0 = call i64 @ask3($close, i64 %to.read, i64 0, i64 0)
  %c1 = call i64 @ask3($close, i64 %to.write, i64 0, i64 0)
  %c2 = call i64 @ask3($close, i64 %from.read, i64 0, i64 0)
  %c3 = call i64 @ask3($close, i64 %from.write, i64 0, i64 0)
  %dies = call i64 @syscall($prctl, i64 1, i64 9, i64 0, i64 0, i64 0, i64 0)
  call void @child()
  unreachable
parent:
  %c4 = call i64 @ask3($close, i64 %to.read, i64 0, i64 0)
  %c5 = call i64 @ask3($close, i64 %from.write, i64 0, i64 0)
  store i64 %pid, ptr %state
  %to.kept = getelementptr i64, ptr %state, i64 1
  store i64 %to.write, ptr %to.kept
  %from.kept = getelementptr i64, ptr %state, i64 2
  store i64 %from.read, ptr %from.kept
  call void @tell(i64 {DONE}, i64 %pid)
  ret void
}}"""
"""Make a child, which dies with its parent, in the place of the one before."""

_ASK = f"""define internal void @relay(ptr %state, ptr %frame, i64 %length) #0 {{
entry:
  %head = alloca [2 x i64], align 8
  %child = load i64, ptr %state
  %living = icmp ne i64 %child, 0
  br i1 %living, label %send, label %nobody
nobody:
  call void @tell(i64 {NO_CHILD}, i64 0)
  ret void
send:
  %to.at = getelementptr i64, ptr %state, i64 1
  %to = load i64, ptr %to.at
  %from.at = getelementptr i64, ptr %state, i64 2
  %from = load i64, ptr %from.at
  %ms.at = getelementptr i64, ptr %frame, i64 2
  %ms = load i64, ptr %ms.at
  %most.at = getelementptr i64, ptr %frame, i64 3
  %most = load i64, ptr %most.at
  %all = add i64 %length, 8
  %deaf = call i64 @give(i64 %to, ptr %frame, i64 %all)
  %how = call i64 @take(i64 %from, ptr %head, i64 16, i64 %ms)
  switch i64 %how, label %late [
    i64 0, label %heard
    i64 1, label %gone
  ]
heard:
  %counted = load i64, ptr %head
  %rest = sub i64 %counted, 8
  %sane = icmp ule i64 %rest, %most
  br i1 %sane, label %receive, label %garbled
receive:
  %reply = call ptr @room(i64 %most)
  %status.in = getelementptr i64, ptr %head, i64 1
  %status = load i64, ptr %status.in
  %status.at = getelementptr i64, ptr %reply, i64 1
  store i64 %counted, ptr %reply
  store i64 %status, ptr %status.at
  %content = getelementptr i64, ptr %reply, i64 2
  %cut = call i64 @take(i64 %from, ptr %content, i64 %rest, i64 %ms)
  %whole = icmp eq i64 %cut, 0
  br i1 %whole, label %pass, label %drop
pass:
  %size = add i64 %counted, 8
  %passed = call i64 @give(i64 1, ptr %reply, i64 %size)
  call void @free(ptr %reply, i64 %most)
  ret void
drop:
  call void @free(ptr %reply, i64 %most)
  br label %garbled
garbled:
  %ended = call i64 @finish(ptr %state)
  call void @tell(i64 {GARBLED}, i64 %ended)
  ret void
gone:
  %died = call i64 @finish(ptr %state)
  call void @tell(i64 {DIED}, i64 %died)
  ret void
late:
  %killed = call i64 @finish(ptr %state)
  call void @tell(i64 {LATE}, i64 %killed)
  ret void
}}"""
"""Pass a frame to the child and its answer back, within the time that the frame says."""

_MAIN = f"""define void @main(ptr %stack) #0 {{
entry:
  %state = alloca [3 x i64], align 8
  %length = alloca i64, align 8
  %ignore = alloca [4 x i64], align 8
  %hello = alloca [4 x i64], align 8
  store i64 0, ptr %state
  store [4 x i64] [ i64 1, i64 0, i64 0, i64 0 ], ptr %ignore
  %ignore.at = ptrtoint ptr %ignore to i64
  %deaf = call i64 @syscall($rt_sigaction, i64 13, i64 %ignore.at, i64 0, i64 8, i64 0, i64 0)
  %call.at = ptrtoint ptr @syscall to i64
  %stack.at = ptrtoint ptr %stack to i64
  %hello.1 = insertvalue [4 x i64] [ i64 24, i64 {PROTOCOL}, i64 0, i64 0 ], i64 %call.at, 2
  %hello.2 = insertvalue [4 x i64] %hello.1, i64 %stack.at, 3
  store [4 x i64] %hello.2, ptr %hello
  %told = call i64 @give(i64 1, ptr %hello, i64 32)
  br label %next
next:
  %ended = call i64 @take(i64 0, ptr %length, i64 8, i64 -1)
  %more = icmp eq i64 %ended, 0
  br i1 %more, label %message, label %out
message:
  %size = load i64, ptr %length
  %frame = call ptr @room(i64 %size)
  store i64 %size, ptr %frame
  %at = getelementptr i64, ptr %frame, i64 1
  %cut = call i64 @take(i64 0, ptr %at, i64 %size, i64 -1)
  %whole = icmp eq i64 %cut, 0
  br i1 %whole, label %do, label %out
do:
  %kind = load i64, ptr %at
  switch i64 %kind, label %out [
    i64 {OWN}, label %own
    i64 {FORK}, label %fork
    i64 {ASK}, label %ask
  ]
own:
  %gone = call i64 @answer(i64 1, ptr %at, i64 %size)
  br label %done
fork:
  call void @fork(ptr %state)
  br label %done
ask:
  call void @relay(ptr %state, ptr %frame, i64 %size)
  br label %done
done:
  call void @free(ptr %frame, i64 %size)
  br label %next
out:
  %left = call i64 @ask3($exit_group, i64 0, i64 0, i64 0)
  br label %out
}}"""
"""Say hello - the protocol, the address of `syscall`, that of the arguments - and serve."""

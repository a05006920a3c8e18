"""The native driver: who does which task, in which order, with which weights."""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastrun.kernels.codegen.builder import ARGUMENTS
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.program import Stage
from fastrun.kernels.native.compile import compile_assembly, compile_object
from fastrun.kernels.native.driver import MEMBERS, driver_ir
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.runner import Buffers, Runner
from fastrun.kernels.native.team import Script, Step, Team, team

TASKS = 37
CORES = tuple(sorted(os.sched_getaffinity(0)))
THREADS = [t for t in (1, 2, 3) if t <= max(2, len(CORES))]

# count: dst[task] += 1; reverse: shared[task] = dst[TASKS - 1 - task]; digit: append weights[0] to
# dst[0] as a decimal digit; mark: local[task] = 1.
BODIES = {
    "count": """%at = getelementptr float, ptr %dst, i64 %task
  %old = load float, ptr %at
  %new = fadd float %old, 1.0
  store float %new, ptr %at""",
    "reverse": f"""%far = sub i64 {TASKS - 1}, %task
  %from = getelementptr float, ptr %dst, i64 %far
  %x = load float, ptr %from
  %to = getelementptr float, ptr %shared, i64 %task
  store float %x, ptr %to""",
    "digit": """%w = load float, ptr %weights
  %x = load float, ptr %dst
  %shifted = fmul float %x, 10.0
  %y = fadd float %shifted, %w
  store float %y, ptr %dst""",
    "mark": """%at = getelementptr float, ptr %local, i64 %task
  store float 1.0, ptr %at""",
}


def stage_ir(name: str) -> str:
    pointers = ", ".join(f"ptr %{a}" for a in ARGUMENTS)
    return f"""define void @{name}({pointers}, i64 %begin, i64 %end) {{
entry:
  br label %loop
loop:
  %task = phi i64 [ %begin, %entry ], [ %next, %loop ]
  {BODIES[name]}
  %next = add i64 %task, 1
  %more = icmp ult i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


class Bench:
    """Buffers of zeros and a runner of the stages named."""

    def __init__(
        self, *names: str, tasks: int = TASKS, threads: int = 1, cores: tuple[int, ...] = ()
    ) -> None:
        head = f'target triple = "{Cpu.host().triple}"\n'
        ir = head + "\n".join(stage_ir(name) for name in dict.fromkeys(names))
        library = Library(compile_object(ir, Cpu.host()), names)
        self.runner = Runner(library, [Stage(name, tasks) for name in names], cores)
        self.dst, self.shared, self.weights = (np.zeros(TASKS, np.float32) for _ in range(3))
        self.local = np.zeros((threads, TASKS), np.float32)
        self.threads = threads

    def run(self, repeats: int = 1, copies: int = 1, stride: int = 0) -> float:
        buffers = Buffers(
            src=0, weights=self.weights.ctypes.data, bias=0, add=0, dst=self.dst.ctypes.data,
            shared=self.shared.ctypes.data,
            local=tuple(row.ctypes.data for row in self.local), copies=copies, stride=stride,
        )  # fmt: skip
        return self.runner.run(buffers, self.threads, repeats)


@pytest.mark.parametrize("threads", THREADS)
def test_every_task_is_done_once_per_call(threads: int) -> None:
    bench = Bench("count", threads=threads)
    assert bench.run(repeats=50) > 0
    assert (bench.dst == 50).all()


@pytest.mark.parametrize("threads", THREADS)
def test_a_stage_sees_all_that_the_stage_before_wrote(threads: int) -> None:
    bench = Bench("count", "reverse", "count", threads=threads)
    for calls in range(1, 40):
        bench.run()
        assert (bench.shared == 2 * calls - 1).all()


@pytest.mark.parametrize("threads", THREADS)
def test_threads_share_tasks_and_keep_to_their_own_workspace(threads: int) -> None:
    bench = Bench("mark", threads=threads)
    bench.run()
    assert (bench.local.sum(axis=0) == 1).all()


def test_threads_without_tasks_only_wait() -> None:
    bench = Bench("count", tasks=1, threads=2)
    bench.run(repeats=10)
    assert bench.dst[0] == 10
    assert not bench.dst[1:].any()


def test_weights_rotate_and_go_on_where_they_stopped() -> None:
    bench = Bench("digit", tasks=1)
    bench.weights[:3] = 1, 2, 3
    bench.run(repeats=2, copies=3, stride=4)
    bench.run(repeats=4, copies=3, stride=4)
    assert bench.dst[0] == 123123


def test_too_few_workspaces_or_cores_are_refused() -> None:
    bench = Bench("count")
    bench.threads = 2
    with pytest.raises(ValueError, match="workspaces"):
        bench.run()
    with pytest.raises(ValueError, match="cores"):
        Bench("count", threads=2, cores=(0,)).run()


def test_a_core_that_is_not_there_is_an_error_and_no_hang() -> None:
    bench = Bench("count", threads=2, cores=(0, 4096))
    with pytest.raises(OSError, match="Invalid argument"):
        bench.run()


@pytest.mark.parametrize("cpu", [Cpu.avx2(), Cpu.avx512(), Cpu.neon()], ids=lambda c: c.name)
def test_the_driver_compiles_for_other_machines(cpu: Cpu) -> None:
    assembly = compile_assembly(driver_ir(cpu.triple), cpu)
    assert ("yield" if "aarch64" in cpu.triple else "pause") in assembly


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="not supported on powerpc64le"):
        driver_ir("powerpc64le-unknown-linux-gnu")


def test_a_team_that_has_fallen_asleep_wakes_up() -> None:
    bench = Bench("count", threads=2)
    for calls in range(1, 4):
        bench.run()
        time.sleep(0.01)
        assert (bench.dst == calls).all()


@pytest.mark.skipif(len(CORES) < 2, reason="the process may use one core only")
@pytest.mark.parametrize("bound", [False, True])
def test_a_thread_that_is_woken_keeps_away_from_the_callers_core(bound: bool) -> None:
    bench = Bench("count", threads=2)
    step = Step(bench.runner._library.address("count"), TASKS, 0, 0, 0, 0, bench.dst.ctypes.data, 0)
    script = Script([step], 2, (0, 0))
    workers = Team(2, CORES[:2] if bound else ())
    member = ctypes.c_int32.from_address(workers._state.address + MEMBERS + 4)
    try:
        for caller in (CORES[0], CORES[1], CORES[0]):
            os.sched_setaffinity(0, {caller})  # the threads keep the cores they were born with
            away = {CORES[1]} if bound else set(CORES) - {caller}
            for _ in range(1000):  # a thread that has not fallen asleep yet stays where it is
                workers.run(script, meet=True)
                if (may := os.sched_getaffinity(member.value)) == away:
                    break
                time.sleep(0.002)
            assert may == away
    finally:
        os.sched_setaffinity(0, CORES)
        workers.disband()


@pytest.mark.skipif(len(CORES) != 2, reason="made for two cores")
def test_more_threads_than_cores_go_where_they_may() -> None:
    bench = Bench("count", threads=3)
    step = Step(bench.runner._library.address("count"), TASKS, 0, 0, 0, 0, bench.dst.ctypes.data, 0)
    script = Script([step], 3, (0, 0, 0))
    workers = Team(3)
    try:
        for _ in range(5):
            workers.run(script, meet=True)
            time.sleep(0.002)
        members = (ctypes.c_int32 * 3).from_address(workers._state.address + MEMBERS)
        assert all(os.sched_getaffinity(member) == set(CORES) for member in members[1:])
    finally:
        workers.disband()


def test_a_forked_process_founds_its_own_team() -> None:
    bench = Bench("count", threads=2)
    bench.run()
    child = os.fork()
    if child == 0:
        bench.run()
        os._exit(0 if (bench.dst == 2).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_callers_from_several_threads_take_turns() -> None:
    benches = [Bench("count", threads=2) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda b: [b.run() for _ in range(50)], benches))
    assert all((b.dst == 50).all() for b in benches)


def test_a_step_that_does_not_join_still_ends_before_the_run_does() -> None:
    bench = Bench("count", threads=2)
    address = bench.runner._library.address("count")
    operands = (0, 0, 0, 0, bench.dst.ctypes.data, 0)
    steps = [Step(address, TASKS, *operands, 0), Step(address, TASKS, *operands, 1)]
    script = Script(steps, 2, (0, 0))
    for calls in range(1, 30):
        stamps = np.zeros((2, 2, 2), np.int64)  # of each thread and step: worked, went on
        team(2).run(script, stamps=stamps.ctypes.data)
        assert (bench.dst == 2 * calls).all()
        assert (stamps > 0).all()
        assert (np.diff(stamps.reshape(2, 4)) >= 0).all()


# Stages of two tasks, one for each of two threads, that wait for each other for a while and note in
# `shared` what they see: which task has begun there, then at 2 that the next stage has, at 3 what
# that found in dst.
def meeting_ir() -> str:
    pointers = ", ".join(f"ptr %{a}" for a in ARGUMENTS)
    wait = """define internal i1 @seen(ptr %at) {
entry:
  br label %look
look:
  %n = phi i64 [ 0, %entry ], [ %n.next, %again ]
  %value = load atomic i32, ptr %at seq_cst, align 4
  %there = icmp ne i32 %value, 0
  br i1 %there, label %done, label %again
again:
  %n.next = add i64 %n, 1
  %slept = call i32 @usleep(i32 50)
  %tired = icmp ugt i64 %n.next, 200
  br i1 %tired, label %done, label %look
done:
  %found = phi i1 [ true, %look ], [ false, %again ]
  ret i1 %found
}
declare i32 @usleep(i32)
"""
    stages = {
        # Task 0 stays until task 1 has begun; that gives the next stage time to begin too early.
        "slow": """%mine = getelementptr i32, ptr %shared, i64 %begin
  store atomic i32 1, ptr %mine seq_cst, align 4
  %other = sub i64 1, %begin
  %theirs = getelementptr i32, ptr %shared, i64 %other
  %met = call i1 @seen(ptr %theirs)
  %last = icmp eq i64 %begin, 1
  br i1 %last, label %linger, label %write
linger:
  %next = getelementptr i32, ptr %shared, i64 2
  %early = call i1 @seen(ptr %next)
  br label %write
write:
  %at = getelementptr float, ptr %dst, i64 %begin
  store float 1.0, ptr %at
  ret void""",
        "quick": "ret void",
        "reader": """%began = getelementptr i32, ptr %shared, i64 2
  store atomic i32 1, ptr %began seq_cst, align 4
  %from = getelementptr float, ptr %dst, i64 1
  %x = load float, ptr %from
  %sum.at = getelementptr float, ptr %shared, i64 3
  store float %x, ptr %sum.at
  ret void""",
    }
    return wait + "\n".join(
        f"define void @{name}({pointers}, i64 %begin, i64 %end) {{\nentry:\n  {body}\n}}\n"
        for name, body in stages.items()
    )


def meeting(*steps: tuple[str, int, int]) -> np.ndarray:
    """What stages leave in `shared`: (name, tasks, joins) each, walked by two threads."""
    head = f'target triple = "{Cpu.host().triple}"\n'
    library = Library(compile_object(head + meeting_ir(), Cpu.host()), ["slow", "quick", "reader"])
    dst, shared = np.zeros(2, np.float32), np.zeros(4, np.float32)
    places = dst.ctypes.data, shared.ctypes.data
    native = [
        Step(library.address(name), tasks, 0, 0, 0, 0, *places, joins)
        for name, tasks, joins in steps
    ]
    _kept.append(
        (library, dst, shared)
    )  # whoever is late without a barrier shall fail a test and not die
    team(2).run(Script(native, 2, (0, 0)), meet=True)
    return shared


_kept: list[object] = []


@pytest.mark.skipif(len(CORES) < 2, reason="one thread at a time does what barriers are for")
@pytest.mark.parametrize("between", [[], [("quick", 2, 0)], [("quick", 2, 1)]])
def test_nobody_begins_a_stage_before_the_last_task_of_the_one_before(
    between: list[tuple[str, int, int]],
) -> None:
    """A stage whose one task takes long; who is done with the other one must wait."""
    joins = 0 if any(joins for _, _, joins in between) else 1
    shared = meeting(("slow", 2, joins), *between, ("reader", 1, 1))
    assert shared[3] == 1


@pytest.mark.skipif(len(CORES) < 2, reason="nobody else could begin")
def test_who_need_not_join_goes_on() -> None:
    began = 0
    for _ in range(20):  # on a busy machine one thread may do it all
        began = max(began, 0 if meeting(("slow", 2, 0), ("reader", 1, 1))[3] else 1)
        if began:
            break
    assert began

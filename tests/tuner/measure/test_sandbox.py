"""Kernels that misbehave in many ways, and good kernels measured right after them."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, wait
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fastrun.kernels.codegen.builder import ARGUMENTS
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Stage
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.native.compile import compile_object
from fastrun.kernels.registry import templates
from fastrun.tuner.measure import confine, worker
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.job import Compiled, Job, ProcessLimits, Result
from fastrun.tuner.measure.operands import Operands, Scratch
from fastrun.tuner.measure.sandbox import Compiler, Sandbox, WorkerDied
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.records.record import Outcome

pytestmark = pytest.mark.slow

PROBLEM = ConvProblem.parse("conv 1x5x6x6 7x3x3 s1 p1 bias relu")
NAIVE = "naive(layout=NCHW)"
LIMITS = ProcessLimits(call=0.1, slack=0.4, memory=1 << 30)
QUICK = Protocol(block=1e-4)
HANG_SECONDS = 300.0  # what takes longer hangs, on any machine


@dataclass
class Lab:
    operands: Operands
    sandbox: Sandbox
    compiler: Compiler
    good: Compiled

    def job(self, program: Compiled | None = None, threads: int = 1) -> Job:
        return Job(program or self.good, self.operands, threads, protocol=QUICK, limits=LIMITS)

    def run(self, program: Compiled | None = None) -> Result:
        return self.sandbox.submit(self.job(program)).result(timeout=HANG_SECONDS)


def children() -> set[int]:
    """The living children of this process."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return {pid for pid in found if is_running(pid)}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    cores = Cores.split(1)
    with Scratch() as scratch, Sandbox(cores, LIMITS) as sandbox:
        operands = Operands.make(PROBLEM, scratch)
        with Compiler(cores, Cpu.host(), timeout=20.0) as compiler:
            good = compiler.submit(operands, NAIVE).result(timeout=HANG_SECONDS)
            assert isinstance(good, Compiled)
            yield Lab(operands, sandbox, compiler, good)


def hostile(lab: Lab, body: str, declarations: str = "") -> Compiled:
    """A program whose only stage is this IR."""
    pointers = ", ".join(f"ptr %{a}" for a in ARGUMENTS)
    ir = f"""target triple = "{Cpu.host().triple}"
    {declarations}
    define void @hostile({pointers}, i64 %begin, i64 %end) {{
    {body}
    }}"""
    return replace(lab.good, code=compile_object(ir, Cpu.host()), stages=(Stage("hostile", 1),))


def after_naive(lab: Lab, body: str, declarations: str = "") -> Compiled:
    """The naive kernel, then this IR as a second stage."""
    naive = templates()["naive"]
    ir = naive.program(PROBLEM, naive.heuristic(PROBLEM, Cpu.host()), Cpu.host()).ir
    pointers = ", ".join(f"ptr %{a}" for a in ARGUMENTS)
    ir += f"""
    {declarations}
    define void @hostile({pointers}, i64 %begin, i64 %end) {{
    {body}
    }}"""
    stages = (*lab.good.stages, Stage("hostile", 1))
    return replace(lab.good, code=compile_object(ir, Cpu.host()), stages=stages)


def store(buffer: str, index: int, value: str = "1.0") -> str:
    return f"""%at = getelementptr float, ptr %{buffer}, i64 {index}
    store volatile float {value}, ptr %at
    ret void"""


SIZE = Io.of(PROBLEM, "NCHW").dst.size

RAISE = "declare i32 @raise(i32)"

DEADLY = {
    "segfault": ("store volatile float 1.0, ptr null\nret void", "", "SIGSEGV"),
    "illegal instruction": (
        "call void @llvm.trap()\nunreachable",
        "declare void @llvm.trap()",
        "SIGILL",
    ),
    "abort": ("call void @abort()\nunreachable", "declare void @abort()", "SIGABRT"),
    "exit at once": ("call void @_exit(i32 3)\nunreachable", "declare void @_exit(i32)", "code 3"),
    "division by zero": (
        "%d = sub i64 %end, 1\n%r = sdiv i64 1, %d\n%p = inttoptr i64 %r to ptr\n"
        "store volatile float 1.0, ptr %p\nret void",
        "",
        "SIG",
    ),
    "kills itself": ("%r = call i32 @raise(i32 9)\nret void", RAISE, "SIGKILL"),
    "terminates itself": ("%r = call i32 @raise(i32 15)\nret void", RAISE, "SIGTERM"),
    "endless recursion": (
        "%a = alloca [4096 x i8]\nstore volatile i8 1, ptr %a\n"
        "call void @hostile(ptr %src, ptr %weights, ptr %bias, ptr %add, ptr %dst, ptr %shared,"
        " ptr %local, i64 %begin, i64 %end)\nstore volatile i8 2, ptr %a\nret void",
        "",
        "SIGSEGV",
    ),
    "far outside": (
        "%at = getelementptr float, ptr %dst, i64 -70368744177664\n"
        "store volatile float 1.0, ptr %at\nret void",
        "",
        "SIGSEGV",
    ),
    "eats memory": (
        "br label %more\nmore:\n%p = call ptr @malloc(i64 67108864)\n"
        "store volatile i8 1, ptr %p\nbr label %more",
        "declare ptr @malloc(i64)",
        "SIGSEGV",
    ),
    "unknown symbol": (
        "call void @nobody_has_this()\nret void",
        "declare void @nobody_has_this()",
        "loaded",
    ),
}


@pytest.mark.parametrize("case", DEADLY)
def test_a_kernel_that_kills_its_process_is_a_runtime_outcome(lab: Lab, case: str) -> None:
    body, declarations, reason = DEADLY[case]
    result = lab.run(hostile(lab, body, declarations))
    assert (result.outcome, result.samples) == (Outcome.RUNTIME, ())
    assert reason in result.reason
    assert lab.run().outcome == Outcome.CORRECT


NUMEROUS = {
    "becomes another program": (
        "%r = call i32 @execl(ptr @sh, ptr @sh, ptr null)\nret void",
        '@sh = constant [8 x i8] c"/bin/sh\\00"\ndeclare i32 @execl(ptr, ptr, ...)',
        "SIGSYS",
    ),
    "multiplies": (
        "br label %more\nmore:\n%r = call i32 @fork()\nbr label %more",
        "declare i32 @fork()",
        "SIGSYS",
    ),
    "multiplies by another call": (
        "br label %more\nmore:\n%r = call i32 @vfork()\nbr label %more",
        "declare i32 @vfork() returns_twice",
        "SIGSYS",
    ),
}


@pytest.mark.parametrize("case", NUMEROUS)
def test_a_kernel_that_starts_a_process_is_killed(lab: Lab, case: str) -> None:
    if not confine.available():
        pytest.skip("needs Linux's seccomp")
    body, declarations, reason = NUMEROUS[case]
    result = lab.run(hostile(lab, body, declarations))
    assert (result.outcome, result.samples) == (Outcome.RUNTIME, ())
    assert reason in result.reason
    assert lab.run().outcome == Outcome.CORRECT


SILENT = {
    "exit in order": ("call void @exit(i32 0)\nunreachable", "declare void @exit(i32)"),
    "closes every file": (
        "br label %loop\nloop:\n%f = phi i32 [ 0, %0 ], [ %next, %loop ]\n"
        "%r = call i32 @close(i32 %f)\n%next = add i32 %f, 1\n%more = icmp ult i32 %next, 4096\n"
        "br i1 %more, label %loop, label %done\ndone:\nret void",
        "declare i32 @close(i32)",
    ),
    "stops itself": ("%r = call i32 @raise(i32 19)\nret void", RAISE),
    "sleeps": ("%r = call i32 @sleep(i32 1000)\nret void", "declare i32 @sleep(i32)"),
}


@pytest.mark.parametrize("case", SILENT)
def test_a_kernel_that_falls_silent_is_ended(lab: Lab, case: str) -> None:
    """After such a call the C library and the pipe may work or not."""
    result = lab.run(hostile(lab, *SILENT[case]))
    assert result.outcome in (Outcome.RUNTIME, Outcome.TIMEOUT)
    assert result.samples == ()
    assert lab.run().outcome == Outcome.CORRECT


ENDLESS = "br label %on\non:\nbr label %on"


def test_an_endless_loop_is_killed(lab: Lab) -> None:
    program = hostile(lab, ENDLESS)
    assert lab.run(program).outcome == Outcome.TIMEOUT
    assert lab.run().outcome == Outcome.CORRECT


STRAY = {
    "one float past dst": ("dst", SIZE, "outside dst"),
    "one float before dst": ("dst", -1, "outside dst"),
    "before src": ("src", -3, "outside src"),
    "past the workspace": ("local", 0, "outside local"),
    "past shared": ("shared", 0, "outside shared"),
    "into the input": ("src", 17, "into src"),
    "into the weights": ("weights", 5, "into weights"),
    "into the bias": ("bias", 0, "into bias"),
}


@pytest.mark.parametrize("case", STRAY)
def test_a_stray_write_is_wrong_even_if_the_output_is_right(lab: Lab, case: str) -> None:
    buffer, index, reason = STRAY[case]
    result = lab.run(after_naive(lab, store(buffer, index)))
    assert result.outcome == Outcome.CORRECTNESS
    assert reason in result.reason
    assert result.samples == ()


def test_a_result_off_by_a_thousandth_is_wrong(lab: Lab) -> None:
    body = """br label %loop
    loop:
    %i = phi i64 [ 0, %0 ], [ %next, %loop ]
    %at = getelementptr float, ptr %dst, i64 %i
    %x = load float, ptr %at
    %y = fmul float %x, 0x3FF0041880000000
    store float %y, ptr %at
    %next = add i64 %i, 1
    %more = icmp ult i64 %next, SIZE
    br i1 %more, label %loop, label %done
    done:
    ret void""".replace("SIZE", str(SIZE))
    result = lab.run(after_naive(lab, body))
    assert result.outcome == Outcome.CORRECTNESS
    assert result.errors is not None
    assert 1e-3 < result.errors.max < 1e-2
    assert result.errors.bias > 0  # the outputs are those of a relu
    assert "limit" in result.reason
    lenient = replace(lab.job(after_naive(lab, body)), limits=replace(LIMITS, error=0.1))
    # Every call scales its own new output, so the kernel has a constant error.
    assert lab.sandbox.submit(lenient).result(timeout=HANG_SECONDS).outcome == Outcome.CORRECT


@pytest.mark.parametrize("value", ["0x7FF8000000000000", "0x7FF0000000000000"])
def test_a_value_that_is_not_finite_is_wrong(lab: Lab, value: str) -> None:
    result = lab.run(after_naive(lab, store("dst", SIZE // 2, value)))
    assert result.outcome == Outcome.CORRECTNESS
    assert f"1 of {SIZE} outputs" in result.reason
    assert result.errors is not None
    assert math.isinf(result.errors.max)


def test_outputs_left_unwritten_are_wrong(lab: Lab) -> None:
    partly = replace(lab.good, stages=(replace(lab.good.stages[0], tasks=PROBLEM.oc - 1),))
    result = lab.run(partly)
    assert result.outcome == Outcome.CORRECTNESS
    assert f"{PROBLEM.oh * PROBLEM.ow} of {SIZE} outputs" in result.reason
    assert result.errors is not None
    assert math.isinf(result.errors.max)


def test_a_kernel_that_is_right_only_once_is_wrong(lab: Lab) -> None:
    """It counts its calls in the shared workspace and writes the count into the first pixel."""
    body = """%seen = load float, ptr %shared
    %first = fcmp uno float %seen, %seen
    store float 0.0, ptr %shared
    br i1 %first, label %fine, label %spoil
    spoil:
    store float 7.0, ptr %dst
    br label %fine
    fine:
    ret void"""
    result = lab.run(replace(after_naive(lab, body), shared_bytes=4))
    assert result.outcome == Outcome.CORRECTNESS
    assert "later call" in result.reason


def test_a_halo_in_the_output_must_stay_zero(lab: Lab) -> None:
    naive, cpu = templates()["naive"], Cpu.host()
    io = Io.of(PROBLEM, "NCHW")
    io = replace(io, dst=replace(io.dst, halo=(1, 1, 1, 1)))
    program = naive.build(PROBLEM, naive.heuristic(PROBLEM, cpu), cpu, io)
    tidy = replace(lab.good, code=compile_object(program.ir, cpu), io=io)
    assert lab.run(tidy).outcome == Outcome.CORRECT
    pointers = ", ".join(f"ptr %{a}" for a in ARGUMENTS)
    ir = program.ir + (
        f"\ndefine void @hostile({pointers}, i64 %begin, i64 %end) {{\n{store('dst', 3)}\n}}\n"
    )
    stages = (*lab.good.stages, Stage("hostile", 1))
    untidy = replace(tidy, code=compile_object(ir, cpu), stages=stages)
    result = lab.run(untidy)
    assert (result.outcome, result.reason) == (Outcome.CORRECTNESS, "wrote into the halo of dst")


@pytest.mark.parametrize("layout", ["NHWC", "NCHW8c", "NCHW>NCHW16c"])
def test_every_layout_is_unpacked_before_it_is_compared(lab: Lab, layout: str) -> None:
    direct = templates()["direct"]
    schedule = replace(direct.heuristic(PROBLEM, Cpu.host()), layout=layout)
    program = lab.compiler.submit(lab.operands, direct.text(schedule)).result(timeout=HANG_SECONDS)
    assert isinstance(program, Compiled)
    assert lab.run(program).outcome == Outcome.CORRECT


def test_padding_channels_must_be_finite(lab: Lab) -> None:
    io = Io.of(PROBLEM, "NCHW")
    io = replace(io, dst=replace(io.dst, layout=Layout("NCHW8c")))
    floats = PROBLEM.oh * PROBLEM.ow * 8
    # The last of eight channels is padding; the first seven get the value of an all-zero truth.
    body = """br label %loop
    loop:
    %i = phi i64 [ 0, %0 ], [ %next, %loop ]
    %lane = urem i64 %i, 8
    %pads = icmp eq i64 %lane, 7
    %x = select i1 %pads, float 0x7FF8000000000000, float 0.0
    %at = getelementptr float, ptr %dst, i64 %i
    store float %x, ptr %at
    %next = add i64 %i, 1
    %more = icmp ult i64 %next, FLOATS
    br i1 %more, label %loop, label %done
    done:
    ret void""".replace("FLOATS", str(floats))
    zeros = {name: np.zeros_like(a) for name, a in random_operands(PROBLEM, 0).items()}
    with Scratch() as scratch:
        operands = Operands.make(PROBLEM, scratch, given=zeros)
        job = replace(lab.job(replace(hostile(lab, body), io=io)), operands=operands)
        result = lab.sandbox.submit(job).result(timeout=HANG_SECONDS)
    assert result.outcome == Outcome.CORRECTNESS
    assert result.reason == "padding channels of dst are not finite"


def test_a_regime_must_be_known(lab: Lab) -> None:
    with pytest.raises(ValueError, match="lukewarm"):
        replace(lab.job(), regime="lukewarm")


def test_more_workspace_than_the_limit_is_a_memory_outcome(lab: Lab) -> None:
    result = lab.run(replace(lab.good, shared_bytes=LIMITS.memory * 2))
    assert result.outcome == Outcome.RUNTIME
    assert "memory" in result.reason
    assert lab.run().outcome == Outcome.CORRECT


def test_a_good_kernel_gives_samples_and_errors(lab: Lab) -> None:
    result = lab.run()
    assert result.outcome == Outcome.CORRECT
    assert len(result.samples) == QUICK.blocks
    assert all(0 < s < 1 for s in result.samples)
    assert result.complete
    assert result.errors is not None
    assert 0 < result.errors.rms < result.errors.max < 1e-5
    assert abs(result.errors.bias) < result.errors.rms
    assert set(result.seconds) == {"verify", "measure"}


def test_a_hopeless_kernel_is_given_up(lab: Lab) -> None:
    result = lab.sandbox.submit(replace(lab.job(), incumbent=1e-12)).result(timeout=HANG_SECONDS)
    assert result.outcome == Outcome.CORRECT
    assert not result.complete
    assert len(result.samples) == 1


def test_cold_weights_are_measured_and_right(lab: Lab) -> None:
    job = replace(lab.job(), regime="cold-weights")
    result = lab.sandbox.submit(job).result(timeout=HANG_SECONDS)
    assert (result.outcome, len(result.samples)) == (Outcome.CORRECT, QUICK.blocks)


def test_a_write_past_one_of_many_copies_of_the_weights_is_seen(lab: Lab) -> None:
    body = store("weights", np.load(lab.good.weights).size)
    job = replace(lab.job(after_naive(lab, body)), regime="cold-weights")
    result = lab.sandbox.submit(job).result(timeout=HANG_SECONDS)
    assert (result.outcome, result.reason) == (Outcome.CORRECTNESS, "wrote outside weights")


def test_a_race_pairs_its_samples_and_leaves_out_the_wrong(lab: Lab) -> None:
    wrong = lab.job(replace(lab.good, stages=(replace(lab.good.stages[0], tasks=1),)))
    results = lab.sandbox.race([lab.job(), wrong, lab.job()], rounds=5).result(timeout=HANG_SECONDS)
    assert [r.outcome for r in results] == [
        Outcome.CORRECT,
        Outcome.CORRECTNESS,
        Outcome.CORRECT,
    ]
    assert [len(r.samples) for r in results] == [5, 0, 5]


def test_a_race_that_nobody_may_run_says_why(lab: Lab) -> None:
    wrong = lab.job(replace(lab.good, stages=(replace(lab.good.stages[0], tasks=1),)))
    results = lab.sandbox.race([wrong, wrong], rounds=4, drop_every=2).result(timeout=HANG_SECONDS)
    assert [r.outcome for r in results] == [Outcome.CORRECTNESS] * 2
    assert all("outputs are unwritten" in r.reason for r in results)


def test_a_race_that_dies_says_so_for_everyone(lab: Lab) -> None:
    deadly = lab.job(hostile(lab, *DEADLY["segfault"][:2]))
    results = lab.sandbox.race([lab.job(), deadly], rounds=2).result(timeout=HANG_SECONDS)
    assert [r.outcome for r in results] == [Outcome.RUNTIME] * 2


def test_a_restart_gives_a_fresh_process(lab: Lab) -> None:
    lab.sandbox.restart()
    assert lab.run().outcome == Outcome.CORRECT


def test_verification_uses_the_threads_that_are_timed(lab: Lab) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core only")
    # All tasks write through one shared workspace, which only one task may do at a time.
    with Sandbox(Cores.split(2), LIMITS) as sandbox:
        result = sandbox.submit(lab.job(threads=2)).result(timeout=HANG_SECONDS)
        assert result.outcome == Outcome.CORRECT
        first_only = hostile(
            lab,
            """%first = icmp eq i64 %begin, 0
            br i1 %first, label %fine, label %die
            die:
            store volatile float 1.0, ptr null
            br label %fine
            fine:
            ret void""",
        )
        first_only = replace(first_only, stages=(Stage("hostile", 2),))
        result = sandbox.submit(lab.job(first_only, threads=2)).result(timeout=HANG_SECONDS)
        assert "SIGSEGV" in result.reason


def test_more_threads_than_timing_cores_is_refused(lab: Lab) -> None:
    with pytest.raises(ValueError, match="cores"):
        lab.sandbox.submit(lab.job(threads=99))


def test_compiling_gives_what_a_job_needs(lab: Lab) -> None:
    assert lab.good.schedule == NAIVE
    assert lab.good.problem == str(PROBLEM)
    assert set(lab.good.seconds) == {"build", "compile", "pack"}
    packed = np.load(lab.good.weights)
    assert np.array_equal(packed, lab.operands.load("weights").reshape(-1))


def test_an_impossible_schedule_is_a_constraint(lab: Lab) -> None:
    for schedule in ("naive(layout=NHWC)", "nobody()", "naive(layout=NCHW, speed=11)"):
        result = lab.compiler.submit(lab.operands, schedule).result(timeout=HANG_SECONDS)
        assert isinstance(result, Result)
        assert result.outcome == Outcome.CONSTRAINTS
        assert result.reason


def test_processes_keep_to_their_cores(lab: Lab) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one core only")
    others = children()
    cores = Cores.split(1)
    with Sandbox(cores, LIMITS) as sandbox, Compiler(cores, Cpu.host()) as compiler:
        assert isinstance(
            compiler.submit(lab.operands, NAIVE).result(timeout=HANG_SECONDS), Compiled
        )
        assert sandbox.submit(lab.job()).result(timeout=HANG_SECONDS).outcome == Outcome.CORRECT
        bound = set()
        for process in children() - others:
            threads = map(int, os.listdir(f"/proc/{process}/task"))
            bound |= {tuple(sorted(os.sched_getaffinity(t))) for t in threads}
    alone = {(core,) for core in cores.compiling}
    assert bound <= {cores.timing, cores.compiling} | alone  # before and since its first task
    assert cores.timing in bound
    assert bound & alone


def crash(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(*_: object) -> None:
    time.sleep(60)


def overrun(*_: object) -> None:
    raise IndexError("panel 9 of 8")


def fill_the_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("generator", "reason"), [(crash, "SIGSEGV"), (hang, "stopped"), (overrun, "IndexError: panel")]
)
def test_a_generator_that_fails_is_a_compile_outcome(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, generator: Callable[..., None], reason: str
) -> None:
    with Compiler(Cores.split(1), Cpu.host(), timeout=2.0) as compiler:
        with monkeypatch.context() as patch:
            patch.setattr(worker, "compile_on", generator)
            result = compiler.submit(lab.operands, NAIVE).result(timeout=HANG_SECONDS)
        assert isinstance(result, Result)
        assert result.outcome == Outcome.COMPILE
        assert reason in result.reason
        assert isinstance(
            compiler.submit(lab.operands, NAIVE).result(timeout=HANG_SECONDS), Compiled
        )


def test_a_full_disk_is_no_fault_of_the_candidate(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "compile_on", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        lab.compiler.submit(lab.operands, NAIVE).result(timeout=HANG_SECONDS)


def test_a_process_that_dies_between_jobs_costs_no_job(lab: Lab) -> None:
    others = children()
    with Sandbox(Cores.split(1), LIMITS) as sandbox:
        before = sandbox.submit(lab.job()).result(timeout=HANG_SECONDS)
        assert before.outcome == Outcome.CORRECT, before.reason
        (idle,) = children() - others
        os.kill(idle, signal.SIGKILL)
        wait_for_end([idle])
        after = sandbox.submit(lab.job()).result(timeout=HANG_SECONDS)
        assert after.outcome == Outcome.CORRECT, after.reason


def test_workers_that_cannot_start_are_an_error() -> None:
    nowhere = Cores([100_000], [100_000])
    with Sandbox(nowhere) as sandbox, pytest.raises(WorkerDied) as refusal:
        sandbox.call(crash, (), timeout=10)
    assert "as soon as they start" in str(refusal.value)
    assert "cannot be bound to core 100000" in str(refusal.value)


def test_leaving_does_not_wait_for_a_job(lab: Lab) -> None:
    patient = replace(lab.job(hostile(lab, ENDLESS)), limits=ProcessLimits(slack=HANG_SECONDS))
    with Sandbox(Cores.split(1)) as sandbox:
        future = sandbox.submit(patient)
        assert wait([future], timeout=0.7).not_done
    with pytest.raises(CancelledError):  # else it has waited for the job's end
        future.result(timeout=0)


ORPHAN = """
from tests.tuner.measure.test_sandbox import *

if __name__ == "__main__":
    cores = Cores.split(1)
    with Scratch() as scratch, Sandbox(cores) as sandbox, Compiler(cores, Cpu.host()) as compiler:
        operands = Operands.make(PROBLEM, scratch)
        lab = Lab(operands, sandbox, compiler, compiler.submit(operands, NAIVE).result())
        job = replace(lab.job(hostile(lab, ENDLESS)), limits=ProcessLimits(slack=60.0))
        assert not wait([sandbox.submit(job)], timeout=0.3).done
        print(scratch.folder, *children(), flush=True)
        wait([sandbox.submit(job)])
"""


def test_a_killed_run_leaves_nothing_behind(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        folder, *children = parent.stdout.readline().split()
        existed = Path(folder).exists()
        parent.kill()
    assert existed
    assert len(children) >= 2
    wait_for_end([int(child) for child in children])
    with Scratch():
        assert not Path(folder).exists()


def wait_for_end(processes: Iterable[int]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while left := [pid for pid in processes if is_running(pid)]:
        assert time.monotonic() < deadline, f"{left} go on"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a thread of the process is left; the first one may end before the others."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            states.append(stat.read_text().rpartition(")")[2].split()[0])
    return any(state not in "ZX" for state in states)


def test_scratch_files_vanish() -> None:
    with Scratch() as scratch:
        operands = Operands.make(PROBLEM, scratch)
        assert operands.load("reference").shape == (1, 7, 6, 6)
        folder = Path(scratch.folder)
        assert folder.is_dir()
    assert not folder.exists()

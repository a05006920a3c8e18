"""The work of the processes of `tuner.measure.sandbox`: check and time kernels, or compile them."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import signal
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from fastrun.kernels.core.attention import parse_problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.team import team
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.measure.canary import canary
from fastrun.tuner.measure.confine import forbid_processes, only_compute
from fastrun.tuner.measure.cores import one_thread, pin
from fastrun.tuner.measure.guarded import Arena, Subject
from fastrun.tuner.measure.job import Compiled, Job, Result
from fastrun.tuner.measure.operands import Operands, save
from fastrun.tuner.measure.timing import Block, Timing, here, interleave, measure
from fastrun.tuner.measure.ulimits import lower
from fastrun.tuner.records.record import Outcome

# Exit codes of a worker that found a stray write, one for each of `guarded.STRAYS`. It exits at
# once, because its memory may be damaged anywhere.
STRAY = 100

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def enter(cores: tuple[int, ...], memory: int, runs_kernels: bool) -> None:
    """Make this process a worker on these cores, with `memory` bytes of address space to use.

    Lower limits that it has already stay. If it runs kernels, it can only compute from then on, as
    far as the system supports that.
    """
    pin(cores)
    one_thread()
    # A kernel that hangs must not outlive a killed parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if runs_kernels:
        # These compile code, which later cannot be stored any more.
        canary()
        team(1)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    lower(resource.RLIMIT_AS, mapped + memory)
    lower(resource.RLIMIT_CORE, 0)
    _, seconds = resource.getrlimit(resource.RLIMIT_CPU)
    if seconds > 1:  # the signal of the hard limit would not tell the reason
        lower(resource.RLIMIT_CPU, seconds - 1)
    if runs_kernels:
        only_compute()
    else:
        forbid_processes()


def run_one(job: Job, cores: Sequence[int]) -> list[Result]:
    """Check the job's kernel, then time it."""
    subject, result, first = _checked(job, _arena(), cores)
    if subject is None:
        return [result]
    begin = time.perf_counter()
    subject.cool()
    noise = canary()
    timing = measure(subject.calls, job.protocol, first, job.incumbent)
    return [_finish(subject, result, timing, max(noise, canary()), begin)]


def run_race(
    jobs: Sequence[Job], rounds: int, seed: int, drop_every: int, cores: Sequence[int]
) -> list[Result]:
    """Check all jobs' kernels, then time the correct ones in interleaved rounds.

    A kernel that is slow by its protocol is not called again: the checked call is its only sample.
    """
    checked = [_checked(job, Arena(), cores) for job in jobs]
    correct = {i: subject for i, (subject, _, _) in enumerate(checked) if subject}
    slow = {i: checked[i][2] for i in correct if checked[i][2] >= jobs[i].protocol.slow}
    racing = [i for i in correct if i not in slow]
    begin = time.perf_counter()
    for i in racing:
        correct[i].cool()
    noise = canary()
    calls = [correct[i].calls for i in racing]
    timings = interleave(calls, rounds, jobs[0].protocol, seed, drop_every)
    noise = max(noise, canary())
    timed = dict(zip(racing, timings, strict=True))
    climate = here().climate
    timed |= {i: Timing((Block(s, climate),), 1, complete=False) for i, s in slow.items()}
    results = [result for _, result, _ in checked]
    for i, subject in correct.items():
        results[i] = _finish(subject, results[i], timed[i], noise, begin)
    return results


def compile_on(
    core: int,
    operands: Operands,
    schedule: str,
    cpu: Cpu,
    code: bytes | None = None,
    portable: bool = False,
) -> Compiled:
    """`compile_one`, on this core."""
    pin([core])
    return compile_one(operands, schedule, cpu, code, portable)


def compile_one(
    operands: Operands,
    schedule: str,
    cpu: Cpu,
    code: bytes | None = None,
    portable: bool = False,
) -> Compiled:
    """Build, compile through the object cache, and pack the operands' weights if they are here.

    `code` is the compiled object if another process has made it already. With `portable` it can be
    linked to run elsewhere.

    Raises:
        ScheduleError: the schedule does not fit the problem.
        CompileError: LLVM refuses the code.
    """
    clock = [time.perf_counter()]
    template, parsed = parse_schedule(schedule)
    program = template.program(parse_problem(operands.problem), parsed, cpu)
    clock.append(time.perf_counter())
    code = code or ObjectCache().object(program.ir, cpu, portable)
    clock.append(time.perf_counter())
    weights = Path()
    if operands.here:
        packed = program.pack_weights(operands.load("weights"))
        number, name = tempfile.mkstemp(".npy", f"{program.ir_hash}-", operands.folder)
        os.close(number)
        weights = Path(name)
        save(weights, np.ascontiguousarray(packed))
    clock.append(time.perf_counter())
    durations = [after - before for before, after in pairwise(clock)]
    return Compiled(
        problem=operands.problem,
        schedule=template.text(parsed),
        ir_hash=program.ir_hash,
        code=code,
        stages=program.stages,
        io=program.io,
        weights=weights,
        shared_bytes=program.shared_bytes,
        local_bytes=program.local_bytes,
        seconds=dict(zip(("build", "compile", "pack"), durations, strict=True)),
    )


@functools.cache
def _arena() -> Arena:
    return Arena()


def _checked(job: Job, arena: Arena, cores: Sequence[int]) -> tuple[Subject | None, Result, float]:
    """The kernel if it is correct, the result so far, the seconds of its first call."""
    begin = time.perf_counter()
    try:
        subject = Subject(job, arena, cores)
    except RuntimeError as error:
        return None, Result(Outcome.RUNTIME, f"cannot be loaded: {error}"), 0.0
    first = subject.calls(1)
    _exit_if(subject.stray())
    errors, wrong = subject.check()
    outcome = Outcome.CORRECTNESS if wrong else Outcome.CORRECT
    spent = {"verify": time.perf_counter() - begin}
    result = Result(outcome, wrong or "", errors=errors, seconds=spent)
    return None if wrong else subject, result, first


def _finish(subject: Subject, result: Result, timing: Timing, noise: float, begin: float) -> Result:
    """The whole result, if the timed calls gave the same output as the checked one."""
    spent = {**result.seconds, "measure": time.perf_counter() - begin}
    _exit_if(subject.stray())
    _exit_if(subject.spoilt())
    return result.timed(timing, noise, spent, stable=subject.stable())


def _exit_if(found: int | None) -> None:
    if found is not None:
        os._exit(STRAY + found)

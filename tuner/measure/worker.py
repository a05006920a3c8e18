"""What the processes of `tuner.measure.sandbox` do: verify and time a candidate, or compile one."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.team import team
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.measure.canary import canary
from fastrun.tuner.measure.confine import forbid_processes, only_compute
from fastrun.tuner.measure.cores import one_thread, pin
from fastrun.tuner.measure.guarded import Arena, Candidate
from fastrun.tuner.measure.job import Compiled, Job, Result
from fastrun.tuner.measure.limits import lower
from fastrun.tuner.measure.operands import Operands, save
from fastrun.tuner.measure.timing import Timing, interleave, measure
from fastrun.tuner.records.record import Outcome

# Exit codes of a worker that found a stray write, one for each of `verify.STRAYS`. It leaves at
# once: its memory may be damaged anywhere, and no later candidate must meet that.
STRAY = 100

_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def enter(cores: tuple[int, ...], memory: int, runs_candidates: bool) -> None:
    """Make this process a worker on these cores with `memory` bytes of address space to spare.

    Limits that it has already are kept. Where it runs candidates it can do nothing but compute
    from then on, as far as the system offers that.
    """
    pin(cores)
    one_thread()
    # A kernel that hangs must not outlive a killed parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if runs_candidates:
        # What these compile they cannot store later on.
        canary()
        team(1)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    lower(resource.RLIMIT_AS, mapped + memory)
    lower(resource.RLIMIT_CORE, 0)
    _, seconds = resource.getrlimit(resource.RLIMIT_CPU)
    if seconds > 1:  # the hard limit's signal would not say what it was
        lower(resource.RLIMIT_CPU, seconds - 1)
    if runs_candidates:
        only_compute()
    else:
        forbid_processes()


def run_one(job: Job, cores: Sequence[int]) -> list[Result]:
    """Verify the candidate, then time it."""
    candidate, result, first = _verify(job, _arena(), cores)
    if candidate is None:
        return [result]
    begin = time.perf_counter()
    candidate.cool()
    noise = canary()
    timing = measure(candidate.calls, job.protocol, first, job.incumbent)
    return [_finish(candidate, result, timing, max(noise, canary()), begin)]


def run_race(
    jobs: Sequence[Job], rounds: int, seed: int, rung: int, cores: Sequence[int]
) -> list[Result]:
    """Verify all candidates, then time the correct ones in interleaved rounds.

    One whose call takes as long as its protocol calls slow is left at the call that verified it.
    """
    verified = [_verify(job, Arena(), cores) for job in jobs]
    correct = {i: candidate for i, (candidate, _, _) in enumerate(verified) if candidate}
    slow = {i: verified[i][2] for i in correct if verified[i][2] >= jobs[i].protocol.slow}
    racing = [i for i in correct if i not in slow]
    begin = time.perf_counter()
    for i in racing:
        correct[i].cool()
    noise = canary()
    calls = [correct[i].calls for i in racing]
    timings = interleave(calls, rounds, jobs[0].protocol, seed, rung)
    noise = max(noise, canary())
    timed = dict(zip(racing, timings, strict=True))
    timed |= {i: Timing((first,), 1, complete=False) for i, first in slow.items()}
    results = [result for _, result, _ in verified]
    for i, candidate in correct.items():
        results[i] = _finish(candidate, results[i], timed[i], noise, begin)
    return results


def compile_on(
    core: int, operands: Operands, schedule: str, cpu: Cpu, code: bytes | None = None
) -> Compiled:
    """`compile_one`, on this core."""
    pin([core])
    return compile_one(operands, schedule, cpu, code)


def compile_one(operands: Operands, schedule: str, cpu: Cpu, code: bytes | None = None) -> Compiled:
    """Build, compile through the object cache and pack the operands' weights.

    Weights that lie elsewhere are not packed. `code` is the object that compiling would give, where
    another process has made it already.

    Raises:
        ScheduleError: the schedule cannot be right for the problem.
        CompileError: LLVM refuses the code.
    """
    clock = [time.perf_counter()]
    template, parsed = parse_schedule(schedule)
    program = template.program(ConvProblem.parse(operands.problem), parsed, cpu)
    clock.append(time.perf_counter())
    code = code or ObjectCache().object(program.ir, cpu)
    clock.append(time.perf_counter())
    weights = Path()
    if operands.here:
        packed = program.pack_weights(operands.load("weights"))
        number, name = tempfile.mkstemp(".npy", f"{program.ir_hash}-", operands.folder)
        os.close(number)
        weights = Path(name)
        save(weights, np.ascontiguousarray(packed, np.float32))
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


def _verify(job: Job, arena: Arena, cores: Sequence[int]) -> tuple[Candidate | None, Result, float]:
    """The candidate, if it is correct; the result so far; the seconds its first call took."""
    begin = time.perf_counter()
    try:
        candidate = Candidate(job, arena, cores)
    except RuntimeError as error:
        return None, Result(Outcome.RUNTIME, f"cannot be loaded: {error}"), 0.0
    first = candidate.calls(1)
    _leave_if(candidate.stray())
    errors, wrong = candidate.judge()
    outcome = Outcome.CORRECTNESS if wrong else Outcome.CORRECT
    spent = {"verify": time.perf_counter() - begin}
    result = Result(outcome, wrong or "", errors=errors, seconds=spent)
    return None if wrong else candidate, result, first


def _finish(
    candidate: Candidate, result: Result, timing: Timing, noise: float, begin: float
) -> Result:
    """The whole result, if the timed calls did what the verified one did."""
    spent = {**result.seconds, "measure": time.perf_counter() - begin}
    _leave_if(candidate.stray())
    _leave_if(candidate.spoilt())
    if not candidate.stable():
        wrong = "a later call gives another output than the first"
        return replace(result, outcome=Outcome.CORRECTNESS, reason=wrong, seconds=spent)
    return replace(
        result,
        samples=timing.samples,
        repeats=timing.repeats,
        complete=timing.complete,
        noise=max(noise, timing.waited),
        seconds=spent,
    )


def _leave_if(found: int | None) -> None:
    if found is not None:
        os._exit(STRAY + found)

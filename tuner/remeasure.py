"""One schedule, verified and timed now: how a row of a report is repeated."""

from __future__ import annotations

from kernels.core.cpu import Cpu
from kernels.core.problem import ConvProblem
from tuner.cores import Cores
from tuner.environment import toolchain
from tuner.job import Compiled, Job
from tuner.operands import Operands, Scratch
from tuner.record import Record
from tuner.sandbox import Compiler, Sandbox
from tuner.timing import Protocol

_PROTOCOL = Protocol(warmup=3, blocks=15)


def remeasure(problem: ConvProblem, schedule: str, threads: int, regime: str) -> Record:
    """The outcome of a schedule, by the measurements of a search but more of them.

    Raises:
        ValueError: more threads than cores.
    """
    cores, cpu = Cores.split(threads), Cpu.host()
    with Scratch() as scratch, Compiler(cores, cpu) as compiler, Sandbox(cores) as sandbox:
        operands = Operands.make(problem, scratch)
        made = compiler.submit(operands, schedule).result()
        program = made if isinstance(made, Compiled) else None
        result = (
            sandbox.submit(Job(made, operands, threads, regime, _PROTOCOL)).result()
            if isinstance(made, Compiled)
            else made
        )
    return Record(
        problem=str(problem),
        schedule=schedule,
        machine=cpu.fingerprint,
        threads=threads,
        regime=regime,
        toolchain=toolchain(),
        ir_hash=program.ir_hash if program else "",
        outcome=result.outcome,
        reason=result.reason,
        samples=result.samples,
        errors=result.errors,
        workspace=program.workspace(threads) if program else 0,
        seconds=result.seconds,
        noise=result.noise,
    )

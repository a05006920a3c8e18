"""One schedule, verified and timed now: how a row of a report is repeated."""

from __future__ import annotations

from kernels.core.problem import ConvProblem
from tuner.job import Compiled
from tuner.measurer import Measurer
from tuner.record import Record
from tuner.timing import Protocol

_PROTOCOL = Protocol(warmup=3, blocks=15)


def remeasure(problem: ConvProblem, schedule: str, threads: int, regime: str) -> Record:
    """The outcome of a schedule, by the measurements of a search but more of them.

    Raises:
        ValueError: more threads than cores.
    """
    with Measurer(threads, regime) as measurer:
        made = measurer.compile(problem, schedule).result()
        if not isinstance(made, Compiled):
            return measurer.record(problem, schedule, made, None)
        job = measurer.job(problem, made, protocol=_PROTOCOL)
        (result,) = measurer.sandbox.submit_all([job]).result()
        return measurer.record(problem, schedule, result, made)

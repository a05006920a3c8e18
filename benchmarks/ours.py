"""The entry of fastrun: tuned kernels for single layers, tuned networks."""

from __future__ import annotations

import os
from collections.abc import Mapping

import onnx

from fastrun.benchmarks.peers import Array
from fastrun.benchmarks.race import Entry, wait_until_idle, warm
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import heuristic_choice
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.guarded import Arena, Subject
from fastrun.tuner.measure.job import Job
from fastrun.tuner.measure.operands import Operands
from fastrun.tuner.measure.timing import Calls
from fastrun.tuner.measure.worker import compile_one
from fastrun.tuner.networks.load import load
from fastrun.tuner.records.record import NO_LIMITS, REGIMES, Conditions, Limits
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.staleness import is_current

NAME = "ours"


def layer(operands: Operands, threads: int, database: Database | None) -> Entry:
    """The best stored schedule of the operands' problem, else the heuristic's; checked.

    The note names the schedule and its source.
    """
    p = ConvProblem.parse(operands.problem)
    schedule, source = _schedule(p, threads, database)
    program = compile_one(operands, schedule, Cpu.host())
    job = Job(program, operands, threads)
    cores = Cores.split(threads).timing
    subject = Subject(job, Arena(), cores)
    subject.calls(1)
    errors, wrong = subject.check()
    if subject.stray() is not None:
        wrong = "writes outside its output"
    if wrong:
        return Entry(NAME, None, errors, note=f"{wrong}: {schedule}")
    return Entry(NAME, _blocks(subject, cores[0]), errors, note=f"{source}: {schedule}")


def _schedule(p: ConvProblem, threads: int, database: Database | None) -> tuple[str, str]:
    """A schedule's text, and whether it is `tuned` or `heuristic`."""
    cpu = Cpu.host()
    for regime in REGIMES if database else ():
        assert database
        ranking = database.ranking(p, Conditions.here(threads, regime))
        if ranking and is_current(ranking[0]):
            return ranking[0].schedule, "tuned"
    template, schedule = heuristic_choice(p, cpu)
    return template.text(schedule), "heuristic"


def _blocks(subject: Subject, core: int) -> Calls:
    def calls(repeats: int) -> float:
        wait_until_idle()
        everywhere = os.sched_getaffinity(0)
        # The other threads have their own cores. If this thread shared one, both would be slow.
        os.sched_setaffinity(0, {core})
        try:
            warm(lambda: subject.calls(1))
            return subject.calls(repeats)
        finally:
            os.sched_setaffinity(0, everywhere)

    return calls


class NetworkSession:
    """A network as `fastrun.load` plans it. A call writes the inputs and reads the outputs.

    `packed` are the bytes of its packed weights.

    Raises:
        GraphError: fastrun cannot run the model.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        threads: int,
        database: str | None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._executable = load(
            model, threads, database, max_error=limits.error, max_workspace=limits.workspace
        )
        self.packed = self._executable.memory.weights
        self._outputs = [v.name for v in model.graph.output]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        self._bound = dict(inputs)
        found = self._executable.run(self._bound)
        return [found[name] for name in self._outputs]

    def call(self) -> None:
        self._executable.run(self._bound)

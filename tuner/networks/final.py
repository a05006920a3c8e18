"""The final of a whole network: its plans race each other, and the fastest is kept.

First, the plan by layer times runs in turns with other plans: some give layers other fast
schedules, some prefer one layout. That measures the forms of each task in place, inside the
network. From these times the planner makes one more plan. Then the whole networks race.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

from fastrun.graph.core.model import Graph
from fastrun.graph.plan.form import Form
from fastrun.graph.plan.plan import Plan
from fastrun.graph.plan.tasks import tasks
from fastrun.graph.planner import carried_out, cheapest_plan, follow_plan
from fastrun.kernels.core.cgroup import usable_memory
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.precompile import precompile
from fastrun.tuner.measure.cores import Cores
from fastrun.tuner.measure.interrupts import one_interrupt
from fastrun.tuner.measure.job import ProcessLimits
from fastrun.tuner.measure.operands import Scratch
from fastrun.tuner.measure.sandbox import Sandbox, WorkerDied
from fastrun.tuner.networks.alternatives import PlanInputs, apart, distinct, plans, same, variants
from fastrun.tuner.networks.in_place import Comparison, PickledNetwork, compare, race_plans
from fastrun.tuner.records.network_record import HEURISTIC, IN_PLACE, LAYERS, ROUNDS
from fastrun.tuner.records.statistics import rounds_interval, typical

_COMPARING = 0.6  # part of the time for comparing steps in place; the rest is for the race
_TURNS = 0.8  # seconds in which a plan runs in turns with the base
_PROCESSES = 5
_RACE_WITHIN = 1.15  # a plan races if its steps took less than so many times those of the base
_HANG_SECONDS = 120.0  # a process that times networks for so long counts as hanging


class NoTimeError(RuntimeError):
    """The time is too short to compile two plans."""


@dataclass(frozen=True)
class FinalResult:
    """The plans of a network's final and their times: seconds of every round, by name.

    Plans are ordered by the effort of finding them (heuristic, layer times, one layout, in place).
    A plan replaces the one kept so far only if the 95 % interval of the speed-up, over rounds, lies
    above 1.
    """

    plans: Mapping[str, Plan]
    samples: Mapping[str, Sequence[float]]

    @property
    def kept(self) -> str:
        """The name of the plan to run."""
        incumbent, *others = self.samples
        for name in others:
            if rounds_interval(self.samples[incumbent], self.samples[name])[0] > 1:
                incumbent = name
        return incumbent

    def seconds(self, name: str) -> float:
        """Seconds per run of a plan; infinite if it did not race."""
        return typical(self.samples.get(name, ()))


def network_final(
    graph: Graph,
    inputs: PlanInputs,
    cpu: Cpu,
    threads: int,
    seconds: float,
    strict: bool = False,
) -> FinalResult:
    """Find the fastest plan within `seconds`; a large network may need more.

    Raises:
        NoTimeError: it needs more, and `strict` is true.
        UnsupportedError: a node cannot be run; the message names it.
        ValueError: there are more threads than cores.
        WorkerDied: the heuristic's plan could not be run.
    """
    cores = Cores.split(threads)
    # One process holds several copies of the network.
    limits = ProcessLimits(memory=usable_memory() // 2)
    with one_interrupt(), Scratch() as scratch, Sandbox(cores, limits) as sandbox:
        pickled = pickle.dumps(graph)
        file = scratch.room(len(pickled)) / "graph"
        file.write_bytes(pickled)
        network = PickledNetwork(file, cores.timing)
        return _Final(graph, inputs, cpu, network, sandbox, seconds, strict).final()


@dataclass
class _Final:
    graph: Graph
    inputs: PlanInputs
    cpu: Cpu
    network: PickledNetwork
    sandbox: Sandbox
    seconds: float
    strict: bool
    # Seconds of every task in place, by output and form.
    took: dict[str, dict[Form, float]] = field(default_factory=dict)
    # Rows of the bands that were faster, by output.
    bands: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begin = monotonic()

    def final(self) -> FinalResult:
        named = plans(self.graph, self.inputs, self.cpu, len(self.network.cores))
        racing: dict[str, Plan] = {}
        for name in (HEURISTIC, LAYERS):
            # The second should take about as long to compile as the first.
            if self.strict and 2 * self._elapsed > self.seconds:
                raise NoTimeError(f"{self.seconds:.1f} s are too short to compile and race plans")
            if name in named:
                racing[name] = self._ready(named[name])
        base = self._ready(apart(racing.get(LAYERS, racing[HEURISTIC])))
        last = 0.0
        for name, plan in self._others(named, base):
            if not self._has_time(_COMPARING, last):
                break
            begin = monotonic()
            slower = self._compare(base, self._ready(plan))
            if slower < _RACE_WITHIN and name in named.keys() - racing:
                racing[name] = self._ready(named[name])
            last = monotonic() - begin
        if self.took and self._elapsed < self.seconds:
            racing[IN_PLACE] = self._ready(self._refined())
        racing = distinct(racing)
        return FinalResult(racing, {name: tuple(x) for name, x in self._race(racing).items()})

    def _others(self, named: Mapping[str, Plan], base: Plan) -> Iterator[tuple[str, Plan]]:
        """Plans to compare with the base, with their names or ''."""
        yield LAYERS, named.get(LAYERS, named[HEURISTIC])  # in bands, if there are any
        for name, plan in named.items():
            if name != LAYERS:
                yield name, apart(plan)
        inputs = self.inputs
        for plan in variants(self.graph, base, inputs.several, self.cpu, inputs.proposed):
            yield "", plan

    def _compare(self, base: Plan, other: Plan) -> float:
        """Time the forms of another plan in place; its time as a multiple of the base's."""
        if same(base, other):
            return 1.0
        try:
            found = self.sandbox.call(
                compare, (self.network, str(base), str(other), _TURNS), _HANG_SECONDS
            )
        except WorkerDied:
            return math.inf
        if not found.agrees:
            return math.inf
        for name, form in base.forms.items():
            self._learn(name, form, typical(found.base[name,]) if (name,) in found.base else None)
        for name, form in other.forms.items():
            if (name,) in found.other or not any(name in outputs for outputs in found.other):
                self._learn(name, form, self._in_place(name, base, found))
        for outputs, samples in found.other.items():
            if len(outputs) > 1 and _ratio(samples, [found.base[x,] for x in outputs]) < 1:
                self.bands[outputs[-1]] = other.forms[outputs[-1]].rows
        return typical(found.other_runs) / typical(found.base_runs)

    def _in_place(self, name: str, base: Plan, found: Comparison) -> float | None:
        """Seconds of a task of the other plan; None if it has no step, for example a view."""
        if (name,) not in found.other:
            return None
        if (name,) not in found.base:
            return typical(found.other[name,])
        before = self.took[name][_bare(base.forms[name])]
        return before * _ratio(found.other[name,], [found.base[name,]])

    def _learn(self, name: str, form: Form, seconds: float | None) -> None:
        known = self.took.setdefault(name, {})
        known.setdefault(_bare(form), form.seconds if seconds is None else seconds)

    def _refined(self) -> Plan:
        """The plan of the forms that were fastest in place, with the expected costs of moves."""
        forms = {
            name: [replace(form, seconds=seconds) for form, seconds in known.items()]
            for name, known in self.took.items()
        }
        todo = tasks(self.graph)
        plan = cheapest_plan(self.graph, todo, forms, self.inputs.costs.move)
        banded = {x: replace(plan.forms[x], rows=rows) for x, rows in self.bands.items()}
        made = {**plan.forms, **banded}
        return replace(plan, forms=made, machine=self.cpu.fingerprint)

    def _race(self, racing: Mapping[str, Plan]) -> Mapping[str, Sequence[float]]:
        """Samples of every plan, from fresh processes as far as time allows."""
        names = list(racing)
        samples: dict[str, list[float]] = {name: [] for name in names}
        for process in range(_PROCESSES):
            begin = monotonic()
            self.sandbox.restart()
            texts = [str(racing[name]) for name in names]
            try:
                arguments = self.network, texts, ROUNDS, process
                times = self.sandbox.call(race_plans, arguments, _HANG_SECONDS)
            except WorkerDied:
                # Plans with later names are less tried, so the last one is suspected.
                if len(names) == 1:
                    raise
                return self._race({name: racing[name] for name in names[:-1]})
            names = [name for name, found in zip(names, times, strict=True) if found]
            for name, found in zip(samples, times, strict=True):
                samples[name] += found
            samples = {name: samples[name] for name in names}
            if not self._has_time(1.0, monotonic() - begin):
                break
        return samples

    def _has_time(self, share: float, last: float) -> bool:
        """Whether this share of the time leaves at least half of what the last piece took."""
        return self._elapsed + last / 2 < share * self.seconds

    def _ready(self, plan: Plan) -> Plan:
        """The plan as this machine can build it; its kernels are compiled on all cores."""
        arrangement = follow_plan(self.graph, plan, self.cpu)
        cache = ObjectCache()
        programs = [step.program for step in arrangement.kernels]
        precompile(cache.missing(programs, self.cpu), self.cpu, cache)
        return carried_out(plan, arrangement)

    @property
    def _elapsed(self) -> float:
        return monotonic() - self._begin


def _bare(form: Form) -> Form:
    return replace(form, seconds=0.0)


def _ratio(other: Sequence[float], base: Sequence[Sequence[float]]) -> float:
    """The time of a step as a multiple of the base's steps together, by the end of its interval.

    The upper end is taken, so that only forms that are surely faster count as faster.
    """
    together = [sum(run) for run in zip(*base, strict=True)]
    return rounds_interval(other, together)[1]

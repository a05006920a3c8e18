"""The final of a whole network: plans race each other in place, and the fastest is kept.

What layers take alone is only where to start. Plans that give layers others of their leading
schedules, or keep to one layout, run in turns with the plan from layer times; of all forms seen
that way the planner makes a plan by what each took in place. Then whole networks race.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

from fastrun.graph.core.model import Graph
from fastrun.graph.plan.forms import Form
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
from fastrun.tuner.networks.alternatives import Knowledge, apart, distinct, plans, same, variants
from fastrun.tuner.networks.in_place import Comparison, Network, compare, race
from fastrun.tuner.records.network_record import HEURISTIC, IN_PLACE, LAYERS, ROUNDS
from fastrun.tuner.records.statistics import rounds_interval, typical

# Of the time, the part for comparing steps in place; the rest is for the race.
_COMPARING = 0.6
_TURNS = 0.8  # seconds that a rival takes turns with the base
_PROCESSES = 5
# A plan whose steps took this many times as long as the base's does not race.
_HOPELESS = 1.15
_PATIENCE = 120.0  # seconds after which a process that times networks hangs


class NoTimeError(RuntimeError):
    """Two plans cannot be made ready in the time there is."""


@dataclass(frozen=True)
class Final:
    """How a network's plans did: the seconds of every round, and which is kept, all by name.

    Names stand in rising order of what it takes to find the plan. A later one is kept only if it
    was faster than the one kept so far, by more than rounds scatter.
    """

    plans: Mapping[str, Plan]
    samples: Mapping[str, Sequence[float]]

    @property
    def kept(self) -> str:
        """The name of the plan to run."""
        first, *others = self.samples
        for name in others:
            if rounds_interval(self.samples[first], self.samples[name])[0] > 1:
                first = name
        return first

    def seconds(self, name: str) -> float:
        """Of a run of the plan called so; infinite if it did not race."""
        return typical(self.samples.get(name, ()))


def network_final(
    graph: Graph,
    knowledge: Knowledge,
    cpu: Cpu,
    threads: int,
    seconds: float,
    strict: bool = False,
) -> Final:
    """Find the fastest plan within some `seconds`, of which a large network may need more.

    Raises:
        NoTimeError: it needs more, and `strict` forbids that.
        UnsupportedError: a node cannot be run; it is named.
        ValueError: more threads than cores.
        WorkerDied: not even the heuristic's plan could be run.
    """
    cores = Cores.split(threads)
    # One process holds several copies of the network.
    limits = ProcessLimits(memory=usable_memory() // 2)
    with one_interrupt(), Scratch() as scratch, Sandbox(cores, limits) as sandbox:
        pickled = pickle.dumps(graph)
        file = scratch.room(len(pickled)) / "graph"
        file.write_bytes(pickled)
        network = Network(file, cores.timing)
        return _Run(graph, knowledge, cpu, network, sandbox, seconds, strict).final()


@dataclass
class _Run:
    graph: Graph
    knowledge: Knowledge
    cpu: Cpu
    network: Network
    sandbox: Sandbox
    seconds: float
    strict: bool
    # What every task took in place, by output and form; and rows of bands that were faster.
    took: dict[str, dict[Form, float]] = field(default_factory=dict)
    bands: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begin = monotonic()

    def final(self) -> Final:
        named = plans(self.graph, self.knowledge, self.cpu, len(self.network.cores))
        racing: dict[str, Plan] = {}
        for name in (HEURISTIC, LAYERS):
            # The second should take about as long to compile as the first.
            if self.strict and 2 * self._elapsed > self.seconds:
                raise NoTimeError(f"{self.seconds:.1f} s are too short to compile and race plans")
            if name in named:
                racing[name] = self._ready(named[name])
        base = self._ready(apart(racing.get(LAYERS, racing[HEURISTIC])))
        for name, plan in self._rivals(named, base):
            if self._elapsed > _COMPARING * self.seconds:
                break
            if self._compare(base, self._ready(plan)) < _HOPELESS and name in named.keys() - racing:
                racing[name] = self._ready(named[name])
        if self.took and self._elapsed < self.seconds:
            racing[IN_PLACE] = self._ready(self._refined())
        racing = distinct(racing)
        return Final(racing, {name: tuple(x) for name, x in self._race(racing).items()})

    def _rivals(self, named: Mapping[str, Plan], base: Plan) -> Iterator[tuple[str, Plan]]:
        """Plans to compare with the base, by name if they have one."""
        yield LAYERS, named.get(LAYERS, named[HEURISTIC])  # in bands, if there are any
        for name, plan in named.items():
            if name != LAYERS:
                yield name, apart(plan)
        for plan in variants(self.graph, base, self.knowledge.leaders, self.cpu):
            yield "", plan

    def _compare(self, base: Plan, rival: Plan) -> float:
        """Learn what the forms of a rival take in place; how many times as slow it was in all."""
        if same(base, rival):
            return 1.0
        try:
            found = self.sandbox.call(
                compare, (self.network, str(base), str(rival), _TURNS), _PATIENCE
            )
        except WorkerDied:
            return math.inf
        if not found.agrees:
            return math.inf
        for name, form in base.forms.items():
            self._learn(name, form, typical(found.base[name,]) if (name,) in found.base else None)
        for name, form in rival.forms.items():
            if (name,) in found.rival or not any(name in outputs for outputs in found.rival):
                self._learn(name, form, self._in_place(name, base, found))
        for outputs, samples in found.rival.items():
            if len(outputs) > 1 and _ratio(samples, [found.base[x,] for x in outputs]) < 1:
                self.bands[outputs[-1]] = rival.forms[outputs[-1]].rows
        return typical(found.rival_runs) / typical(found.base_runs)

    def _in_place(self, name: str, base: Plan, found: Comparison) -> float | None:
        """What a task of the rival took; None where it has no step of its own, such as a view."""
        if (name,) not in found.rival:
            return None
        if (name,) not in found.base:
            return typical(found.rival[name,])
        before = self.took[name][_bare(base.forms[name])]
        return before * _ratio(found.rival[name,], [found.base[name,]])

    def _learn(self, name: str, form: Form, seconds: float | None) -> None:
        known = self.took.setdefault(name, {})
        known.setdefault(_bare(form), form.seconds if seconds is None else seconds)

    def _refined(self) -> Plan:
        """The plan of what was fastest in place, moves as they were measured alone."""
        forms = {
            name: [replace(form, seconds=seconds) for form, seconds in known.items()]
            for name, known in self.took.items()
        }
        todo = tasks(self.graph)
        plan = cheapest_plan(self.graph, todo, forms, self.knowledge.costs.move)
        banded = {x: replace(plan.forms[x], rows=rows) for x, rows in self.bands.items()}
        made = {**plan.forms, **banded}
        return replace(plan, forms=made, machine=self.cpu.fingerprint)

    def _race(self, racing: Mapping[str, Plan]) -> Mapping[str, Sequence[float]]:
        """Samples of every plan, from as many fresh processes as there is time for."""
        names = list(racing)
        samples: dict[str, list[float]] = {name: [] for name in names}
        for process in range(_PROCESSES):
            self.sandbox.restart()
            texts = [str(racing[name]) for name in names]
            try:
                heat = self.sandbox.call(race, (self.network, texts, ROUNDS, process), _PATIENCE)
            except WorkerDied:
                # The later the name, the less is its plan tried.
                if len(names) == 1:
                    raise
                return self._race({name: racing[name] for name in names[:-1]})
            names = [name for name, found in zip(names, heat, strict=True) if found]
            for name, found in zip(samples, heat, strict=True):
                samples[name] += found
            samples = {name: samples[name] for name in names}
            if self._elapsed > self.seconds:
                break
        return samples

    def _ready(self, plan: Plan) -> Plan:
        """The plan as it can be carried out, its kernels compiled on all cores."""
        arrangement = follow_plan(self.graph, plan, self.cpu)
        precompile([step.program.ir for step in arrangement.steps], self.cpu, ObjectCache())
        return carried_out(plan, arrangement)

    @property
    def _elapsed(self) -> float:
        return monotonic() - self._begin


def _bare(form: Form) -> Form:
    return replace(form, seconds=0.0)


def _ratio(rival: Sequence[float], base: Sequence[Sequence[float]]) -> float:
    """How many times as slow a rival's step is as the base's steps together, at most.

    It is the upper end of an interval: who is not surely faster shall not take a place.
    """
    together = [sum(run) for run in zip(*base, strict=True)]
    return rounds_interval(rival, together)[1]

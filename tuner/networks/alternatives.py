"""The plans of one network that are compared: by several ways of making them, and variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.plan.choices import Choice, Choose
from fastrun.graph.plan.form import Costs, Form, source_layout, typed_problem
from fastrun.graph.plan.plan import Plan
from fastrun.graph.plan.tasks import tasks
from fastrun.graph.planner import make_plan
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.rounding import Roundings, no_rounding
from fastrun.kernels.registry import parse_schedule
from fastrun.search_spaces.space import space_for
from fastrun.tuner.records.network_record import HEURISTIC, LAYERS

SCHEDULES_PER_LAYOUTS = 4
"""So many schedules of each problem and pair of layouts are tried in place."""

# A schedule is tried in place if alone it took at most this many times as long as the fastest.
TRY_WITHIN = 1.25

# Distances of prefetching weights, in steps of K. A layer alone keeps its weights in cache, but in
# a network they have to be fetched.
_PREFETCH = 0, 16, 64

ONE_LAYOUT: Mapping[str, Callable[[Choice], bool]] = {
    "all NCHWc": lambda choice: bool(choice.dst.blocked),
    "all NHWC": lambda choice: choice.dst == NHWC,
    "all NCHW": lambda choice: choice.dst == NCHW,
}
"""The choices that plans of one layout allow, by the name of the plan."""


Propose = Callable[[ConvProblem, str], Sequence[str]]
"""Schedules for a problem in a layout, the most promising first."""


def nothing_proposed(p: ConvProblem, layout: str) -> Sequence[str]:
    """No schedules but measured ones."""
    return ()


FLOAT32 = "float32 weights"
"""The name of the plan by layer times that rounds no weights."""


@dataclass(frozen=True)
class PlanInputs:
    """The inputs of the plans.

    `guessed` are the heuristic's choices. `known` is the best measured choice for each pair of
    layouts, `several` the best few. `costs` are those of moves. `rounded` says which weights may
    be rounded. `proposed` gives schedules of a layout that were not measured and should be fast.
    """

    guessed: Choose
    known: Choose
    several: Choose
    costs: Costs
    rounded: Roundings = no_rounding
    proposed: Propose = nothing_proposed


def plans(graph: Graph, inputs: PlanInputs, cpu: Cpu, threads: int) -> dict[str, Plan]:
    """The heuristic's plan, the one by layer times, and those that prefer one layout.

    If weights may be rounded, there is also one by layer times that rounds none.

    Equal plans appear once, under the first of their names.
    """
    ways = {HEURISTIC: inputs.guessed, LAYERS: inputs.known}
    ways |= {name: restricted(inputs.known, allowed) for name, allowed in ONE_LAYOUT.items()}
    made = {
        name: make_plan(graph, choose, cpu, inputs.costs, threads, inputs.rounded)[0]
        for name, choose in ways.items()
    }
    if inputs.rounded is not no_rounding:
        made[FLOAT32] = make_plan(graph, inputs.known, cpu, inputs.costs, threads)[0]
    return distinct(made)


def distinct(named: Mapping[str, Plan]) -> dict[str, Plan]:
    """The different plans, each under its first name."""
    found: dict[str, Plan] = {}
    for name, plan in named.items():
        if not any(same(plan, other) for other in found.values()):
            found[name] = plan
    return found


def same(a: Plan, b: Plan) -> bool:
    """Whether two plans run the same kernels; expected times are ignored."""
    return [replace(form, seconds=0.0) for form in a.forms.values()] == [
        replace(form, seconds=0.0) for form in b.forms.values()
    ]


def apart(plan: Plan) -> Plan:
    """The plan without bands: each task runs on its own."""
    return replace(plan, forms={x: replace(form, rows=0) for x, form in plan.forms.items()})


def variants(
    graph: Graph, plan: Plan, several: Choose, cpu: Cpu, proposed: Propose = nothing_proposed
) -> Iterator[Plan]:
    """The plan with other schedules in the same layouts: the second choice of each node, and so on.

    A node without a further choice keeps that of the plan.
    """
    others: dict[str, list[str]] = {}
    cached: dict[tuple[ConvProblem, Form], list[str]] = {}
    for task in tasks(graph):
        if isinstance(task.node.op, Conv):
            form = plan.forms[task.output]
            problem = typed_problem(graph, task, form)
            key = problem, replace(form, seconds=0.0)
            if key not in cached:
                cached[key] = _others(problem, form, several, cpu, proposed)
            others[task.output] = cached[key]
    for turn in zip_longest(*others.values()):
        changed = {name: text for name, text in zip(others, turn, strict=True) if text}
        forms = {
            name: replace(form, algorithm=changed.get(name, form.algorithm))
            for name, form in plan.forms.items()
        }
        yield replace(plan, forms=forms)


def _others(p: ConvProblem, form: Form, several: Choose, cpu: Cpu, proposed: Propose) -> list[str]:
    """Other schedules for a problem in a form's layouts, the most promising first."""
    pair = source_layout(form).order, form.writes.order
    choices = [c for c in several(p) if (c.src, c.dst) == pair]
    fastest = min((c.seconds for c in choices), default=0.0)
    near = [c.schedule for c in choices if c.seconds <= TRY_WITHIN * fastest]
    prefetching = _prefetching(p, form.algorithm, cpu)
    second = near[:1] if near[:1] != [form.algorithm] else near[1:2]
    new = proposed(p, str(parse_schedule(form.algorithm)[1].layout))
    ordered = dict.fromkeys(chain(second, new[:2], prefetching, near, new))
    return [text for text in ordered if text != form.algorithm]


def _prefetching(p: ConvProblem, text: str, cpu: Cpu) -> Iterator[str]:
    template, schedule = parse_schedule(text)
    space = space_for(template.name, p, cpu)
    if "prefetch" in space.domains:
        for distance in _PREFETCH:
            changed = replace(schedule, prefetch=distance)
            if space.broken_rule(changed) is None:
                yield template.text(changed)


def restricted(choose: Choose, allowed: Callable[[Choice], bool]) -> Choose:
    """A function for the allowed choices, or for all choices if none is allowed."""

    def chosen(p: Problem) -> Sequence[Choice]:
        choices = choose(p)
        return [c for c in choices if allowed(c)] or choices

    return chosen

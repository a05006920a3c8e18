"""Plans of one network that are worth comparing: by who made them, and variants of one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.core.problems import conv_problem
from fastrun.graph.plan.choices import Choice, Choose
from fastrun.graph.plan.forms import Costs, Form
from fastrun.graph.plan.plan import Plan
from fastrun.graph.plan.tasks import tasks
from fastrun.graph.planner import make_plan
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule
from fastrun.search_spaces.space import space_for
from fastrun.tuner.records.network_record import HEURISTIC, LAYERS

LEADERS = 4
"""Schedules of a problem and pair of layouts that are tried in place."""

# A schedule that took this many times as long as the fastest alone is not tried in place.
NEAR = 1.25

# Steps of K by which weights may be fetched ahead: alone they may stay in cache, here they do not.
_AHEAD = 0, 16, 64

ONE_LAYOUT: Mapping[str, Callable[[Choice], bool]] = {
    "all NCHWc": lambda choice: bool(choice.dst.blocked),
    "all NHWC": lambda choice: choice.dst == NHWC,
    "all NCHW": lambda choice: choice.dst == NCHW,
}
"""What a plan that keeps to one layout may choose, by the plan's name."""


@dataclass(frozen=True)
class Knowledge:
    """What is known before: guesses, the best for each pair of layouts, the leaders, and moves."""

    guessed: Choose
    known: Choose
    leaders: Choose
    costs: Costs


def plans(graph: Graph, knowledge: Knowledge, cpu: Cpu, threads: int) -> dict[str, Plan]:
    """The heuristic's plan, the one from layer times, and some that keep to one layout if possible.

    Each is there under its first name only.
    """
    ways = {HEURISTIC: knowledge.guessed, LAYERS: knowledge.known}
    ways |= {name: restricted(knowledge.known, allowed) for name, allowed in ONE_LAYOUT.items()}
    made = {
        name: make_plan(graph, choose, cpu, knowledge.costs, threads)[0]
        for name, choose in ways.items()
    }
    return distinct(made)


def distinct(named: Mapping[str, Plan]) -> dict[str, Plan]:
    """The plans under their first names."""
    found: dict[str, Plan] = {}
    for name, plan in named.items():
        if not any(same(plan, other) for other in found.values()):
            found[name] = plan
    return found


def same(a: Plan, b: Plan) -> bool:
    """Whether two plans run the same, whatever they expect it to take."""
    return [replace(form, seconds=0.0) for form in a.forms.values()] == [
        replace(form, seconds=0.0) for form in b.forms.values()
    ]


def apart(plan: Plan) -> Plan:
    """The plan with no task in bands behind another."""
    return replace(plan, forms={x: replace(form, rows=0) for x, form in plan.forms.items()})


def variants(graph: Graph, plan: Plan, leaders: Choose, cpu: Cpu) -> Iterator[Plan]:
    """The plan with other schedules in the same layouts: each node's second choice, its third, ...

    A node that has run out of choices keeps the plan's.
    """
    others: dict[str, list[str]] = {}
    cached: dict[tuple[ConvProblem, Form], list[str]] = {}
    for task in tasks(graph):
        if isinstance(task.node.op, Conv):
            problem, form = conv_problem(graph, task.node), plan.forms[task.output]
            key = problem, replace(form, seconds=0.0)
            if key not in cached:
                cached[key] = _others(problem, form, leaders, cpu)
            others[task.output] = cached[key]
    for turn in zip_longest(*others.values()):
        changed = {name: text for name, text in zip(others, turn, strict=True) if text}
        forms = {
            name: replace(form, algorithm=changed.get(name, form.algorithm))
            for name, form in plan.forms.items()
        }
        yield replace(plan, forms=forms)


def _others(p: ConvProblem, form: Form, leaders: Choose, cpu: Cpu) -> list[str]:
    """What else could run a problem in a form's layouts, in the order of promise."""
    pair = form.reads[0], form.writes
    choices = [c for c in leaders(p) if (c.src, c.dst) == pair]
    fastest = min((c.seconds for c in choices), default=0.0)
    near = [c.schedule for c in choices if c.seconds <= NEAR * fastest]
    ahead = _prefetching(p, form.algorithm, cpu)
    second = near[:1] if near[:1] != [form.algorithm] else near[1:2]
    ordered = dict.fromkeys(chain(second, ahead, near))
    return [text for text in ordered if text != form.algorithm]


def _prefetching(p: ConvProblem, text: str, cpu: Cpu) -> Iterator[str]:
    template, schedule = parse_schedule(text)
    space = space_for(template.name, p, cpu)
    if "prefetch" in space.domains:
        for distance in _AHEAD:
            changed = replace(schedule, prefetch=distance)
            if space.broken_rule(changed) is None:
                yield template.text(changed)


def restricted(choose: Choose, allowed: Callable[[Choice], bool]) -> Choose:
    """The choices that are allowed; all of them where none is."""

    def chosen(p: ConvProblem) -> Sequence[Choice]:
        choices = choose(p)
        return [c for c in choices if allowed(c)] or choices

    return chosen

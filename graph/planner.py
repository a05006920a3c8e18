"""A plan: by what and in which layouts every task of a network runs. The unit of deployment.

It is a small text file. With it a network starts without a database, and another machine, reader
or diff can see what was decided. It knows the machine that made it, until somebody edits it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fastrun.graph.build.steps import Arrangement, arrange
from fastrun.graph.core.errors import PlanError
from fastrun.graph.core.model import Graph
from fastrun.graph.plan.assign import assign
from fastrun.graph.plan.bands import in_bands
from fastrun.graph.plan.choices import Choose
from fastrun.graph.plan.following import check_forms, own_choices
from fastrun.graph.plan.forms import GUESSED, Costs, Form, Forms, MoveCost
from fastrun.graph.plan.plan import Plan, input_shapes
from fastrun.graph.plan.tasks import tasks
from fastrun.kernels.core.cpu import Cpu

__all__ = ["Plan", "PlanError", "carried_out", "cheapest_plan", "follow_plan", "make_plan"]


def make_plan(
    graph: Graph, choose: Choose, cpu: Cpu, costs: Costs = GUESSED, threads: int = 0
) -> tuple[Plan, Arrangement]:
    """Choose a form for every task so that the whole network should take the least time.

    With a number of `threads`, tasks run in bands where that should pay with so many.

    Raises:
        UnsupportedError: a node cannot be run; it is named.
    """
    todo = tasks(graph)
    forms = Forms(graph, todo, choose, costs)
    plan = cheapest_plan(graph, {task.output: forms.of(task) for task in todo}, costs.move)
    plan = replace(plan, machine=cpu.fingerprint)
    if threads:
        plan = replace(plan, forms=in_bands(graph, todo, plan.forms, cpu, threads))
    arrangement = arrange(graph, todo, plan.forms, forms, cpu)
    return carried_out(plan, arrangement), arrangement


def carried_out(plan: Plan, arrangement: Arrangement) -> Plan:
    """The plan with the algorithms that its arrangement runs.

    Where a kernel refuses to work between the halos it finds, another one takes its place.
    """
    forms = dict(plan.forms)
    for step in arrangement.steps:
        forms |= step.forms
    return replace(plan, forms=forms)


def cheapest_plan(graph: Graph, forms: Mapping[str, Sequence[Form]], move: MoveCost) -> Plan:
    """Of the forms given for each task, by its output, those that take the least time together."""
    todo = tasks(graph)
    chosen, seconds = assign(graph, todo, forms, move)
    ordered = {task.output: chosen[task.output] for task in todo}
    return Plan(graph.name, input_shapes(graph), ordered, seconds)


def follow_plan(graph: Graph, plan: Plan, cpu: Cpu, costs: Costs = GUESSED) -> Arrangement:
    """Do as the plan says. Schedules that this machine cannot build give way to a heuristic.

    By `costs` its moves are expected to take what the steps say.

    Raises:
        PlanError: it was made for another network or other shapes, or says of a task what nothing
            can do.
        UnsupportedError: a node cannot be run; it is named.
    """
    todo = tasks(graph)
    if plan.inputs != input_shapes(graph):
        raise PlanError(
            f"the plan is for inputs {dict(plan.inputs)}, the network has {input_shapes(graph)}: "
            "plan again for these shapes"
        )
    if [*plan.forms] != [task.output for task in todo]:
        raise PlanError(
            f"the plan of {plan.network!r} is for another network than this {graph.name!r}: "
            "plan again for this one"
        )
    forms = Forms(graph, todo, own_choices(graph, todo, plan.forms), costs)
    check_forms(todo, plan.forms, forms)
    return arrange(graph, todo, plan.forms, forms, cpu)

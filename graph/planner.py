"""Makes a plan for a network, follows a plan, or finds the cheapest plan of given forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fastrun.graph.build.steps import Arrangement, Step, arrange
from fastrun.graph.core.errors import PlanError, UnsupportedError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv, Gemm, Recurrent
from fastrun.graph.plan.assign import assign
from fastrun.graph.plan.bands import in_bands
from fastrun.graph.plan.choices import Choose
from fastrun.graph.plan.following import check_forms, own_choices
from fastrun.graph.plan.form import GUESSED, Costs, Form, MoveCost
from fastrun.graph.plan.forms import Forms, Offers
from fastrun.graph.plan.from_memory import streamed
from fastrun.graph.plan.plan import Plan, input_shapes
from fastrun.graph.plan.tasks import Task, tasks
from fastrun.graph.plan.weight_limit import lighter, within
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.rounding import Roundings, no_rounding, rounds_weights
from fastrun.kernels.core.types import Types

_ATTEMPTS = 4  # to keep to a limit of the packed weights, whose sizes are first estimated


def make_plan(
    graph: Graph,
    choose: Choose,
    cpu: Cpu,
    costs: Costs = GUESSED,
    threads: int = 0,
    rounded: Roundings = no_rounding,
    max_weights: int | None = None,
    allowed: Callable[[Task, Form], bool] = lambda task, form: True,
) -> tuple[Plan, Arrangement]:
    """Choose a form for every task so that the expected time of the whole network is least.

    If `threads` is not 0, tasks also run in bands where a gain is expected with so many threads.
    `rounded` says which convolutions and dense layers may round their weights. The packed weights
    take at most `max_weights` bytes, if that is given; else only `allowed` forms are chosen.

    Raises:
        UnsupportedError: a node cannot be run; the message names it. Or the weights take more than
            `max_weights` in every plan.
    """
    todo = tasks(graph)
    if max_weights is not None:
        forms = Forms(graph, todo, Offers(choose, rounded, several=True), costs)
        return _light_plan(graph, todo, forms, cpu, costs, threads, max_weights)
    forms = Forms(graph, todo, Offers(choose, rounded), costs)
    possible = {task.output: [x for x in forms.of(task) if allowed(task, x)] for task in todo}
    plan = cheapest_plan(graph, todo, possible, costs.move)
    return _arranged(graph, todo, plan, forms, cpu, threads, costs.passing)


def _arranged(
    graph: Graph,
    todo: Sequence[Task],
    plan: Plan,
    forms: Forms,
    cpu: Cpu,
    threads: int,
    passing: float,
) -> tuple[Plan, Arrangement]:
    plan = replace(plan, forms=streamed(graph, todo, plan.forms, cpu), machine=cpu.fingerprint)
    if threads:
        plan = replace(plan, forms=in_bands(graph, todo, plan.forms, cpu, threads, passing))
    arrangement = arrange(forms, plan.forms, cpu)
    return carried_out(plan, arrangement), arrangement


def _light_plan(
    graph: Graph,
    todo: Sequence[Task],
    forms: Forms,
    cpu: Cpu,
    costs: Costs,
    threads: int,
    max_weights: int,
) -> tuple[Plan, Arrangement]:
    """The fastest plan found whose packed weights take `max_weights` bytes at most."""
    possible = {task.output: lighter(graph, task, forms.of(task)) for task in todo}
    target, move = float(max_weights), costs.move
    for _ in range(_ATTEMPTS):
        chosen = within(graph, todo, possible, lambda some: assign(graph, todo, some, move), target)
        only = {output: [form] for output, form in chosen.items()}
        plan = cheapest_plan(graph, todo, only, move)
        found = _arranged(graph, todo, plan, forms, cpu, threads, costs.passing)
        taken = packed_bytes(found[1])
        if taken <= max_weights:
            return found
        # Panels are filled up, and dense layers have weights too.
        target -= taken - max_weights
    raise UnsupportedError(
        f"the packed weights of {graph.name} take {taken / 1e6:.3g} MB in the lightest plan: allow "
        f"more than {max_weights / 1e6:.3g} MB"
    )


def packed_bytes(arrangement: Arrangement) -> int:
    """Bytes of the packed weights of all steps. They are packed for it, which takes a while."""
    return sum(step.packed().nbytes for step in arrangement.steps if isinstance(step, Step))


def carried_out(plan: Plan, arrangement: Arrangement) -> Plan:
    """The plan with the algorithms that its arrangement runs.

    They differ from the plan's where a kernel refuses the halos of its tensors: another kernel
    then takes its place.
    """
    forms = dict(plan.forms)
    for step in arrangement.steps:
        forms |= step.forms
    return replace(plan, forms=forms)


def cheapest_plan(
    graph: Graph, todo: Sequence[Task], forms: Mapping[str, Sequence[Form]], move: MoveCost
) -> Plan:
    """The plan of the least expected time whose forms are among those given, by output."""
    chosen, seconds = assign(graph, todo, forms, move)
    ordered = {task.output: chosen[task.output] for task in todo}
    return Plan(graph.name, input_shapes(graph), ordered, seconds)


def follow_plan(graph: Graph, plan: Plan, cpu: Cpu, costs: Costs = GUESSED) -> Arrangement:
    """The arrangement of a plan.

    Heuristics replace schedules that this machine cannot build. `costs` give the expected seconds
    of the steps that only move data.

    Raises:
        PlanError: the plan is for another network or other shapes, or a task cannot run in the
            form that it gives.
        UnsupportedError: a node cannot be run; the message names it.
    """
    todo = tasks(graph)
    if plan.inputs != input_shapes(graph):
        raise PlanError(
            f"the plan is for inputs {dict(plan.inputs)}, the network has {input_shapes(graph)}: "
            "plan again for these shapes"
        )
    if [*plan.forms] != [task.output for task in todo]:
        raise PlanError(
            f"the plan of {plan.network!r} does not fit the network {graph.name!r}: "
            "plan again for this network"
        )
    own = own_choices(graph, todo, plan.forms)
    weighing = (task.output for task in todo if isinstance(task.node.op, Conv | Gemm | Recurrent))
    known = sorted({plan.forms[output].types for output in weighing})
    rounding = [x for x in known if rounds_weights(Types.parse(x))]
    forms = Forms(graph, todo, Offers(own, lambda p: rounding), costs, plan.forms.values())
    check_forms(todo, plan.forms, forms)
    return arrange(forms, plan.forms, cpu)

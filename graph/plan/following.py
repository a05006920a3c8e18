"""Checks that each task of a network can run in the form that a plan gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastrun.graph.core.errors import PlanError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Attention, Conv, Gemm
from fastrun.graph.core.problems import attention_problem
from fastrun.graph.plan.choices import Choice, Choose
from fastrun.graph.plan.form import Form, layouts_text, typed_problem
from fastrun.graph.plan.forms import Forms
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.layout import layout_pair
from fastrun.kernels.core.types import Types
from fastrun.kernels.registry import parse_schedule


def own_choices(graph: Graph, tasks: Sequence[Task], forms: Mapping[str, Form]) -> Choose:
    """The schedules in a plan's forms as the only choices of their problems.

    Raises:
        PlanError: the algorithm of a convolution or attention is no schedule, or its types are not
            possible.
    """
    found: dict[Problem, list[Choice]] = {}
    for task in tasks:
        form = forms[task.output]
        if isinstance(task.node.op, Conv | Gemm):
            try:
                Types.parse(form.types)
            except ValueError as error:
                raise _refused(task, str(error)) from error
        if isinstance(task.node.op, Conv):
            choice = _own_choice(task, form)
            found.setdefault(typed_problem(graph, task, form), []).append(choice)
        # Plans of earlier versions name no schedule of attention.
        if isinstance(task.node.op, Attention) and form.algorithm != task.node.work:
            problem = attention_problem(graph, task.node)
            found.setdefault(problem, []).append(_own_choice(task, form))
    return lambda p: found.get(p, [])


def _own_choice(task: Task, form: Form) -> Choice:
    try:
        _, schedule = parse_schedule(form.algorithm)
        return Choice(form.algorithm, *layout_pair(schedule.layout), form.seconds)
    except ValueError as error:
        raise _refused(task, str(error)) from error


def check_forms(tasks: Sequence[Task], chosen: Mapping[str, Form], forms: Forms) -> None:
    """Check that the form chosen for each task is one of its possible `forms`.

    Raises:
        PlanError: a form is not possible; the message names the task and its possible layouts.
    """
    for task in tasks:
        form = chosen[task.output]
        if isinstance(task.node.op, Conv):
            types = Types.parse(form.types)
            if form.types not in [p.types for p in forms.problems(task)]:
                raise _refused(task, f"it cannot compute {form.types}")
            possible = [forms.convolution(task, _own_choice(task, form), types)]
        else:
            possible = forms.possible(task)
            if form.algorithm not in (task.work, *forms.choices(task, form)):
                raise _refused(task, f"it does {task.work}, not {form.algorithm}")
        same = [x for x in possible if x.types == form.types]
        layouts = dict.fromkeys(map(layouts_text, same or possible))
        if not same or layouts_text(form) not in layouts:
            either = " or ".join(layouts)
            raise _refused(task, f"it can run in {either}, not in {layouts_text(form)}")


def _refused(task: Task, reason: str) -> PlanError:
    return PlanError(f"the plan cannot be followed at {task.output!r}: {reason}; plan again")

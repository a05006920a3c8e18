"""Plans of networks whose packed weights no cache keeps from one run to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.plan.form import Form, typed_problem
from fastrun.graph.plan.tasks import Task
from fastrun.graph.plan.weight_limit import weight_bytes
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.registry import parse_schedule

# L3 keeps some weights of a network that exceeds it a little. Measured with 1.5 times as many bytes
# (GoogLeNet) and with 4 times (ResNet-18), of which the second reads them from memory.
_TIMES = 2


def streamed(
    graph: Graph, tasks: Sequence[Task], forms: Mapping[str, Form], cpu: Cpu
) -> dict[str, Form]:
    """The forms with schedules for weights from memory, if the network has so many weights.

    A layer that is measured alone finds its weights in a cache.
    """
    weights = sum(weight_bytes(graph, task, forms[task.output]) for task in tasks)
    if weights <= _TIMES * cpu.l3:
        return dict(forms)
    found = dict(forms)
    for task in tasks:
        if isinstance(task.node.op, Conv):
            form = forms[task.output]
            template, schedule = parse_schedule(form.algorithm)
            schedule = template.streaming(typed_problem(graph, task, form), schedule)
            found[task.output] = replace(form, algorithm=template.text(schedule))
    return found

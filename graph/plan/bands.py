"""Decides which tasks run in one kernel with the convolution before them, in bands of rows.

`partners` finds the pairs for which that is possible. `in_bands` chooses the pairs for which
`estimate` expects a gain. `build.bands.fuse` builds their kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv, Pool
from fastrun.graph.core.problems import conv_problem
from fastrun.graph.core.shapes import is_depthwise, shape4
from fastrun.graph.plan.form import PASSING, STEP, Form, typed_problem
from fastrun.graph.plan.kinds import pool_spec
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, S8
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.ops import bands
from fastrun.kernels.ops.bands import Part
from fastrun.kernels.registry import parse_schedule


def partners(graph: Graph, tasks: Sequence[Task]) -> dict[str, Task]:
    """The convolution behind which a task could run in one kernel, by the task's output.

    Nothing else reads the convolution's result, and at most one of the two has a residual.
    """
    uses = Counter([*graph.outputs, *(x for task in tasks for x in task.reads)])
    by_output = {task.output: task for task in tasks}
    found = {}
    for task in tasks:
        first = by_output.get(task.reads[0]) if task.reads else None
        if first is None or not isinstance(first.node.op, Conv) or uses[first.output] > 1:
            continue
        one_input = first.parts == task.parts == 1
        if one_input and len(first.reads) + len(task.reads) < 4 and _takes_bands(graph, task):
            found[task.output] = first
    return found


def _takes_bands(graph: Graph, task: Task) -> bool:
    """Whether a task needs no zeros round its input: a band has no halo."""
    op = task.node.op
    if isinstance(op, Conv):
        return not any(conv_problem(graph, task.node).padding)
    return isinstance(op, Pool)


def in_bands(
    graph: Graph,
    tasks: Sequence[Task],
    forms: Mapping[str, Form],
    cpu: Cpu,
    threads: int,
    passing: float = PASSING,
) -> dict[str, Form]:
    """The forms, with `rows` for tasks that should run behind the convolution they read.

    Results pass from one to the other at `passing` bytes per second, as in `Costs`.

    Only pools and readers of depthwise convolutions are considered. Other pairs of convolutions
    are compute-bound, so saving the transfer between them gains nothing.
    """
    gains = {}
    for output, first in partners(graph, tasks).items():
        second = next(task for task in tasks if task.output == output)
        one, two = forms[first.output], forms[output]
        cheap = isinstance(second.node.op, Pool) or is_depthwise(graph, first.node)
        if cheap and one.leaves == one.writes == two.reads[0]:
            rows, gain = estimate(graph, (first, second), (one, two), cpu, threads, passing)
            if gain > 0:
                gains[output] = gain, rows, first.output
    found, taken = dict(forms), set[str]()
    for output, (_, rows, before) in sorted(gains.items(), key=lambda item: -item[1][0]):
        if not taken & {output, before}:
            taken |= {output, before}
            found[output] = replace(forms[output], rows=rows)
    return found


def estimate(
    graph: Graph,
    pair: tuple[Task, Task],
    forms: tuple[Form, Form],
    cpu: Cpu,
    threads: int,
    passing: float = PASSING,
) -> tuple[int, float]:
    """Rows of a band, 0 if no band fits L2, and the seconds that bands should save.

    Bands save the transfer of the intermediate result where it does not stay in a core's L2, and
    a barrier where there are several threads. They cost the rows that cores compute twice, the
    waiting of cores with fewer bands, and reading large weights for each band. Convolutions whose
    own weights exceed half of L2 gained on one thread and lost on two when measured: no gain is
    expected of them.
    """
    first, second = (_part(graph, task, form, cpu) for task, form in zip(pair, forms, strict=True))
    mid = Placement(forms[0].writes, *shape4(graph.shape(pair[0].output)))
    rows = bands.rows_per_band(first, second, mid, cpu)
    own, weights = (_weight_bytes(*one) for one in zip((first, second), forms, strict=True))
    if not rows or own > cpu.l2 // 2:
        return rows, 0.0
    size = mid.dtype.bytes(mid.size)
    saved = STEP if threads > 1 else 0.0
    if size > cpu.l2 or threads > 1:
        saved += size / passing
    busiest = bands.busiest(first, second, rows, mid.n, threads, cpu)
    all_rows = mid.n * bands.whole_grains(first, first.rows), mid.n * second.rows
    lost = sum(
        form.seconds * max(0.0, threads * most / whole - 1)
        for form, most, whole in zip(forms, busiest, all_rows, strict=True)
    )
    if weights > cpu.l2 // 2:
        lost += weights * (busiest[1] / rows - 1) / passing
    return rows, saved - lost


def _weight_bytes(part: bands.Part, form: Form) -> int:
    return (S8 if form.integers else F32).bytes(part.weights)


def _part(graph: Graph, task: Task, form: Form, cpu: Cpu) -> Part:
    op = task.node.op
    if isinstance(op, Pool):
        h, rows = (shape4(graph.shape(x))[2] for x in (task.reads[0], task.output))
        return bands.pooling(pool_spec(op), h, rows, cpu, form.reads[0].dtype)
    return convolution_of(typed_problem(graph, task, form), form.algorithm, cpu)


def convolution_of(p: ConvProblem, algorithm: str, cpu: Cpu) -> Part:
    """One of the two operators of a band: a convolution by the schedule `algorithm`."""
    template, schedule = parse_schedule(algorithm)
    return bands.convolution(p, template, schedule, cpu)

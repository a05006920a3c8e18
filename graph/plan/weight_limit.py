"""Plans whose packed weights take no more memory than allowed.

Some algorithms pack weights into more bytes than they had: Winograd's are transformed. A price for
each byte is added to the expected time, the same for all tasks (Lagrange's method); the lowest
price whose plan fits gives the fastest plan that such prices can find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.plan.form import Form, typed_problem
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.registry import parse_schedule

# Chooses a form for every task, and says the expected seconds of all.
Assign = Callable[[Mapping[str, Sequence[Form]]], tuple[dict[str, Form], float]]

_HALVINGS = 12  # of the range of prices
_DEAREST = 1e-3  # seconds for a byte, which no gain in time outweighs


def weight_bytes(graph: Graph, task: Task, form: Form) -> float:
    """About how many bytes the packed weights of a convolution take; 0 for other tasks.

    Room that fills up panels is not counted.
    """
    if not isinstance(task.node.op, Conv):
        return 0.0
    p = typed_problem(graph, task, form)
    template, schedule = parse_schedule(form.algorithm)
    return p.precision.weights.bytes(p.oc * p.depth) * template.expansion(p, schedule)


def lighter(graph: Graph, task: Task, forms: Sequence[Form]) -> list[Form]:
    """The forms of a convolution that are not both slower and heavier than one of like layouts."""
    kept = list[Form]()
    for form in sorted(forms, key=lambda f: f.seconds):
        alike = [
            f for f in kept if (f.reads, f.writes, f.types) == (form.reads, form.writes, form.types)
        ]
        if all(weight_bytes(graph, task, form) < weight_bytes(graph, task, f) for f in alike):
            kept.append(form)
    return kept


def within(
    graph: Graph,
    tasks: Sequence[Task],
    forms: Mapping[str, Sequence[Form]],
    assign: Assign,
    limit: float,
) -> dict[str, Form]:
    """The fastest forms whose weights take about `limit` bytes at most.

    If none do, the lightest forms.
    """
    sizes = {
        task.output: [weight_bytes(graph, task, form) for form in forms[task.output]]
        for task in tasks
    }

    def at(price: float) -> tuple[dict[str, Form], float]:
        priced = {
            x: [
                replace(f, seconds=f.seconds + price * size)
                for f, size in zip(some, sizes[x], strict=True)
            ]
            for x, some in forms.items()
        }
        chosen, _ = assign(priced)
        whole, taken = dict[str, Form](), 0.0
        for x, form in chosen.items():
            i = priced[x].index(form)
            whole[x], taken = forms[x][i], taken + sizes[x][i]
        return whole, taken

    over, taken = at(0.0)
    if taken <= limit:
        return over
    found, taken = at(_DEAREST)
    if taken > limit:
        return found
    low, high = 1e-15, _DEAREST
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        some, size = at(middle)
        if size <= limit:
            found, taken, high = some, size, middle
        else:
            over, low = some, middle
    return _filled(graph, tasks, found, over, limit - taken)


def _filled(
    graph: Graph, tasks: Sequence[Task], found: dict[str, Form], over: dict[str, Form], left: float
) -> dict[str, Form]:
    """`found` with faster forms of `over` in the same layouts, as long as their bytes are left.

    Tasks of equal shapes have equal prices, which turn all of them at once.
    """
    filled = dict(found)
    for task in tasks:
        mine, other = found[task.output], over[task.output]
        if (mine.reads, mine.writes, mine.types) == (other.reads, other.writes, other.types):
            more = weight_bytes(graph, task, other) - weight_bytes(graph, task, mine)
            if other.seconds < mine.seconds and more <= left:
                filled[task.output] = other
                left -= max(more, 0.0)
    return filled

"""Finds the fastest element types of a network's layers for every loss: a front of plans.

Types are layouts, so the planner chooses them by the same search as layouts: it minimises seconds +
price * loss. With rising prices (the Lagrange multiplier of a limit on the loss) its plans go from
the fastest to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Affine, Binary, Clip, Pool, Reduce, Unary
from fastrun.graph.core.precision import byte_grid
from fastrun.graph.plan.assign import assign
from fastrun.graph.plan.choices import Choose
from fastrun.graph.plan.forms import Costs, Form, Forms
from fastrun.graph.plan.plan import Plan, input_shapes
from fastrun.graph.plan.tasks import Task, tasks
from fastrun.kernels.core.dtype import U8
from fastrun.tuner.precision.sensitivity import Losses

# Prices of the whole loss, as multiples of the time of the plan in float32.
_PRICES = (0.0, *(10 ** (i / 4) for i in range(-12, 17)))


@dataclass(frozen=True)
class Point:
    """A plan, the loss and the seconds that are expected of it, and its layers in integers."""

    plan: Plan
    loss: float
    seconds: float
    layers: int


def front(
    graph: Graph,
    found: Losses,
    choose: Choose,
    costs: Costs,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Point]:
    """The plans from float32 to the fastest, for a network with advised grids.

    Raises:
        UnsupportedError: a node cannot be run.
    """
    todo = tasks(graph)
    possible = Forms(graph, todo, choose, costs)
    forms = {task.output: possible.of(task) for task in todo}
    search = _Search(graph, todo, forms, costs, found)
    base = search.point(None)
    scale = base.seconds / max(found.whole, 1e-12)
    points = [base]
    for i, price in enumerate(_PRICES):
        progress(i, len(_PRICES))
        points.append(search.point(price * scale))
    points.sort(key=lambda point: (point.loss, point.seconds))
    kept: list[Point] = []
    for point in points:
        if not kept or point.seconds < kept[-1].seconds:
            kept.append(point)
    return kept


@dataclass(frozen=True)
class _Search:
    graph: Graph
    tasks: Sequence[Task]
    forms: Mapping[str, Sequence[Form]]
    costs: Costs
    losses: Losses

    def point(self, price: float | None) -> Point:
        """The cheapest plan at a price of the loss; without a price that of float32."""
        priced, own = dict[str, list[Form]](), dict[tuple[str, Form], Form]()
        for task in self.tasks:
            for form in self.forms[task.output]:
                if price is None and U8 in {x.dtype for x in (*form.reads, form.writes)}:
                    continue
                loss = self._loss(task, form)
                dearer = replace(form, seconds=form.seconds + (price or 0.0) * loss)
                priced.setdefault(task.output, []).append(dearer)
                own[task.output, dearer] = form
        rounding = {x: (price or 0.0) * loss for x, loss in self.losses.tensors.items()}
        chosen, total = assign(self.graph, self.tasks, priced, self.costs.move, rounding)
        forms = {task.output: own[task.output, chosen[task.output]] for task in self.tasks}
        loss = self._total(forms)
        seconds = total - (price or 0.0) * loss
        plan = Plan(self.graph.name, input_shapes(self.graph), forms, seconds)
        layers = sum(form.types.startswith("u8s") for form in forms.values())
        return Point(plan, loss, seconds, layers)

    def _loss(self, task: Task, form: Form) -> float:
        """The loss by what a form rounds itself: its weights, and its result."""
        loss = 0.0
        if form.types.startswith("u8s"):
            loss += self.losses.weights.get(task.node.input(1), 0.0)
        if form.writes.dtype is U8 and not self._passes_on(task, form):
            loss += self.losses.tensors.get(task.output, 0.0)
        return loss

    def _passes_on(self, task: Task, form: Form) -> bool:
        """Whether the result has no other numbers than what is read, which is rounded already."""
        grid = byte_grid(self.graph, task.output)
        same = all(byte_grid(self.graph, x) == grid for x in task.reads)
        match task.node.op:
            case Binary() | Unary() | Clip() | Affine() | Reduce() | Pool(function="average"):
                return False
        return same and form.types == "u8"

    def _total(self, forms: Mapping[str, Form]) -> float:
        """The loss of a plan: each tensor is rounded once, by its task or by a move."""
        total, rounded = 0.0, set[str]()
        for task in self.tasks:
            form = forms[task.output]
            total += self._loss(task, form)
            if form.writes.dtype is U8:
                rounded.add(task.output)
            for x, layout in zip(task.reads, form.reads, strict=True):
                if layout.dtype is U8 and x not in rounded:
                    rounded.add(x)
                    total += self.losses.tensors.get(x, 0.0)
        return total

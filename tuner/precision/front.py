"""Finds the fastest element types of a network's layers for every loss: a front of plans.

Types are layouts, so the planner chooses them by the same search as layouts: it minimises seconds +
price * loss. With rising prices (the Lagrange multiplier of a limit on the loss) its plans go from
the fastest to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastrun.graph.core.advised import Advised
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Affine, Binary, Clip, Pool, Reduce, Unary
from fastrun.graph.core.precision import byte_grid
from fastrun.graph.plan.assign import assign
from fastrun.graph.plan.choices import Choose
from fastrun.graph.plan.form import Costs, Form, typed_problem
from fastrun.graph.plan.forms import Forms, Offers
from fastrun.graph.plan.plan import Plan, input_shapes
from fastrun.graph.plan.tasks import Task, tasks
from fastrun.graph.quantise.progress import Progress, silent
from fastrun.graph.quantise.sensitivity import Losses
from fastrun.kernels.core.dtype import BF16, F16, F32, I16, U8
from fastrun.kernels.core.rounding import Roundings, no_rounding
from fastrun.kernels.core.types import Types
from fastrun.kernels.registry import parse_schedule

# Prices of the whole loss, as multiples of the time of the plan in float32.
_PRICES = (0.0, *(10 ** (i / 4) for i in range(-12, 17)))
# How much more than the highest price one between float32 and the next plan may be.
_BEYOND = 100.0
# So many prices between those of two plans are tried to find another plan between them.
_HALVINGS = 6


@dataclass(frozen=True)
class Point:
    """A plan, the loss and the seconds that are expected of it, and its layers in integers.

    `price` is that of the loss in seconds at which it is the cheapest. `types` are those of layers
    in float32 whose products or weights have 16 bits, by the names of their nodes.
    """

    plan: Plan
    loss: float
    seconds: float
    layers: int
    price: float
    types: Mapping[str, str]


@dataclass(frozen=True)
class Front:
    """The plans from float32 to the fastest.

    `whole` has all layers in 8 bits that can be, whether they are faster so or not; it may be one
    of the points. `between` looks for another plan between two neighbours.
    """

    points: Sequence[Point]
    whole: Point
    between: Callable[[Point, Point], Point | None]


def front(
    advised: Advised,
    found: Losses,
    choose: Choose,
    costs: Costs,
    rounded: Roundings = no_rounding,
    progress: Progress = silent,
) -> Front:
    """The plans from float32 to the fastest, for a network that may be rounded.

    `rounded` says which of its layers may have 16 bits in float32.

    Raises:
        UnsupportedError: a node cannot be run.
    """
    todo = tasks(advised.graph)
    every = [
        Forms(graph, todo, Offers(choose, rounded), costs) for graph in advised.rounded.values()
    ]
    forms = {task.output: [*dict.fromkeys(x for f in every for x in f.of(task))] for task in todo}
    for task in todo:
        if task.node.input(1) not in found.layers:
            forms[task.output] = [x for x in forms[task.output] if not _halved(x)]
    search = _Search(advised.graph, todo, costs, found)
    plain = {
        output: [x for x in own if not x.touches_bytes and not _halved(x)]
        for output, own in forms.items()
    }
    base = replace(search.point(plain), price=math.inf)
    scale = base.seconds / max(found.whole, 1e-12)
    points = [base]
    for i, price in enumerate(_PRICES):
        progress("plans for prices of the loss", i, len(_PRICES))
        points.append(search.point(forms, price * scale))
    points.sort(key=lambda point: (point.loss, point.seconds))
    kept: list[Point] = []
    for point in points:
        if not kept or point.seconds < kept[-1].seconds:
            kept.append(point)

    def between(low: Point, high: Point) -> Point | None:
        cheap = max(high.price, _PRICES[1] * scale)
        dear = min(low.price, _BEYOND * max(cheap, _PRICES[-1] * scale))
        for _ in range(_HALVINGS):
            point = search.point(forms, price := math.sqrt(cheap * dear))
            if low.loss < point.loss < high.loss and point.seconds < low.seconds:
                return point
            cheap, dear = (price, dear) if point.loss >= high.loss else (cheap, price)
        return None

    whole = {task.output: every[0].of(task) for task in todo}
    whole = {x: [y for y in own if y.integers] or own for x, own in whole.items()}
    integers = search.point(whole)
    same = (point for point in kept if point.plan.forms == integers.plan.forms)
    return Front(kept, next(same, integers), between)


@dataclass(frozen=True)
class _Search:
    graph: Graph
    tasks: Sequence[Task]
    costs: Costs
    losses: Losses

    def point(self, forms: Mapping[str, Sequence[Form]], price: float = 0.0) -> Point:
        """The cheapest plan of these forms at a price of the loss."""
        priced, own = dict[str, list[Form]](), dict[tuple[str, Form], Form]()
        for task in self.tasks:
            for form in forms[task.output]:
                dearer = replace(form, seconds=form.seconds + price * self._loss(task, form))
                priced.setdefault(task.output, []).append(dearer)
                own[task.output, dearer] = form
        rounding = {x: price * loss for x, loss in self.losses.tensors.items()}
        chosen, total = assign(self.graph, self.tasks, priced, self.costs.move, rounding)
        found = {task.output: own[task.output, chosen[task.output]] for task in self.tasks}
        loss = self._total(found)
        seconds = total - price * loss
        plan = Plan(self.graph.name, input_shapes(self.graph), found, seconds)
        layers = sum(x.integers for x in found.values())
        types = {
            task.node.name: found[task.output].types
            for task in self.tasks
            if _halved(found[task.output])
        }
        return Point(plan, loss, seconds, layers, price, types)

    def _loss(self, task: Task, form: Form) -> float:
        """The loss by what a form rounds itself: its weights, and its result."""
        loss = 0.0
        if form.integers:
            word = form.types.partition(">")[0]
            loss += self.losses.weights[task.node.input(1), word]
        if _halved(form):
            template, schedule = parse_schedule(form.algorithm)
            error = template.error(typed_problem(self.graph, task, form), schedule)
            loss += error**2 * self.losses.layers[task.node.input(1)]
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


def allowed_types(types: Mapping[str, str]) -> Callable[[Task, Form], bool]:
    """Whether a layer may run in a form: those of 16 bits only where they are its `types`."""
    return lambda task, form: not _halved(form) or types.get(task.node.name) == form.types


def _halved(form: Form) -> bool:
    """Whether it is a convolution or dense layer of float32 with 16 bits in it."""
    return form.types in _HALVES


_HALVES = [str(Types(F32, dtype, F32, 16)) for dtype in (F16, BF16, I16)]

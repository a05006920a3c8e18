"""The assignment of layouts against brute force, on small graphs with random costs.

`FASTRUN_TEST_SCALE=30 pytest tests/graph/test_layout.py` draws thirty times as many graphs.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Mapping, Sequence

import onnx
import pytest

from fastrun.graph.core.model import Graph
from fastrun.graph.core.shapes import shape4
from fastrun.graph.networks import load_network
from fastrun.graph.plan.assign import assign
from fastrun.graph.plan.form import Form, MoveCost
from fastrun.graph.plan.tasks import Task, tasks
from fastrun.kernels.core.layout import NCHW, NHWC, Layout
from tests.support.graph_models import model, node

GRAPHS = round(60 * float(os.environ.get("FASTRUN_TEST_SCALE", "1")))
LAYOUTS = (NCHW, NHWC, Layout("NCHW8c"))
FormsOf = Mapping[str, Sequence[Form]]


def spent(graph: Graph, todo: Sequence[Task], chosen: Mapping[str, Form], move: MoveCost) -> float:
    """Seconds of all tasks in these forms and of the moves between them."""
    there: dict[str, set[Layout]] = {x: {NCHW} for x in graph.inputs}
    seconds = 0.0

    def need(name: str, layout: Layout) -> float:
        if layout in there[name]:
            return 0.0
        shape = shape4(graph.shape(name))
        cheapest = min(move(shape, x, layout) for x in there[name])
        there[name].add(layout)
        return 0.0 if shape[2:] == (1, 1) else cheapest

    for task in todo:
        form = chosen[task.output]
        for name, layout in zip(task.reads, form.reads, strict=True):
            seconds += need(name, layout)
        there.setdefault(task.output, set()).add(form.writes)
        seconds += form.seconds
    return seconds + sum(need(x, NCHW) for x in graph.outputs)


def cheapest(graph: Graph, todo: Sequence[Task], forms: FormsOf, move: MoveCost) -> float:
    """The seconds of the best of all assignments."""
    names = [task.output for task in todo]
    return min(
        spent(graph, todo, dict(zip(names, choice, strict=True)), move)
        for choice in itertools.product(*(forms[name] for name in names))
    )


def drawn(draw: random.Random) -> tuple[Graph, list[Task], FormsOf, MoveCost]:
    """A network of sums and other operators; forms and moves at random prices."""
    known, nodes = ["x"], []
    for i in range(draw.randint(2, 6)):
        name, first = f"t{i}", draw.choice(known[-2:])
        if draw.random() < 0.4:
            nodes.append(node("Add", f"{first} {draw.choice(known)}", name))
        else:
            nodes.append(node(draw.choice(("Softmax", "LogSoftmax")), first, name))
        known.append(name)
    if draw.random() < 0.3:
        nodes.append(node("GlobalAveragePool", known[-1], "pooled"))
        nodes.append(node("Abs", "pooled", "last"))
        known += ["pooled", "last"]
    proto = model(nodes, output=known[-1])
    for name in draw.sample(known[1:-1], draw.randint(0, min(2, len(known) - 2))):
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    graph = load_network(proto)
    todo = tasks(graph)
    forms = {
        task.output: [
            Form(
                tuple(draw.choice(LAYOUTS) for _ in task.reads),
                draw.choice(LAYOUTS),
                "made up",
                draw.uniform(0, 10),
            )
            for _ in range(draw.randint(1, 4))
        ]
        for task in todo
    }
    prices = {pair: draw.uniform(0, 6) for pair in itertools.product(LAYOUTS, LAYOUTS)}
    return graph, todo, forms, lambda shape, src, dst: prices[src, dst]


def test_no_assignment_is_cheaper() -> None:
    for seed in range(GRAPHS):
        graph, todo, forms, move = drawn(random.Random(seed))
        chosen, seconds = assign(graph, todo, forms, move)
        assert all(chosen[task.output] in forms[task.output] for task in todo)
        assert seconds == pytest.approx(spent(graph, todo, chosen, move)), seed
        assert seconds == pytest.approx(cheapest(graph, todo, forms, move)), seed


def chain(*names: str) -> tuple[Graph, list[Task]]:
    before = ("x", *names)
    graph = load_network(
        model([node("Softmax", x, y) for x, y in itertools.pairwise(before)], output=names[-1])
    )
    return graph, tasks(graph)


def form(src: Layout, dst: Layout, seconds: float) -> Form:
    return Form((src,), dst, "made up", seconds)


def test_what_is_dear_at_first_may_pay_later() -> None:
    """The cheapest form of each task in turn, with its moves, would cost 3 x 4 seconds."""
    graph, todo = chain("a", "b", "c")
    forms = {
        "a": [form(NCHW, NCHW, 4.0), form(NCHW, NHWC, 5.0)],
        "b": [form(NCHW, NCHW, 4.0), form(NHWC, NHWC, 1.0)],
        "c": [form(NCHW, NCHW, 4.0), form(NHWC, NCHW, 1.0)],
    }
    chosen, seconds = assign(graph, todo, forms, lambda *_: 3.5)
    assert seconds == pytest.approx(7.0)
    assert [str(chosen[x].writes) for x in "abc"] == ["NHWC", "NHWC", "NCHW"]


def test_moves_weigh_against_faster_forms() -> None:
    graph, todo = chain("a", "b")
    forms = {
        "a": [form(NCHW, NCHW, 2.0), form(NHWC, NHWC, 1.0)],
        "b": [form(NCHW, NCHW, 2.0), form(NHWC, NHWC, 1.0)],
    }
    for price, writes, expected in ((0.5, NHWC, 3.0), (1.5, NCHW, 4.0)):
        chosen, seconds = assign(graph, todo, forms, lambda *_, price=price: price)
        assert {form.writes for form in chosen.values()} == {writes}
        assert seconds == pytest.approx(expected)


def test_a_tensor_that_two_read_is_moved_once() -> None:
    nodes = [node("Softmax", "x", "a"), node("Softmax", "a", "b"), node("LogSoftmax", "a", "c")]
    graph = load_network(model([*nodes, node("Add", "b c", "y")]))
    todo = tasks(graph)
    only = {task.output: [Form((NHWC,) * len(task.reads), NHWC, "made up", 1.0)] for task in todo}
    only["a"] = [form(NCHW, NCHW, 1.0)]
    _, seconds = assign(graph, todo, only, lambda *_: 10.0)
    assert seconds == pytest.approx(4 * 1.0 + 2 * 10.0)  # of a, and of the result


def test_pixels_of_one_plane_need_no_move() -> None:
    graph = load_network(model([node("GlobalAveragePool", "x", "a"), node("Relu", "a", "y")]))
    forms = {"a": [form(NHWC, NHWC, 1.0)], "y": [form(NCHW, NHWC, 1.0)]}
    _, seconds = assign(graph, tasks(graph), forms, lambda *_: 10.0)
    assert seconds == pytest.approx(2 * 1.0 + 10.0)

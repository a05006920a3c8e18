"""Networks give the same results if operators run in bands with the convolution that they read."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import onnx
import pytest

from fastrun.graph.build.steps import Arrangement
from fastrun.graph.core.model import Graph
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.bands import in_bands, partners
from fastrun.graph.plan.form import PASSING, Form
from fastrun.graph.plan.plan import Plan
from fastrun.graph.plan.tasks import tasks
from fastrun.graph.planner import follow_plan, make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout
from tests.graph.test_networks_run import NETWORKS, conv, only, shaken, weights
from tests.support.execution import relative_error
from tests.support.graph_models import model, node, normal

pytestmark = pytest.mark.slow

CPU = Cpu.host()
TOLERANCE = 2e-5


def inverted_residual() -> onnx.ModelProto:
    """Depthwise and 1x1 with and without a residual, then pools that overlap or end outside."""
    nodes = [
        conv("x", "a", "expand"),
        node("Relu", "a", "b"),
        conv("b", "c", "deep", 1, group=20),
        node("Relu", "c", "d"),
        conv("d", "e", "project"),
        node("Add", "e x", "f"),
        conv("f", "g", "deeper", 2, group=12, strides=[2, 2]),
        conv("g", "h", "last", strides=[2, 1]),
        conv("h", "i", "whole", 1),
        node("MaxPool", "i", "j", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        conv("j", "k", "whole", 1),
        node("AveragePool", "k", "y", kernel_shape=[3, 2], strides=[1, 2], pads=[1, 0, 1, 1]),
    ]
    constants = {
        "expand": weights(20, 12, 1), "deep": weights(20, 1, 3), "project": weights(12, 20, 1),
        "deeper": weights(12, 1, 5), "last": weights(18, 12, 1), "whole": weights(18, 18, 3),
    }  # fmt: skip
    return model(nodes, constants, shape=(2, 12, 37, 19))


def forced(graph: Graph, plan: Plan, draw: random.Random) -> tuple[Plan, int]:
    """The plan with as many pairs as possible in bands of any height, and how many these are."""
    forms, taken = dict(plan.forms), set[str]()
    for output, first in partners(graph, tasks(graph)).items():
        if not taken & {output, first.output}:
            taken |= {output, first.output}
            forms[output] = replace(forms[output], rows=draw.randint(1, 9))
    return replace(plan, forms=forms), len(taken) // 2


def computed(graph: Graph, plan: Plan, threads: int = 1) -> dict[str, np.ndarray]:
    executable = Executable.of(follow_plan(graph, plan, CPU), CPU, threads, plan)
    return executable.run({"x": normal(*graph.shape("x"))})


def pairs(arrangement: Arrangement) -> list[str]:
    return [step.work for step in arrangement.steps if len(step.forms) == 2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["inverted residual", *NETWORKS])
def test_bands_change_nothing(name: str, seed: int) -> None:
    """In many layouts, also where two kernels do not fit together and each runs alone."""
    proto = {"inverted residual": inverted_residual, **NETWORKS}[name]()
    graph = optimise(load_network(proto))
    plan, _ = make_plan(graph, shaken(seed), CPU)
    banded, _ = forced(graph, plan, random.Random(seed))
    apart, together = computed(graph, plan), computed(graph, banded)
    again = computed(graph, banded, threads=2)
    expected = reference.run(load_network(proto), {"x": normal(*graph.shape("x"))})
    for output, value in expected.items():
        assert relative_error(together[output], value) < TOLERANCE
        assert np.array_equal(together[output], apart[output])
        assert np.array_equal(together[output], again[output])


def test_pairs_are_one_step() -> None:
    graph = optimise(load_network(inverted_residual()))
    plan, arrangement = make_plan(graph, only("NHWC"), CPU)
    assert not pairs(arrangement)
    banded, count = forced(graph, plan, random.Random(0))
    together = follow_plan(graph, banded, CPU)
    assert count == 4
    assert len(pairs(together)) == count
    assert len(together.steps) < len(arrangement.steps)
    assert max(b.size for b in together.buffers) <= max(b.size for b in arrangement.buffers)


def test_a_plan_keeps_bands() -> None:
    graph = optimise(load_network(inverted_residual()))
    plan, _ = make_plan(graph, only("NHWC"), CPU)
    banded, _ = forced(graph, plan, random.Random(1))
    assert "by" in str(banded)
    read = Plan.parse(str(banded))
    assert {name: form.rows for name, form in read.forms.items()} == {
        name: form.rows for name, form in banded.forms.items()
    }
    assert str(read) == str(banded)


def test_bands_for_what_has_no_partner_are_ignored() -> None:
    """A plan may have been edited. There are no chains of three tasks either."""
    graph = optimise(load_network(inverted_residual()))
    plan, _ = make_plan(graph, only("NHWC"), CPU)
    forms = {name: replace(form, rows=2) for name, form in plan.forms.items()}
    assert len(pairs(follow_plan(graph, replace(plan, forms=forms), CPU))) == 4


def test_nothing_with_padding_runs_in_bands() -> None:
    """A band has no halo, neither above and below nor left and right."""
    constants = {"w": weights(8, 4, 3), "v": weights(8, 8, 3)}
    nodes = [conv("x", "a", "w", 1), node("Conv", "a v", "y", pads=[0, 1, 0, 1])]
    graph = optimise(load_network(model(nodes, constants)))
    assert partners(graph, tasks(graph)) == {}
    plan, _ = make_plan(graph, only("NHWC"), CPU)
    edited = replace(plan, forms={x: replace(f, rows=2) for x, f in plan.forms.items()})
    expected = reference.run(graph, {"x": normal(*graph.shape("x"))})
    assert relative_error(computed(graph, edited)["y"], expected["y"]) < TOLERANCE


def test_what_others_read_stays_whole() -> None:
    nodes = [
        conv("x", "a", "w", 1),
        node("MaxPool", "a", "b", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalMaxPool", "a", "c"),
        node("Add", "b c", "y"),
    ]
    graph = optimise(load_network(model(nodes, {"w": weights(4, 4, 3)})))
    assert partners(graph, tasks(graph)) == {}


def stem() -> Graph:
    """A first layer with its pool, then depthwise and 1x1 on a small map."""
    nodes = [
        conv("x", "a", "w", 3, strides=[2, 2]),
        node("MaxPool", "a", "b", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        conv("b", "c", "deep", 1, group=64, strides=[2, 2]),
        conv("c", "y", "wide"),
    ]
    constants = {"w": weights(64, 3, 7), "deep": weights(64, 1, 3), "wide": weights(96, 64, 1)}
    return optimise(load_network(model(nodes, constants, shape=(1, 3, 112, 112))))


@pytest.mark.parametrize(
    ("l2", "threads", "seconds", "passing", "expected"),
    [
        (256 << 10, 1, 1e-4, PASSING, {"b"}),  # 0.8 MB do not fit L2
        (2 << 20, 1, 1e-4, PASSING, set()),  # they do, so passing them on costs nothing
        (2 << 20, 2, 1e-6, PASSING, {"b", "y"}),  # between threads it does
        (2 << 20, 2, 1.0, PASSING, {"y"}),  # rows computed twice would cost more
        (2 << 20, 2, 5e-4, PASSING, {"y"}),  # still more than passing 0.8 MB on
        (2 << 20, 2, 5e-4, PASSING / 4, {"b", "y"}),  # but less where L3 is slower
    ],
)
def test_where_bands_should_pay(
    l2: int, threads: int, seconds: float, passing: float, expected: set[str]
) -> None:
    graph, cpu = stem(), replace(CPU, l2=l2, cores=2)
    layout = Layout("NCHW8c")
    texts = {
        "a": "direct(layout=NCHW>NCHW8c, tile_h=1, tile_w=6, cols=2, unroll=8, rows=8, "
        "oc_outer=no, prefetch=0)",
        "b": "MaxPool",
        "c": "depthwise(layout=NCHW8c, tile_h=1, tile_w=4, vectors=1, rows=3, hold=no)",
        "y": "pointwise(layout=NCHW8c, rows=3, cols=2, unroll=8, tiles=9, oc_outer=no, prefetch=0)",
    }
    forms = {x: Form((layout,), layout, text, seconds) for x, text in texts.items()}
    found = in_bands(graph, tasks(graph), forms, cpu, threads, passing)
    assert {name for name, form in found.items() if form.rows} == expected
    assert all(replace(form, rows=0) == forms[name] for name, form in found.items())

"""Kernels refuse layouts that they cannot read or write. A plan's file may ask for them.

Layouts that the planner may choose are never refused.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from onnx import ModelProto

from fastrun.graph.build.kernels import build
from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.shapes import shape4
from fastrun.graph.networks import load_network
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.form import Form
from fastrun.graph.plan.forms import Forms, Offers
from fastrun.graph.plan.tasks import tasks
from fastrun.graph.reference import interpreter as reference
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Layout, Placement
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import dense
from fastrun.kernels.registry import templates
from tests.support.algorithms import first_taken
from tests.support.execution import execute, relative_error
from tests.support.graph_models import model, node, normal

LAYOUTS = [Layout(name) for name in ("NCHW", "NHWC", "NCHW4c", "NCHW8c", "NCHW16c")]

ONE = {
    "hardswish": node("HardSwish", "x", "y"),
    "clip": node("Clip", "x low high", "y"),
    "softmax": node("Softmax", "x", "y", axis=1),
    "along rows": node("Softmax", "x", "y", axis=3),
    "slice": node("Slice", "x three ten one", "y"),
    "mean": node("ReduceMean", "x", "y", axes=[1]),
    "pool": node("MaxPool", "x", "y", kernel_shape=[2, 2]),
    "scale": node("Mul", "x channels", "y"),
    "square": node("Mul", "x x", "y"),
    "transpose": node("Transpose", "x", "y", perm=[0, 2, 1, 3]),
    "resize": node("Resize", "x _ twice", "y", mode="nearest"),
    "lrn": node("LRN", "x", "y", size=3),
}


def one(name: str) -> ModelProto:
    constants = {
        "low": np.float32(-1), "high": np.float32(1), "three": np.array([3]), "ten": np.array([10]),
        "one": np.array([1]), "channels": normal(1, 12, 1, 1), "twice": np.float32([1, 1, 2, 2]),
    }  # fmt: skip
    used = {x: v for x, v in constants.items() if x in ONE[name].input}
    return model([ONE[name]], used, shape=(1, 12, 5, 6))


def pairs() -> list[object]:
    found = []
    for name, (src, dst) in product(ONE, product(LAYOUTS, LAYOUTS)):
        found.append(pytest.param(name, src, dst, id=f"{name} {src}>{dst}"))
    return found


@pytest.mark.parametrize(("name", "src", "dst"), pairs())
def test_an_operator_is_right_or_refused(name: str, src: Layout, dst: Layout) -> None:
    graph = load_network(one(name))
    (task,) = tasks(graph)
    reads = [Placement(src, *shape4(graph.shape(x))) for x in task.reads]
    out = Placement(dst, *shape4(graph.shape(task.output)))
    try:
        form = Form((src,) * len(reads), dst, name, 0.0)
        kernel = build(graph, task, form, [], Cpu.host(), reads, out)
    except UnsupportedError:
        forms = Forms(graph, [task], Offers(heuristic_choices(Cpu.host())))
        forms.layouts = tuple(LAYOUTS)
        assert (src, dst) not in [(form.reads[0], form.writes) for form in forms.possible(task)]
        return
    x = normal(*graph.shape("x"))
    operands = {"x": x} | ({"add": x} if len(reads) > 1 else {})
    weights = {} if kernel.weights is None else {"weights": kernel.weights}
    program = replace(kernel.program, io=Io(reads[0], out, reads[-1]))
    found = execute(program, operands | weights)
    truth = reference.run(graph, {"x": x})["y"]
    assert relative_error(found.reshape(truth.shape), truth) < 1e-4


LIKE = [
    "conv 1x16x6x6 16x3x3 s1 p1 add",
    "conv 1x16x6x6 16x3x3 s1 p1 g16 add",
    "conv 1x16x6x6 16x3x3 s1 p0 add b1",
]


@pytest.mark.parametrize("name", templates())
def test_convolutions_refuse_operands_that_lie_otherwise(name: str) -> None:
    template, cpu = templates()[name], Cpu.host()
    p = first_taken(template, LIKE, cpu)
    if p is None:
        pytest.skip("takes none of them")
    schedule = template.heuristic(p, cpu)
    io = Io.of(p, schedule.layout)
    other = NHWC if io.dst.layout != NHWC else Layout("NCHW8c")
    with pytest.raises(ScheduleError, match="residual"):
        template.build(p, schedule, cpu, replace(io, add=replace(io.add, layout=other)))
    if not any(p.padding):  # of one bit
        blocked = replace(io.src, layout=Layout("NCHW4c"))
        with pytest.raises(ScheduleError, match="no NCHW4c: use"):
            template.build(p, schedule, cpu, replace(io, src=blocked))
        return
    bare = replace(io.src, halo=(0, 0, 0, 0))
    with pytest.raises(ScheduleError, match="no room for padding"):
        template.build(p, schedule, cpu, replace(io, src=bare))


def test_a_dense_layer_writes_a_part_where_it_lies() -> None:
    src, dst = Placement(NHWC, 2, 24, 1, 1), Placement(NHWC, 2, 9, 1, 1, whole=21, first=5)
    x, weights = normal(2, 24, 1, 1), normal(9, 24)
    found = execute(dense.build(dense.Dense(), Cpu.host(), src, dst), {"x": x, "weights": weights})
    truth = x[:, :, 0, 0].astype(np.float64) @ weights.T
    assert relative_error(found[:, :, 0, 0], truth) < 1e-4


def test_a_dense_layer_reads_a_part_alone() -> None:
    """A class token: the first of many rows. Weights for the others would be zeros."""
    src, dst = Placement(NCHW, 1, 1, 1, 24, whole=50, first=3), Placement(NHWC, 1, 9, 1, 1)
    x, weights = normal(1, 1, 1, 24), normal(9, 24)
    program = dense.build(dense.Dense(), Cpu.host(), src, dst)
    found = execute(program, {"x": x, "weights": weights})
    truth = x[:, 0, 0, :].astype(np.float64) @ weights.T
    assert relative_error(found[:, :, 0, 0], truth) < 1e-4
    assert program.pack_weights(weights).size == 24 * Cpu.host().lanes * -(-9 // Cpu.host().lanes)

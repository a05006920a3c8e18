"""Kernels for other processors really run: many schedules of many problems, in one library."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastrun.graph.aot.export import export
from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import conv_problem
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.processors import target
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.registry import applicable
from fastrun.search_spaces.space import space_for
from tests.support.emulated import EMULATORS, TARGETS, Library, emulated
from tests.support.execution import rms_error

pytestmark = pytest.mark.slow

# Sizes that fill vectors of four lanes and sizes that do not, strides, groups, dilation.
PROBLEMS = [
    "conv 1x3x13x11 9x3x3 s2 p1 bias relu",
    "conv 1x16x9x7 20x3x3 s1 p1 bias relu",
    "conv 1x12x8x9 12x3x3 s1 p1 g12 bias tanh",
    "conv 1x7x6x5 13x1x1 s1 p0 bias hardswish",
    "conv 1x24x7x7 24x1x1 s1 p0 bias sigmoid",
    "conv 1x8x7x6 12x3x3 s1 p1 bias",
    "conv 1x16x8x8 16x5x5 s1 p2 g4 bias",
    "conv 1x6x10x10 6x3x3 s1 p2 d2 bias hardswish",
]
PER_PROBLEM = 3
OPERATORS = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "hardswish": "HardSwish"}


def convolutions(problems: list[ConvProblem]) -> onnx.ModelProto:
    """A model of independent problems, each with an input and an output of its own."""
    nodes, inputs, outputs, constants = [], [], [], []
    rng = np.random.default_rng(1)
    for i, p in enumerate(problems):
        weights = rng.standard_normal(p.weight_shape, np.float32) * np.float32(p.depth**-0.5)
        constants += [
            numpy_helper.from_array(weights, f"w{i}"),
            numpy_helper.from_array(rng.standard_normal(p.oc, np.float32), f"b{i}"),
        ]
        nodes.append(
            helper.make_node(
                "Conv",
                [f"x{i}", f"w{i}", f"b{i}"],
                [f"c{i}"],
                f"conv{i}",
                strides=p.stride,
                pads=p.padding,
                dilations=p.dilation,
                group=p.groups,
            )
        )
        activation = OPERATORS.get(p.activation, "Identity")
        nodes.append(helper.make_node(activation, [f"c{i}"], [f"y{i}"]))
        float_ = TensorProto.FLOAT
        inputs.append(helper.make_tensor_value_info(f"x{i}", float_, (p.n, p.c, p.h, p.w)))
        outputs.append(helper.make_empty_tensor_value_info(f"y{i}"))
    graph = helper.make_graph(nodes, "many", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def drawn(graph: Graph, cpu: Cpu, draw: random.Random) -> Plan:
    """A plan with a random legal schedule for every convolution."""
    plan, _ = make_plan(graph, heuristic_choices(cpu), cpu)
    forms = dict(plan.forms)
    for node in graph.nodes:
        p = conv_problem(graph, node)
        algorithms = [t for t in applicable(p, cpu) if not t.baseline]
        for _ in range(200):
            template = draw.choice(algorithms)
            space = space_for(template.name, p, cpu)
            sizes = [len(values) for values in space.domains.values()]
            schedule = space.at(tuple(draw.randrange(n) for n in sizes))
            try:
                template.program(p, schedule, cpu)
            except ScheduleError:
                continue
            src, dst = layout_pair(schedule.layout)
            form = replace(forms[node.output], reads=(src,), writes=dst)
            forms[node.output] = replace(form, algorithm=template.text(schedule), rows=0)
            break
    return replace(plan, forms=forms)


@pytest.mark.parametrize("name", TARGETS)
def test_random_schedules(name: str, tmp_path: Path) -> None:
    problems = [ConvProblem.parse(text) for text in PROBLEMS for _ in range(PER_PROBLEM)]
    graph = optimise(load_network(convolutions(problems)))
    plan = drawn(graph, target(name), random.Random(7))
    done = export(graph, tmp_path, [name], {name: plan}, name="net")
    assert done.targets[0].replaced == 0, "a drawn schedule did not run"
    inputs = {
        x: np.random.default_rng(i).standard_normal(graph.shape(x), np.float32)
        for i, x in enumerate(graph.inputs)
    }
    truth = interpreter.run(graph, inputs)
    with emulated(EMULATORS[name], tmp_path) as session:
        library = Library(session, tmp_path)
        sizes = [y.size for y in truth.values()]
        found = library.run(library.opened(threads=2), list(inputs.values()), sizes)
    for i, ((y_name, y), mine) in enumerate(zip(truth.items(), found, strict=True)):
        said = f"{problems[i]}: {plan.forms[y_name].algorithm}"
        assert rms_error(mine.reshape(y.shape), y) < 1e-4, said

"""Kernels for AArch64 really run: many schedules of many problems, in one exported library.

The library is executed by an emulator of the processor, beside a small C program.
"""

from __future__ import annotations

import random
import shutil
import subprocess
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
from tests.support.execution import rms_error

EMULATOR, CROSS = shutil.which("qemu-aarch64"), shutil.which("aarch64-linux-gnu-gcc")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (EMULATOR and CROSS), reason="qemu-aarch64 or aarch64-linux-gnu-gcc is not installed"
    ),
]

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

MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include "net.h"
static const size_t in_sizes[] = {IN}, out_sizes[] = {OUT};
int main(void) {
    const void *in[NET_INPUTS];
    void *out[NET_OUTPUTS];
    net_options options = {0};
    net_net *net;
    options.size = sizeof options;
    options.weights = "net.weights";
    options.threads = 2;
    FILE *from = fopen("in.bin", "rb"), *to = fopen("out.bin", "wb");
    for (int i = 0; i < NET_INPUTS; i++) {
        float *x = malloc(4 * in_sizes[i]);
        if (fread(x, 4, in_sizes[i], from) != in_sizes[i]) return 2;
        in[i] = x;
    }
    for (int i = 0; i < NET_OUTPUTS; i++) out[i] = malloc(4 * out_sizes[i]);
    if (net_open(&net, &options) || net_run(net, in, out)) return 3;
    for (int i = 0; i < NET_OUTPUTS; i++) fwrite(out[i], 4, out_sizes[i], to);
    net_close(net);
    return fclose(to);
}
"""


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


def test_random_schedules_for_aarch64(tmp_path: Path) -> None:
    assert EMULATOR
    assert CROSS
    problems = [ConvProblem.parse(text) for text in PROBLEMS for _ in range(PER_PROBLEM)]
    graph = optimise(load_network(convolutions(problems)))
    cpu = target("aarch64")
    plan = drawn(graph, cpu, random.Random(7))
    done = export(graph, tmp_path, ["aarch64"], {"aarch64": plan}, name="net")
    assert done.targets[0].replaced == 0, "a drawn schedule did not run"
    inputs = {
        x: np.random.default_rng(i).standard_normal(graph.shape(x), np.float32)
        for i, x in enumerate(graph.inputs)
    }
    (tmp_path / "in.bin").write_bytes(b"".join(x.tobytes() for x in inputs.values()))
    truth = interpreter.run(graph, inputs)
    text = MAIN.replace("IN}", f"{', '.join(str(x.size) for x in inputs.values())}}}")
    text = text.replace("OUT}", f"{', '.join(str(y.size) for y in truth.values())}}}")
    (tmp_path / "main.c").write_text(text)
    subprocess.run(
        [CROSS, "-O1", "-o", "main", "main.c", "libnet.a", "-lpthread"], cwd=tmp_path, check=True
    )
    subprocess.run([EMULATOR, "-L", "/usr/aarch64-linux-gnu", "./main"], cwd=tmp_path, check=True)
    found = np.fromfile(tmp_path / "out.bin", np.float32)
    for i, (name, y) in enumerate(truth.items()):
        mine, found = found[: y.size].reshape(y.shape), found[y.size :]
        assert rms_error(mine, y) < 1e-4, f"{problems[i]}: {plan.forms[name].algorithm}"

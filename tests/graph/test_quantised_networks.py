"""Quantised networks run in integers where kernels can, and compute what the reference does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest

from fastrun.graph.core.errors import PlanError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.core.problems import conv_problems
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.passes.products import convolve_dense
from fastrun.graph.passes.rounding import round_inputs, spread_rounding
from fastrun.graph.plan.byte_kernels import float_notes
from fastrun.graph.plan.choices import Choose, heuristic_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import follow_plan, make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW
from tests.graph import test_networks_run as networks
from tests.graph.test_networks_run import shaken
from tests.support.graph_models import model, node, normal
from tests.support.quantised_graphs import normal_inputs, quantised

CPU = Cpu.host()
HEURISTIC = heuristic_choices(CPU)
NETWORKS: list[Callable[[], onnx.ModelProto]] = [
    networks.residual, networks.concatenations, networks.shuffled, networks.excited,
    networks.preactivated, networks.reshaped, networks.reworked, networks.decoded,
]  # fmt: skip


def made(network: Callable[[], onnx.ModelProto], **options: bool | int) -> Graph:
    graph = optimise(load_network(network()))
    graph = convolve_dense(quantised(graph, **options))  # type: ignore[arg-type]
    return round_inputs(spread_rounding(graph))


def check(graph: Graph, choose: Choose = HEURISTIC, threads: int = 1) -> Executable:
    """Run a quantised network; values that are off by a step for a tie are rare."""
    plan, arrangement = make_plan(graph, choose, CPU, threads=threads)
    assert Plan.parse(str(plan)).forms.keys() == plan.forms.keys()
    again = follow_plan(graph, Plan.parse(str(plan)), CPU)
    assert [s.program.ir for s in again.steps] == [s.program.ir for s in arrangement.steps]
    executable = Executable.of(arrangement, CPU, threads, plan)
    inputs = normal_inputs(graph, 1)
    found, truth = executable.run(inputs), reference.run(graph, inputs)
    for name, value in truth.items():
        off = np.abs(found[name] - value)
        rms = np.sqrt(np.mean(value**2))
        share = float((off > 1e-4 * rms).mean())
        assert share < 0.04, f"{share:.1%} of {name} differ"
        assert off.max() < 0.1 * rms
    return executable


def mixed(seed: int) -> Choose:
    """Layouts at random prices; kernels of integers do not read or write NCHW."""
    choose = shaken(seed)
    return lambda p: [c for c in choose(p) if not p.types or NCHW not in (c.src, c.dst)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("skip", [0, 3])
def test_every_tensor_that_has_a_grid_is_rounded(
    network: Callable[[], onnx.ModelProto], skip: int
) -> None:
    graph = made(network, skip=skip)
    # Every tensor is looked at, not only the last one.
    check(replace(graph, outputs=tuple(node.output for node in graph.nodes)))
    check(graph, threads=2)
    check(graph, mixed(skip))


def test_plans_with_types_that_a_network_does_not_have_are_refused() -> None:
    graph = made(networks.residual)
    plan, _ = make_plan(graph, HEURISTIC, CPU)
    text = str(plan)
    assert " as u8s8>u8\t" in text
    for old, new, message in [
        (" as u8s8>u8\tg", " as u8s5>u8\tg", "at 'g': it cannot compute u8s5>u8"),
        (" as u8s8>u8\tg", "\tg", "at 'g': it can run in NHWC,NHWC>NHWC:u8, not in"),
        ("max pool as u8\t", "max pool as u8>f32\t", "at 'c': it can run in"),
        (" as u8s8>u8\tg", " as u8>f32\tg", "at 'g': unknown types"),
    ]:
        assert old in text
        with pytest.raises(PlanError, match=message):
            follow_plan(graph, Plan.parse(text.replace(old, new)), CPU)
    with pytest.raises(PlanError, match="unknown types 'u9'"):
        Plan.parse(text.replace(" as u8s8>u8\tg", " as u9\tg"))
    with pytest.raises(PlanError, match="does not fit the network"):
        follow_plan(optimise(load_network(networks.residual())), plan, CPU)


def test_weights_may_be_minus_128() -> None:
    graph = made(networks.residual)
    grid = graph.grids["w5"]
    lowest = graph.constants["w5"].copy()
    lowest[0, 0, 0, 0] = -128 * grid.scale[0]  # type: ignore[index]
    changed = replace(graph, constants={**graph.constants, "w5": lowest})
    assert not dict(float_notes(changed))
    check(changed)


@pytest.mark.parametrize("residual", [False, True])
def test_outputs_far_beyond_their_range_are_clipped(residual: bool) -> None:
    """As behind a ReLU that was dead in all of the calibration, but is not in use."""
    nodes = [
        *(node("QuantizeLinear", f"{a} s z", f"{a}.q") for a in ("x", "w")),
        *(node("DequantizeLinear", f"{a}.q s z", f"{a}.n") for a in ("x", "w")),
        node("Conv", "x.n w.n", "c"),
        node("Add", "c x.n", "sum"),
        node("QuantizeLinear", "sum tiny z" if residual else "c tiny z", "q"),
        node("DequantizeLinear", "q tiny z", "y"),
    ]
    steps = {"s": np.float32(0.02), "tiny": np.float32(1e-9), "z": np.int8(0)}
    m = model(nodes, {**steps, "w": normal(8, 8, 1, 1)}, shape=(1, 8, 5, 5))
    graph = optimise(load_network(m))
    (conv,) = (n for n in graph.nodes if isinstance(n.op, Conv))
    assert [str(p.precision) for p in conv_problems(graph, conv)] == ["", "u8s8>f32"]
    check(graph)

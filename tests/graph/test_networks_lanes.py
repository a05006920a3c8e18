"""Whole networks with kernels for vectors of 4, 8 and 16 lanes, against float64."""

from __future__ import annotations

import pytest

from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.planner import make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.cpu import Cpu
from tests.graph.test_networks_run import NETWORKS, check, shaken
from tests.support.execution import relative_error
from tests.support.graph_models import normal
from tests.support.lanes import EVERY_CPU

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("cpu", EVERY_CPU)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_odd_channels(name: str, cpu: Cpu) -> None:
    check(NETWORKS[name](), heuristic_choices(cpu), cpu=cpu)
    check(NETWORKS[name](), shaken(cpu.lanes, cpu), cpu=cpu)


@pytest.mark.parametrize("cpu", EVERY_CPU)
@pytest.mark.parametrize("name", ["squeezenet1.1", "mobilenetv2"])
def test_networks_of_the_zoo(name: str, cpu: Cpu) -> None:
    truth = load_network(name, {"input": (1, 3, 64, 64)})
    graph = optimise(truth)
    plan, arrangement = make_plan(graph, heuristic_choices(cpu), cpu)
    x = normal(1, 3, 64, 64)
    found = Executable.of(arrangement, cpu, 1, plan).run({"input": x})
    for output, value in reference.run(truth, {"input": x}).items():
        assert relative_error(found[output], value) < 1e-3

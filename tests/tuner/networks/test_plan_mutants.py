"""Changed plan files, for 4, 8 and 16 lanes: refused in one line, or the network computes right.

With `FASTRUN_TEST_SCALE=100` some 2,000 of them are examined.
"""

from __future__ import annotations

import os
import random

import pytest

from fastrun.graph.core.errors import GraphError
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import follow_plan, make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from tests.graph.test_fusion import forced, inverted_residual
from tests.graph.test_networks_run import NETWORKS, shaken
from tests.support.execution import relative_error
from tests.support.graph_models import normal
from tests.support.lanes import RUN_HERE
from tests.support.plan_mutants import mutant

CASES = round(4 * float(os.environ.get("FASTRUN_TEST_SCALE", "1")))
NAMES = ("inverted residual", "excited", "shuffled", "reworked", "concatenations")


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_plan_is_refused_or_right(name: str) -> None:
    proto = {"inverted residual": inverted_residual, **NETWORKS}[name]()
    graph = optimise(load_network(proto))
    x = {"x": normal(*graph.shape("x"))}
    truth = reference.run(load_network(proto), x)
    for seed in range(CASES):
        draw = random.Random(f"{name} {seed}")
        made_on, here = draw.choice(RUN_HERE), draw.choice(RUN_HERE)
        choose = draw.choice((heuristic_choices(made_on), shaken(seed)))
        plan, _ = make_plan(graph, choose, made_on, threads=1)
        if draw.random() < 0.3:
            plan, _ = forced(graph, plan, draw)
        refusal = ""
        try:
            changed = Plan.parse(mutant(str(plan), draw))
            arrangement = follow_plan(graph, changed, here)
        except GraphError as error:
            refusal = str(error)
        assert "\n" not in refusal, seed
        if refusal:
            continue
        found = Executable.of(arrangement, here, draw.choice((1, 2)), changed).run(x)
        for output, value in truth.items():
            assert relative_error(found[output], value) < 1e-3, seed

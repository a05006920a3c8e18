"""Changed plan files, for 4, 8 and 16 lanes: refused in one line, or the network computes right.

`FASTRUN_TEST_SCALE=100 pytest tests/test_plan_mutants.py` examines some 2,000 of them.
"""

from __future__ import annotations

import os
import random

import pytest

from graph import reference
from graph.choices import heuristic_choices
from graph.errors import GraphError
from graph.executor import Executable
from graph.networks import load_network
from graph.passes import optimise
from graph.plan import Plan, follow_plan, make_plan
from tests.execution import relative_error
from tests.graph_models import normal
from tests.lanes import RUN_HERE
from tests.plan_mutants import mutant
from tests.test_fusion import forced, inverted_residual
from tests.test_networks_run import NETWORKS, shaken

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

"""Attention is searched, stored and planned like convolutions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastrun.graph.core.problems import attentions, to_tune
from fastrun.graph.frontend.importer import import_onnx
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import follow_plan, make_plan
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core.attention import AttentionProblem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.registry import every_template
from fastrun.tuner.networks.measured_choices import stored_choices
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import NO_LIMITS, Conditions, Outcome
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.transfer import first_guesses, nearest
from fastrun.tuner.store.database import Database
from tests.graph.test_attention import packed
from tests.support.execution import relative_error
from tests.support.records import record

CPU = Cpu.host()
P = AttentionProblem.parse("attention 2x2x10x6 10x6")


def test_the_plan_runs_the_best_record(tmp_path: Path) -> None:
    graph = optimise(import_onnx(packed()))
    assert [(d.problem, d.occurrences) for d in attentions(graph)] == [(P, 1)]
    assert P in [d.problem for d in to_tune(graph)]
    template = every_template()["flash"]
    usual = template.heuristic(P, CPU)
    better = template.text(replace(usual, rows=2, keys=8, unroll=1))
    plan, _ = make_plan(graph, stored_choices(Database("sqlite://"), CPU, 1, NO_LIMITS), CPU)
    assert template.text(usual) in [form.algorithm for form in plan.forms.values()]
    with Database(tmp_path / "records.db") as store:
        for text, seconds in ((template.text(usual), 2e-3), (better, 1e-3)):
            made = record(
                problem=str(P), schedule=text, machine=CPU.fingerprint, toolchain=toolchain(),
                samples=(seconds,) * 3,
            )  # fmt: skip
            store.add(made)
        tuned, _ = make_plan(graph, stored_choices(store, CPU, 1, NO_LIMITS), CPU)
    assert better in [form.algorithm for form in tuned.forms.values()]
    x = {"x": np.random.default_rng(0).standard_normal((2, 10, 12), np.float32)}
    results = []
    for one in (plan, Plan.parse(str(tuned))):
        network = Executable.of(follow_plan(graph, one, CPU), CPU, 1, one)
        results.append(network.run(x)["y"])
    assert relative_error(results[1], results[0]) < 1e-5
    # Plans of earlier versions name the operator instead of a schedule.
    old = str(plan).replace(template.text(usual), "Attention")
    network = Executable.of(follow_plan(graph, Plan.parse(old), CPU), CPU, 1, plan)
    assert np.array_equal(network.run(x)["y"], results[0])


@pytest.mark.slow
def test_a_search(tmp_path: Path) -> None:
    with Database(tmp_path / "records.db") as database:
        summary = fast_run([(P, 1)], database, Budget(trials=3), quiet=True)
        found = database.records(problem=str(P))
        best = database.best(P, Conditions(CPU.fingerprint))
    assert summary.trials == 3
    assert {r.outcome for r in found} == {Outcome.CORRECT}
    assert best
    assert best.errors
    assert best.errors.max < 1e-5


def test_winners_of_near_shapes_come_first() -> None:
    near = AttentionProblem.parse("attention 1x2x12x6 12x6")
    far = AttentionProblem.parse("attention 1x2x900x64 900x64")
    assert nearest(P, [far, near]) == [near, far]
    schedule = "flash(layout=NHWC, rows=9, cols=1, keys=16, tiles=1, unroll=4)"
    assert first_guesses(P, [], {near: schedule}, CPU)

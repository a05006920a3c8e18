"""Records of other machines or conditions have no influence here."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fastrun
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.planner import follow_plan
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.measure.measurer import heuristic_text
from fastrun.tuner.networks.measured_choices import stored_choices
from fastrun.tuner.networks.stored_plans import stored_plan
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.network_record import HEURISTIC, NetworkRecord
from fastrun.tuner.records.record import NO_LIMITS, Conditions, Outcome
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.store.database import Database
from fastrun.tuner.store.staleness import is_current
from fastrun.tuner.store.standing import standings
from tests.graph.test_networks_run import residual
from tests.support.records import PROBLEM, record
from tests.tuner.networks.test_loading import measured, problems

HERE = Cpu.host()
ELSEWHERE = "0123456789abcdef"
OTHERS = {"machine": ELSEWHERE, "threads": 3, "regime": "cold-weights"}
"""Not the conditions under which the tests ask."""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "another"),
        ("name", "another"),
        ("features", HERE.features + ",+another"),
        ("l1", HERE.l1 + 1),
        ("l2", HERE.l2 + 1),
        ("l3", HERE.l3 + 1),
    ],
)
def test_the_fingerprint_tells_machines_apart(field: str, value: Any) -> None:
    other = replace(HERE, **{field: value})
    assert other.fingerprint != HERE.fingerprint
    assert replace(other, **{field: getattr(HERE, field)}).fingerprint == HERE.fingerprint


@pytest.mark.parametrize("field", OTHERS)
def test_queries_rank_what_was_measured_under_the_same_conditions(field: str) -> None:
    here, there = record(6, [2e-3]), record(7, [1e-3], **{field: OTHERS[field]})
    with Database("sqlite://") as database:
        database.add(here)
        database.add(there)
        usual = Conditions("machine")
        for asked, found in (usual, here), (replace(usual, **{field: OTHERS[field]}), there):
            assert database.ranking(PROBLEM, asked) == [found]
            assert database.best(PROBLEM, asked) == found
            assert database.best_all(asked) == {PROBLEM: found}
            assert database.records(**{field: getattr(found, field)}) == [found]


@pytest.mark.parametrize("field", ["machine", "toolchain", "ir_hash"])
def test_code_is_distrusted_where_it_failed(field: str) -> None:
    good = record(6)
    bad = record(6, (), outcome=Outcome.CORRECTNESS, time="2025-01-01T00:00:00+00:00", stage="race")
    elsewhere = replace(bad, **{field: "another"})
    conditions = Conditions("machine")
    with Database("sqlite://") as database:
        database.add(replace(good, stage="final"))
        database.add(replace(elsewhere, regime="cold-weights"))
        assert database.best(PROBLEM, conditions)
        database.add(replace(bad, regime="cold-weights"))
        assert database.best(PROBLEM, conditions) is None


@pytest.mark.parametrize("field", OTHERS)
def test_standings_are_those_of_one_machine(field: str) -> None:
    p = ConvProblem.parse(PROBLEM)
    known = {"machine": HERE.fingerprint, "toolchain": toolchain()}
    here, there = (
        record(6, [2e-3], **known),
        record(7, [1e-3], **(known | {field: OTHERS[field]})),
    )
    with Database("sqlite://") as database:
        database.add(here)
        database.add(there)
        [found] = standings(database, [(p, 1)], Conditions.here())
    assert found.best == here


def test_today_is_judged_by_todays_toolchain() -> None:
    ours = record(machine=HERE.fingerprint, toolchain=toolchain())
    llvm = toolchain().partition(",")[0]
    assert is_current(ours)
    for change in (
        {"toolchain": f"{llvm}, kernels 0"},
        {"toolchain": "llvm 0, kernels 0"},
        {"protocol": ours.protocol + 1},
        {"protocol": ours.protocol + 1, "machine": ELSEWHERE},
    ):
        assert not is_current(replace(ours, **change))
    assert is_current(replace(ours, machine=ELSEWHERE, toolchain="llvm 0, kernels 0"))


@pytest.mark.parametrize("field", OTHERS)
def test_loading_follows_what_was_measured_here(field: str, tmp_path: Path) -> None:
    """A record serves no other machine and no other number of threads."""
    p = problems()[0]
    with Database(tmp_path / "here.db") as database:
        database.add(measured(p))
        usual = stored_choices(database, HERE, 1, NO_LIMITS)(p)
        assert usual[0].schedule == measured(p).schedule
    with Database(tmp_path / "there.db") as database:
        for other in problems():
            database.add(measured(other, **{field: OTHERS[field]}))
        if field != "regime":
            assert measured(p).schedule not in [
                c.schedule for c in stored_choices(database, HERE, 1, NO_LIMITS)(p)
            ]
            with pytest.warns(UserWarning, match="no current measurement"):
                plan = fastrun.load(residual(), database=database).plan
            assert str(plan) == str(fastrun.load(residual(), policy="heuristic").plan)


@pytest.mark.parametrize(("field", "value"), [("machine", ELSEWHERE), ("threads", 3)])
def test_a_networks_plan_is_kept_for_one_machine(field: str, value: Any) -> None:
    graph = optimise(load_network(residual()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = fastrun.load(residual(), policy="heuristic")
    kept = NetworkRecord(
        network="small",
        graph=graph.digest,
        machine=HERE.fingerprint,
        threads=1,
        limits="",
        toolchain=toolchain(),
        ir_hash=follow_plan(graph, made.plan, HERE).ir_hash,
        kept=HEURISTIC,
        plan=str(made.plan),
        samples={HEURISTIC: (1e-3,)},
    )
    with Database("sqlite://") as database:
        database.add_network(replace(kept, **{field: value}))
        assert stored_plan(graph, database, HERE, 1, NO_LIMITS) is None
        database.add_network(kept)
        assert stored_plan(graph, database, HERE, 1, NO_LIMITS)


@pytest.mark.slow
def test_a_search_learns_from_the_same_conditions() -> None:
    p = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1 bias relu")
    known = {"problem": str(p), "machine": HERE.fingerprint, "toolchain": toolchain()}
    others = [{field: value} for field, value in OTHERS.items()]
    with Database("sqlite://") as database:
        for change in (*others, {"protocol": 99}, {"toolchain": "llvm 0, kernels 0"}, {}):
            database.add(record(schedule=heuristic_text(p), **(known | change)))
        assert fast_run([(p, 1)], database, Budget(trials=0)).known == 1

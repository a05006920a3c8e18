"""Plans of whole networks: compared in place, raced, kept, and used while they are current."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import conv_problem, convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choice, heuristic_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.plan.tasks import tasks
from fastrun.graph.planner import make_plan
from fastrun.kernels.conv import direct
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NHWC
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.machine import probe as machine
from fastrun.tuner.measure.sandbox import Sandbox
from fastrun.tuner.networks import final as network
from fastrun.tuner.networks import tune as tuning
from fastrun.tuner.networks.alternatives import PlanInputs, apart, distinct, same, variants
from fastrun.tuner.networks.final import FinalResult
from fastrun.tuner.networks.in_place import Comparison, PickledNetwork
from fastrun.tuner.networks.load import load
from fastrun.tuner.networks.measured_choices import guessed_choices, stored_choices
from fastrun.tuner.networks.stored_plans import store_plan, stored_plan
from fastrun.tuner.records.network_record import HEURISTIC, IN_PLACE, LAYERS
from fastrun.tuner.records.record import NO_LIMITS, Limits
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import Summary
from fastrun.tuner.store.database import Database
from tests.graph.test_networks_run import residual
from tests.support.graph_models import normal
from tests.tuner.machine.test_moves import REPORT

pytestmark = pytest.mark.slow

CPU = Cpu.host()
TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return optimise(load_network(residual()))


@pytest.fixture(scope="module")
def plan(graph: Graph) -> Plan:
    return make_plan(graph, heuristic_choices(CPU), CPU)[0]


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "probe", lambda: REPORT)


def in_nhwc(p: ConvProblem, rows: int) -> str:
    return direct.template.text(
        replace(direct.template.heuristic(p, CPU), layout="NHWC", rows=rows)
    )


# Which plan is kept


@pytest.mark.parametrize(
    ("factors", "kept"),
    [
        ({HEURISTIC: 1.0, LAYERS: 0.9, IN_PLACE: 0.8}, IN_PLACE),
        ({HEURISTIC: 1.0, LAYERS: 1.0, IN_PLACE: 1.0}, HEURISTIC),
        ({HEURISTIC: 1.0, LAYERS: 0.9, IN_PLACE: 0.9}, LAYERS),
        ({HEURISTIC: 1.0, LAYERS: 1.2, IN_PLACE: 0.9}, IN_PLACE),
    ],
)
def test_a_later_plan_must_be_surely_faster(factors: dict[str, float], kept: str) -> None:
    draw = np.random.default_rng(0)
    rounds = 1 + 0.2 * draw.random(24)  # what disturbs a round disturbs all
    samples = {
        name: tuple(1e-3 * factor * rounds * (1 + 0.005 * draw.standard_normal(24)))
        for name, factor in factors.items()
    }
    assert FinalResult({}, samples).kept == kept


# Which plans are compared


def test_plans_are_the_same_whatever_they_expect(plan: Plan) -> None:
    later = {name: replace(form, seconds=9.0) for name, form in plan.forms.items()}
    other = {name: replace(form, writes=NHWC) for name, form in plan.forms.items()}
    assert same(plan, replace(plan, forms=later, seconds=9.0))
    assert not same(plan, replace(plan, forms=other))
    assert list(distinct({"a": plan, "b": replace(plan, forms=later)})) == ["a"]
    rows = {name: replace(form, rows=4) for name, form in plan.forms.items()}
    assert same(apart(replace(plan, forms=rows)), plan)


def test_variants_give_every_node_its_next_choice(graph: Graph) -> None:
    def several(p: ConvProblem) -> list[Choice]:
        seconds = (1.0, 1.1, 1.2, 2.0)  # the last takes too long alone to be tried
        return [Choice(in_nhwc(p, 1 + i), NHWC, NHWC, s) for i, s in enumerate(seconds)]

    base, _ = make_plan(graph, lambda p: several(p)[:1], CPU)
    made = list(variants(graph, base, several, CPU))
    assert made
    tried: dict[str, set[str]] = {}
    for variant in made:
        for name, form in variant.forms.items():
            assert replace(form, algorithm="") == replace(base.forms[name], algorithm="")
            tried.setdefault(name, set()).add(form.algorithm)
    for task in tasks(graph):
        if task.output in tried and task.node.work.startswith("Conv"):
            p, found = conv_problem(graph, task.node), tried[task.output]
            assert {in_nhwc(p, 2), in_nhwc(p, 3)} <= found
            assert in_nhwc(p, 4) not in found
            assert all(parse_schedule(text)[0].name == "direct" for text in found)


def test_variants_try_what_is_proposed_in_the_plan_s_layouts(graph: Graph) -> None:
    base, _ = make_plan(graph, lambda p: [Choice(in_nhwc(p, 1), NHWC, NHWC, 1.0)], CPU)
    asked = set()

    def proposed(p: ConvProblem, layout: str) -> list[str]:
        asked.add(layout)
        return [in_nhwc(p, 7)]

    made = list(variants(graph, base, lambda p: [], CPU, proposed))
    assert asked == {"NHWC"}
    assert task_rows(made[0], graph) == [7] * len(task_rows(made[0], graph))


def task_rows(plan: Plan, graph: Graph) -> list[int]:
    """The rows that a task of each convolution of a plan has."""
    outputs = [t.output for t in tasks(graph) if t.node.work.startswith("Conv")]
    return [parse_schedule(plan.forms[x].algorithm)[1].rows for x in outputs]


# Finals


def test_a_final_is_kept_and_used_while_it_is_current(graph: Graph, tmp_path: Path) -> None:
    with Database(tmp_path / "records.db") as database:
        record = store_plan(graph, database, 1, 4.0, NO_LIMITS)
        assert database.networks() == [record]
        assert HEURISTIC in record.samples
        assert all(len(s) >= 5 for s in record.samples.values())
        found = stored_plan(graph, database, CPU, 1, NO_LIMITS)
        assert found
        assert str(found[0]) == record.plan
        assert str(load(residual(), database=database).plan) == record.plan
        assert stored_plan(graph, database, CPU, 2, NO_LIMITS) is None
        assert stored_plan(graph, database, CPU, 1, Limits(error=1e-5)) is None
        larger = optimise(load_network(residual(), {"x": (4, 3, 33, 29)}))
        assert stored_plan(larger, database, CPU, 1, NO_LIMITS) is None
        stale = {"ir_hash": "code"}, {"plan": "no plan"}, {"toolchain": "llvm 0, kernels 0"}
        for year, change in enumerate(stale, 3000):
            later = {"time": f"{year}-01-01T00:00:00.000000+00:00"}
            database.add_network(replace(record, **later, **change))
            assert stored_plan(graph, database, CPU, 1, NO_LIMITS) is None
        yesterdays = record.toolchain.partition(",")[0] + ", kernels of yesterday"
        latest = {"time": "4000-01-01T00:00:00.000000+00:00", "toolchain": yesterdays}
        database.add_network(replace(record, **latest))
        assert stored_plan(graph, database, CPU, 1, NO_LIMITS)


def crash(network: PickledNetwork, base: str, other: str, seconds: float) -> Comparison:
    os._exit(7)


def test_a_plan_that_kills_its_process_costs_nothing_else(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "compare", crash)
    with Database(tmp_path / "records.db") as database:
        record = store_plan(graph, database, 1, 2.0, NO_LIMITS)
    assert IN_PLACE not in record.samples
    assert record.kept in record.samples


# Policies


@TWO_CORES
@pytest.mark.filterwarnings("ignore:.* holds no current measurement")  # of the second network
def test_reproducible_gives_the_same_bits_on_any_number_of_threads(tmp_path: Path) -> None:
    with Database(tmp_path / "records.db") as database:
        store_plan(optimise(load_network(residual())), database, 1, 0.0, NO_LIMITS)
        for source, shape in ((residual(), (2, 3, 33, 29)), ("squeezenet1.1", (1, 3, 64, 64))):
            name = "x" if shape[0] == 2 else "input"
            given = {name: normal(*shape)}
            runs = []
            for threads in (1, 2, 2):
                loaded = load(source, threads, database, "reproducible", {name: shape})
                runs.append((str(loaded.plan), *loaded.run(given).values()))
            for plan, *outputs in runs[1:]:
                assert plan == runs[0][0]
                for a, b in zip(outputs, runs[0][1:], strict=True):
                    assert a.tobytes() == b.tobytes()


def workspace(p: ConvProblem, text: str) -> int:
    template, schedule = parse_schedule(text)
    program = template.program(p, schedule, CPU)
    return program.shared_bytes + program.local_bytes


def expected_error(p: ConvProblem, text: str) -> float:
    template, schedule = parse_schedule(text)
    return template.error(p, schedule)


def test_limits_bind_what_was_never_measured(graph: Graph) -> None:
    large = ConvProblem.parse("conv 1x64x28x28 64x3x3 s1 p1 bias")
    for p in (*(x.problem for x in convolutions(graph)), large):
        small = guessed_choices(CPU, 1, Limits(workspace=0))(p)
        assert all(workspace(p, choice.schedule) == 0 for choice in small)
        exact = guessed_choices(CPU, 1, Limits(error=8e-7))(p)
        assert all(expected_error(p, choice.schedule) <= 8e-7 for choice in exact)
    free = guessed_choices(CPU, 1, NO_LIMITS)(large)
    assert len(small) < len(free)
    assert {c.schedule for c in exact} != {c.schedule for c in free}
    with pytest.raises(UnsupportedError, match="allow more"):
        guessed_choices(CPU, 1, Limits(error=1e-12))(large)
    with pytest.raises(UnsupportedError, match="allow more"):
        load(residual(), policy="heuristic", max_error=1e-12)


def test_one_thread_stands_in_for_two(graph: Graph, tmp_path: Path) -> None:
    from fastrun.tuner.records.environment import toolchain
    from tests.support.records import record

    p = conv_problem(graph, graph.nodes[0])
    text = in_nhwc(p, 1)
    code = direct.template.program(p, parse_schedule(text)[1], CPU).ir_hash
    with Database(tmp_path / "records.db") as database:
        known = {"machine": CPU.fingerprint, "toolchain": toolchain(), "ir_hash": code}
        database.add(record(problem=str(p), schedule=text, samples=(2e-9,) * 3, **known))
        found = stored_choices(database, CPU, 2, NO_LIMITS)(p)
        assert not any(c.seconds == 2e-9 for c in found)  # of one thread
        database.add(record(problem=str(p), schedule=text, samples=(5e-9,) * 3, threads=2, **known))
        found = stored_choices(database, CPU, 2, NO_LIMITS)(p)
        assert Choice(text, NHWC, NHWC, 5e-9) in found


def test_profile_spends_its_budget_on_layers_and_then_on_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: dict[str, Any] = {}

    def search(problems: Any, database: Database, budget: Budget, **options: Any) -> Summary:
        spent.update(options, layers=budget.seconds, problems=problems)
        return Summary("run", [], 0, 0, 0.0, interrupted=False)

    def final(graph: Graph, database: Database, threads: int, seconds: float, *_: Any) -> None:
        spent["whole"] = seconds

    monkeypatch.setattr(tuning, "fast_run", search)
    monkeypatch.setattr(tuning, "store_plan", final)
    path = tmp_path / "records.db"
    with pytest.warns(UserWarning, match="no current measurement of 4 of 4"):
        loaded = load(residual(), database=path, policy="profile", seconds=40.0, max_workspace=0)
    assert loaded.run({"x": normal(2, 3, 33, 29)})["y"].shape == (2, 10)
    assert 0 < spent["layers"] <= 24  # loading counts too
    assert spent["layers"] < spent["whole"] <= 40  # what the search has left, which took no time
    assert spent["options"].limits == Limits(workspace=0)
    assert (spent["measurer"].threads, len(spent["problems"])) == (1, 4)
    assert path.exists()


def test_a_race_ends_where_half_a_process_has_no_time(
    graph: Graph, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process takes ten seconds; of 24 the third would leave after 30."""
    now = [0.0]

    class Processes:
        def restart(self) -> None: ...

        def call(self, work: object, arguments: tuple[object, Sequence[str]], _: float) -> object:
            now[0] += 10.0
            return [(1.0,) for _ in arguments[1]]

    monkeypatch.setattr(network, "monotonic", lambda: now[0])
    sandbox, pickled = cast(Sandbox, Processes()), cast(PickledNetwork, None)
    racing = {HEURISTIC: plan, LAYERS: plan}
    inputs = cast(PlanInputs, None)
    found = network._Final(graph, inputs, CPU, pickled, sandbox, 24.0, False)._race(racing)
    assert {name: len(samples) for name, samples in found.items()} == {HEURISTIC: 2, LAYERS: 2}

"""Plans of other machines: compared once, remembered by a file, refused if outputs differ."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrun.graph.build.steps import Arrangement
from fastrun.graph.core.errors import PlanError
from fastrun.graph.core.problems import convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.form import Form
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import carried_out, follow_plan, make_plan
from fastrun.kernels.conv import direct
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC
from fastrun.tuner.networks import first_use
from fastrun.tuner.networks.first_use import verified
from fastrun.tuner.networks.load import load
from fastrun.tuner.networks.outputs import difference
from tests.graph.test_networks_run import residual
from tests.support.graph_models import normal

CPU = Cpu.host()
GRAPH = optimise(load_network(residual()))
FIRST = next(iter(convolutions(GRAPH))).problem
X = {"x": normal(2, 3, 33, 29)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(first_use, "cache_root", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The differences that were computed."""
    found: list[float] = []

    def watched(*outputs: Any) -> float:
        found.append(difference(*outputs))
        return found[-1]

    monkeypatch.setattr(first_use, "difference", watched)
    return found


def made() -> Plan:
    return make_plan(GRAPH, heuristic_choices(CPU), CPU)[0]


def test_a_plan_knows_its_machine_until_it_is_edited() -> None:
    plan = made()
    assert plan.machine == CPU.fingerprint
    assert Plan.parse(str(plan)) == Plan.parse(str(Plan.parse(str(plan))))
    assert Plan.parse(str(plan)).machine == CPU.fingerprint
    lines = str(plan).splitlines()
    for i, line in enumerate(lines[1:], 1):
        new = f"1{line}" if line[0].isdigit() else f"{line}1"
        changed = [*lines[:i], new, *lines[i + 1 :]]
        assert Plan.parse("\n".join(changed)).machine == "", line
    without = [line for line in lines if not line.startswith("machine")]
    assert Plan.parse("\n".join(without)) == replace(Plan.parse(str(plan)), machine="")


def test_a_plan_of_this_machine_is_not_compared(compared: list[float], cache: Path) -> None:
    network = load(residual(), plan=made())
    assert compared == []
    assert not [*cache.iterdir()]
    assert network.run(X)["y"].shape == (2, 10)


def test_a_plan_from_elsewhere_is_compared_once(compared: list[float], tmp_path: Path) -> None:
    replace(made(), machine="another").save(tmp_path / "plan")
    for threads, times in ((1, 1), (1, 1), (2, 2), (1, 2)):
        load(residual(), threads, plan=tmp_path / "plan")
        assert len(compared) == times
    assert max(compared) < 1e-4
    # Expected times do not change what runs. A schedule does.
    text = (tmp_path / "plan").read_text()
    load(residual(), plan=Plan.parse(text.replace("\ntotal\t", "\ntotal\t9")))
    assert len(compared) == 2
    unroll = next(x for x in text.split() if x.startswith("unroll="))
    load(residual(), plan=Plan.parse(text.replace(unroll, "unroll=2,")))
    assert len(compared) == 3


def off_by(share: float) -> tuple[Plan, Arrangement]:
    """The heuristic's plan, with the weights of the last step scaled by 1 + share."""
    plan, arrangement = make_plan(GRAPH, heuristic_choices(CPU), CPU)
    *steps, last = arrangement.steps
    assert last.weights is not None
    assert last.bias is not None
    larger = replace(last, weights=last.weights * (1 + share), bias=last.bias * (1 + share))
    return plan, replace(arrangement, steps=(*steps, larger))


@pytest.mark.parametrize("share", [3e-3, 1.0, np.nan])
def test_what_computes_something_else_is_refused_each_time(share: float, cache: Path) -> None:
    plan, arrangement = off_by(share)
    for _ in range(2):
        with pytest.raises(PlanError, match=r"computes something else .* plan again") as error:
            verified(GRAPH, plan, arrangement, CPU, 1)
        assert "\n" not in str(error.value)
    assert not [*cache.iterdir()]


def test_rounding_is_no_difference(cache: Path) -> None:
    plan, arrangement = off_by(3e-4)
    verified(GRAPH, plan, arrangement, CPU, 1)
    assert len([*(cache / "plans").iterdir()]) == 1


def test_where_nothing_can_be_kept_each_start_compares(compared: list[float], cache: Path) -> None:
    (cache / "plans").write_text("a file in the way")
    for times in (1, 2):
        load(residual(), plan=replace(made(), machine=""))
        assert len(compared) == times


def test_schedules_that_give_way_are_told() -> None:
    plan = made()
    name, form = next(iter(plan.forms.items()))
    greedy = replace(direct.template.heuristic(FIRST, CPU), tile_w=28, cols=9)
    text = direct.template.text(replace(greedy, layout=f"{form.reads[0]}>{form.writes}"))
    forms = {**plan.forms, name: replace(form, algorithm=text)}
    with pytest.warns(UserWarning, match=rf"cannot build .* 1 step \({name}\)") as said:
        network = load(residual(), plan=replace(plan, forms=forms))
    assert len(said) == 1
    assert said[0].filename == __file__
    assert network.plan.forms[name].algorithm != text
    # The plan that was carried out is another plan, which is followed exactly.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = load(residual(), plan=network.plan)
    assert again.plan == network.plan
    assert np.array_equal(again.run(X)["y"], network.run(X)["y"])


def test_carried_out_plans_can_be_followed() -> None:
    """Also where an algorithm stands in whose own layout is another."""
    plan = made()
    name = next(iter(plan.forms))
    usual = direct.template.heuristic(FIRST, CPU)
    for src, dst in ((NCHW, NHWC), (NHWC, NHWC)):
        greedy = replace(usual, layout=f"{src}>{dst}", tile_w=28, cols=9)
        other = Form((src,), dst, direct.template.text(greedy), 0.0)
        asked = replace(plan, forms={**plan.forms, name: other})
        first = follow_plan(GRAPH, asked, CPU)
        done = carried_out(asked, first)
        assert done.forms[name].algorithm != other.algorithm
        assert follow_plan(GRAPH, Plan.parse(str(done)), CPU).ir_hash == first.ir_hash


def test_differences_are_relative_to_the_rms() -> None:
    x = {"y": np.float32([3, -3, 3, -3]), "z": normal(2, 10)}
    assert difference(x, x) == 0
    assert difference(x, x | {"y": x["y"] + np.float32(0.3)}) == pytest.approx(0.1)
    assert difference(x, x | {"y": np.float32([3, -3, 3, 3])}) == pytest.approx(1.0)
    assert difference({}, {}) == 0
    zero = {"y": np.zeros(3, np.float32)}
    assert difference(zero, zero) == 0
    assert difference(zero, {"y": np.float32([0, 1e-30, 0])}) == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_must_be_the_same(value: float) -> None:
    plain = np.arange(6, dtype=np.float32)
    holes = np.where(plain == 3, np.float32(value), plain)
    assert difference({"y": holes}, {"y": holes.copy()}) == 0
    assert difference({"y": holes}, {"y": plain}) == np.inf
    assert difference({"y": plain}, {"y": holes}) == np.inf
    assert difference({"y": holes}, {"y": np.where(plain == 3, np.float32(-value), plain)}) == (
        0 if np.isnan(value) else np.inf
    )
    # Such values do not hide other differences.
    assert difference({"y": holes}, {"y": holes * np.float32(1.1)}) == pytest.approx(0.1)

"""Spaces and what is proposed from them."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrun import options
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.registry import applicable, parse_schedule, templates
from fastrun.main import main
from fastrun.search_spaces.space import Space, space_for
from fastrun.tuner.search.proposer import SAMPLERS, Proposer
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.exits import MISTAKE

P = ConvProblem.parse("conv 1x64x28x28 64x3x3 s1 p1")


@dataclass(frozen=True)
class Pair:
    a: int
    b: int


def product_is_even(s: Pair) -> bool:
    return s.a * s.b % 2 == 0


def make(size: int = 30) -> Space:
    return Space(Pair, {"a": range(size), "b": range(size)}, [product_is_even])


def test_space_enumerates_what_breaks_no_rule() -> None:
    space = make(4)
    assert len(list(space)) == 12
    assert space.volume == 16
    assert space.broken_rule(Pair(1, 3)) == "product_is_even"
    assert space.broken_rule(Pair(1, 2)) is None


@given(st.integers(0, 29), st.integers(0, 29))
def test_points_and_schedules_are_two_names_of_one_thing(a: int, b: int) -> None:
    space = make()
    assert space.point(space.at((a, b))) == (a, b)
    assert space.point(Pair(a, 99)) is None


def test_space_must_name_the_schedule_s_fields() -> None:
    with pytest.raises(TypeError, match="not the schedule's"):
        Space(Pair, {"a": [1]})
    with pytest.raises(TypeError, match="nothing to choose"):
        Space(Pair, {"a": [1], "b": []})


def test_nothing_illegal_and_nothing_twice() -> None:
    proposer = Proposer(make(), seed=1, first=[Pair(3, 4)])
    seen = []
    for _ in range(100):
        schedule = proposer.propose()
        assert schedule is not None
        proposer.tell(schedule, 1e-3 * (1 + abs(schedule.a - 7) + abs(schedule.b - 12)))
        seen.append(schedule)
    assert seen[0] == Pair(3, 4)
    assert len(set(seen)) == len(seen)
    assert all(map(product_is_even, seen))
    assert sum(proposer.rejected.values()) > 0


def test_a_small_space_is_exhausted() -> None:
    proposer = Proposer(make(4), seed=0)
    found = set()
    while (schedule := proposer.propose()) is not None:
        proposer.tell(schedule, None if schedule.a == 2 else 1.0)
        found.add(schedule)
    assert found == set(make(4))


def test_history_is_learnt_and_not_repeated() -> None:
    """As when a killed run is taken up again."""
    history = [Pair(a, b) for a in range(0, 30, 3) for b in range(0, 30, 2)]
    proposer = Proposer(make(), seed=2)
    for s in history:
        proposer.tell(s, 1e-3 * (1 + math.hypot(s.a - 9, s.b - 14)))
    new = [proposer.propose() for _ in range(30)]
    assert not set(new) & set(history)


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_samplers_learn(sampler: str) -> None:
    """Later proposals are better than random ones; the optimum is one point of 900."""

    def seconds(s: Pair) -> float:
        return 1e-3 * (1 + (s.a - 20) ** 2 + (s.b - 8) ** 2)

    proposer = Proposer(make(), seed=3, sampler=sampler)
    values = []
    for _ in range(80):
        schedule = proposer.propose()
        proposer.tell(schedule, seconds(schedule))
        values.append(seconds(schedule))
    anywhere = sorted(map(seconds, make()))
    late = sorted(values[40:60])
    assert late[10] < anywhere[len(anywhere) // 2] / 3
    assert min(values) <= 3e-3  # among the best nine of 675 legal points


PROBLEM = ConvProblem.parse("conv 1x32x14x14 64x3x3 s1 p1 bias relu")


@pytest.mark.parametrize("name", [t.name for t in applicable(PROBLEM, Cpu.host())])
def test_schedule_texts_round_trip(name: str) -> None:
    template, space = templates()[name], space_for(name, PROBLEM, Cpu.host())
    for schedule in [template.heuristic(PROBLEM, Cpu.host()), space.at((0,) * len(space.domains))]:
        assert parse_schedule(template.text(schedule)) == (template, schedule)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("direct", "not a schedule"),
        ("nonsense(a=1)", "unknown algorithm 'nonsense'"),
        ("direct(layout=NHWC)", "direct needs"),
        ("direct(colour=red)", "no field 'colour'"),
        ("naive(layout=NCHW, layout)", "'layout'"),
    ],
)
def test_bad_schedule_texts_are_refused_in_one_line(text: str, named: str) -> None:
    with pytest.raises(ScheduleError) as error:
        parse_schedule(text)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_that_is_offered_runs(sampler: str) -> None:
    """Outcomes are told too, failures among them, so that a method gets beyond its first points."""
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    space = space_for("direct", P, Cpu.host())
    proposer = Proposer(space, 0, sampler=sampler)
    seen = []
    for n in range(40):
        schedule = proposer.propose()
        assert schedule is not None
        assert space.broken_rule(schedule) is None
        seen.append(schedule)
        proposer.tell(schedule, None if n % 7 == 3 else 1e-3 * (1 + n % 5))
    assert len(set(seen)) == len(seen)


def test_what_offers_a_sampler_names_those_that_there_are() -> None:
    assert set(options.SAMPLERS) == set(SAMPLERS)


def test_a_sampler_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    words = ["tune", str(P), "--trials", "1", "--sampler", "cmaes", "--db", str(tmp_path / "a.db")]
    assert main(words) == MISTAKE
    assert "'.[cmaes]'" in capsys.readouterr().err
    with Database(tmp_path / "a.db") as database:
        assert database.records() == []

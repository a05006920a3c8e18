"""Spaces, and the studies that propose from them: by our samplers, Optuna's and anybody's."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler
from optuna.trial import TrialState

from fastrun import options
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.registry import applicable, parse_schedule, templates
from fastrun.main import main
from fastrun.search_spaces.space import Space, space_for
from fastrun.tuner.measure.job import Job, Result
from fastrun.tuner.records.record import Errors, Limits, Outcome
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.errors import SamplerError
from fastrun.tuner.search.fastrun import Summary, fast_run
from fastrun.tuner.search.options import OBJECTIVES, SearchOptions
from fastrun.tuner.search.parameters import Parameters
from fastrun.tuner.search.problem_search import ProblemSearch
from fastrun.tuner.search.sampler_choice import SAMPLERS, Sampler
from fastrun.tuner.search.study import ScheduleStudy
from fastrun.tuner.store.database import Database
from fastrun.tuner.terminal.exits import MISTAKE
from tests.support.records import record
from tests.support.simulated import Clock, SimulatedMeasurer

P = ConvProblem.parse("conv 1x64x28x28 64x3x3 s1 p1")
EVERY = [
    *SAMPLERS, "optuna.samplers.QMCSampler", "optuna.samplers:TPESampler", RandomSampler(seed=1),
    optuna.samplers.BruteForceSampler, lambda seed: NSGAIISampler(population_size=5, seed=seed),
]  # fmt: skip

OF_OPTUNA = [
    *("BruteForceSampler", "CmaEsSampler", "GPSampler", "GridSampler", "NSGAIIISampler"),
    *("NSGAIISampler", "QMCSampler", "RandomSampler", "TPESampler"),
]


@dataclass(frozen=True)
class Pair:
    a: int
    b: int


def product_is_even(s: Pair | Triple) -> bool:
    return s.a * s.b % 2 == 0


def make(size: int = 30) -> Space:
    return Space(Pair, {"a": range(size), "b": range(size)}, [product_is_even])


def needs(sampler: object) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes", reason="the extra `cmaes` is not installed")


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


@pytest.mark.parametrize("name", [t.name for t in applicable(P, Cpu.host())])
def test_parameters_are_positions_in_the_lists_of_fields(name: str) -> None:
    space = space_for(name, P, Cpu.host())
    parameters = Parameters(space)
    for point in ([0] * len(space.domains), [len(d) - 1 for d in space.domains.values()]):
        schedule = space.at(tuple(point))
        params = parameters.of(schedule)
        assert [*params.items()] == [*zip(space.domains, point, strict=True)]
        assert parameters.schedule(params) == schedule
        study = optuna.create_study()
        study.enqueue_trial(params)
        assert study.ask(parameters.distributions).params == params


def test_nothing_illegal_and_nothing_twice() -> None:
    study = ScheduleStudy(make(), seed=1)
    study.enqueue(Pair(3, 4))
    seen = []
    for _ in range(100):
        schedule = study.ask()
        assert schedule is not None
        study.tell(schedule, [1 + abs(schedule.a - 7) + abs(schedule.b - 12)])
        seen.append(schedule)
    assert seen[0] == Pair(3, 4)
    assert len(set(seen)) == len(seen)
    assert all(map(product_is_even, seen))
    assert [Pair(**t.params) for t in study.study.trials] == seen


@pytest.mark.parametrize("sampler", ["gp", "exhaustive", RandomSampler(seed=0)])
def test_a_small_space_is_exhausted(sampler: Sampler) -> None:
    study = ScheduleStudy(make(4), sampler)
    found = set()
    while (schedule := study.ask()) is not None:
        study.tell(schedule, None if schedule.a == 2 else [1.0])
        found.add(schedule)
    assert found == set(make(4))
    study.enqueue(Pair(0, 0))
    assert study.ask() is None  # it was measured


def test_history_is_learnt_and_not_repeated() -> None:
    """As when a killed run is continued."""
    history = [Pair(a, b) for a in range(0, 30, 3) for b in range(0, 30, 2)]
    study = ScheduleStudy(make(), seed=2)
    for s in history:
        study.tell(s, [1 + math.hypot(s.a - 9, s.b - 14)])
    assert len(study.study.trials) == len(history)
    new = [study.ask() for _ in range(30)]
    assert not set(new) & set(history)


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_samplers_learn(sampler: str) -> None:
    """Later proposals are better than random ones; the optimum is one point of 900."""

    def value(s: Pair) -> float:
        return 1.0 + (s.a - 20) ** 2 + (s.b - 8) ** 2

    study = ScheduleStudy(make(), sampler, seed=3)
    values = []
    for _ in range(80):
        schedule = study.ask()
        study.tell(schedule, [value(schedule)])
        values.append(value(schedule))
    anywhere = sorted(map(value, make()))
    late = sorted(values[40:60])
    assert late[10] < anywhere[len(anywhere) // 2] / 3
    assert min(values) <= 3  # among the best nine of 675 legal points


def test_how_trials_end() -> None:
    study = ScheduleStudy(make(), "random")
    study.enqueue(Pair(2, 2))
    first, failed, slow, dropped = (study.ask() for _ in range(4))
    assert {t.state for t in study.study.trials} == {TrialState.RUNNING}
    study.tell(first, [3.0], excess={"error": 1e-6}, about={"schedule": "pair(a=2, b=2)"})
    study.tell(failed, None, about={"reason": "compile: no"})
    study.tell(slow, [9.0], given_up=True)
    study.tell(Pair(4, 4), [2.0], excess={"error": -1e-6})  # measured in another run
    study.tell(Pair(4, 4), [1.0])  # again, by a race
    study.close()
    trials = study.study.trials
    assert [t.state.name for t in trials] == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "COMPLETE"]
    assert [t.value for t in trials] == [3.0, None, 9.0, None, 2.0]
    assert trials[0].system_attrs["fixed_params"] == {"a": 2, "b": 2}
    assert trials[0].user_attrs == {"schedule": "pair(a=2, b=2)"}
    assert trials[1].user_attrs == {"reason": "compile: no"}
    assert trials[2].intermediate_values == {0: 9.0}
    assert study.study.best_trial.number == 4  # the first breaks a limit
    assert Pair(**trials[3].params) == dropped


def test_optuna_analyses_the_study() -> None:
    study = ScheduleStudy(make(), "random", seed=1)
    for _ in range(60):
        schedule = study.ask()
        study.tell(schedule, [1.0 + (schedule.a - 20) ** 2 + 0.1 * schedule.b])
    importances = optuna.importance.get_param_importances(study.study)
    assert importances["a"] > 3 * importances["b"]
    assert list(study.study.trials_dataframe()["params_a"]) == [
        t.params["a"] for t in study.study.trials
    ]


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


@pytest.mark.parametrize("sampler", EVERY)
def test_every_sampler_runs(sampler: Sampler) -> None:
    """Outcomes are told too, failures among them, so that a method gets beyond its first points."""
    needs(sampler)
    space = space_for("direct", P, Cpu.host())
    study = ScheduleStudy(space, sampler)
    seen = []
    for n in range(40):
        schedule = study.ask()
        assert schedule is not None
        assert space.broken_rule(schedule) is None
        seen.append(schedule)
        study.tell(schedule, None if n % 7 == 3 else [1.0 + n % 5], given_up=n % 5 == 4)
    assert len(set(seen)) == len(seen)


@dataclass(frozen=True)
class Triple:
    a: int
    only: str
    b: int


@pytest.mark.parametrize("name", OF_OPTUNA)
def test_fields_of_a_single_value_hinder_no_sampler_of_optuna(name: str) -> None:
    """Some compare the parameters of trials; others want the values of all before they begin."""
    extra = {"CmaEsSampler": "cmaes", "GPSampler": "torch", "QMCSampler": "scipy"}
    if name in extra:
        pytest.importorskip(extra[name])
    space = Space(Triple, {"a": range(9), "only": ["x"], "b": range(9)}, [product_is_even])
    study = ScheduleStudy(space, f"optuna.samplers.{name}")
    study.enqueue(Triple(2, "x", 3))
    seen = []
    while (schedule := study.ask()) is not None and len(seen) < 25:
        seen.append(schedule)
        study.tell(schedule, [1.0 + abs(schedule.a - 4) + schedule.b])
    assert seen[0] == Triple(2, "x", 3)
    assert len(set(seen)) == len(seen) == 25
    assert all(map(product_is_even, seen))


def test_a_grid_or_brute_force_ends_with_the_space() -> None:
    space = Space(Triple, {"a": range(4), "only": ["x"], "b": range(3)})
    for name in ("BruteForceSampler", "GridSampler"):
        study = ScheduleStudy(space, f"optuna.samplers.{name}")
        found = []
        while (schedule := study.ask()) is not None:
            study.tell(schedule, [1.0])
            found.append(schedule)
        assert sorted(found, key=space.point) == list(space)


def test_what_offers_a_sampler_names_those_that_there_are() -> None:
    assert set(options.SAMPLERS) == set(SAMPLERS)
    assert set(options.OBJECTIVES) == set(OBJECTIVES)


class Counting(RandomSampler):
    """Counts its proposals."""

    proposals = 0

    def sample_independent(self, *args: Any) -> Any:
        self.proposals += 1
        return super().sample_independent(*args)


def test_a_sampler_object_is_copied_for_each_study() -> None:
    mine = Counting(seed=7)
    made = [ScheduleStudy(make(), mine) for _ in range(2)]
    first, second = ([study.ask() for _ in range(5)] for study in made)
    assert first == second  # the copies have the same seed
    assert mine.proposals == 0


def test_a_class_or_function_is_called_with_what_it_asks_for() -> None:
    class Seeded(Counting):
        def __init__(self, seed: int) -> None:
            super().__init__(seed=seed)

    def function(untried: Any) -> BaseSampler:
        assert untried.space.volume == 900
        return Counting(seed=4)

    asked = [ScheduleStudy(make(), x, seed=s).ask() for x, s in ((Seeded, 4), (function, 5))]
    assert asked[0] == asked[1] == ScheduleStudy(make(), Counting(seed=4)).ask()


class Broken(RandomSampler):
    """Fails after some proposals."""

    def sample_relative(self, study: optuna.Study, trial: Any, search_space: Any) -> dict[str, Any]:
        if len(study.trials) > 5:
            raise ZeroDivisionError("one over\nnothing")
        return {}


class Outside(RandomSampler):
    """Proposes what the space has not."""

    def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
        return "a stranger"


def function_without_a_sampler() -> int:
    return 3


HERE = "tests.tuner.search.test_study"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "says"),
    [
        (f"{HERE}:Broken", "the sampler Broken failed: ZeroDivisionError: one over nothing\n"),
        (f"{HERE}.Outside", "which is not in"),
        (f"{HERE}:function_without_a_sampler", "is no sampler of Optuna"),
        (f"{HERE}.nobody", "has no attribute 'nobody'"),
        ("nowhere.at:all", "No module named 'nowhere'"),
        ("optuna.samplers.PartialFixedSampler", "makes no sampler: "),
        ("optuna.samplers.NSGAIISampler:x", "no sampler"),
        ("best", "no sampler 'best'"),
    ],
)
def test_a_bad_sampler_is_one_line(
    sampler: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    try:
        # Time enough for a proposal, on a busy machine too.
        budget = ("--seconds", "100")
        code = main(["tune", str(P), "--sampler", sampler, "--db", str(tmp_path / "a.db"), *budget])
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert code == MISTAKE
    assert says in error
    assert "Traceback" not in error


def test_what_a_sampler_that_fails_has_found_is_stored(tmp_path: Path) -> None:
    with pytest.raises(SamplerError, match="the sampler Broken failed"):
        tuned(tmp_path / "a.db", Broken)
    assert proposals(tmp_path / "a.db")


def test_modules_of_the_current_folder_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import optuna\nsampler = optuna.samplers.RandomSampler(seed=3)\n"
    (tmp_path / "a_module_of_mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = ScheduleStudy(make(), "a_module_of_mine:sampler").ask()
    assert found == ScheduleStudy(make(), RandomSampler(seed=3)).ask()


def test_a_sampler_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    words = ["tune", str(P), "--trials", "1", "--sampler", "cmaes", "--db", str(tmp_path / "a.db")]
    assert main(words) == MISTAKE
    assert "'.[cmaes]'" in capsys.readouterr().err
    with Database(tmp_path / "a.db") as database:
        assert database.records() == []


def tuned(path: Path, sampler: Sampler, seed: int = 0, **about: Any) -> Summary:
    with Database(path) as database:
        return fast_run(
            [(P, 1)], database, Budget(trials=24), sampler=sampler,
            options=SearchOptions(seed=seed, **about), measurer=SimulatedMeasurer(Clock()),
        )  # fmt: skip


def proposals(path: Path) -> list[str]:
    with Database(path) as database:
        return [r.schedule for r in database.records(stage="screen")]


@pytest.mark.parametrize("sampler", EVERY)
def test_the_same_seed_gives_the_same_trials(sampler: Sampler, tmp_path: Path) -> None:
    """Where measurements are the same, also for a search that continues from a database."""
    needs(sampler)
    first, second = tmp_path / "1.db", tmp_path / "2.db"
    tuned(first, sampler)
    shutil.copy(first, tmp_path / "3.db")
    tuned(second, sampler)
    assert proposals(first) == proposals(second)
    assert len(proposals(first)) == 24
    for path in (second, tmp_path / "3.db"):
        tuned(path, sampler, seed=1)
    assert proposals(second) == proposals(tmp_path / "3.db")
    assert len(set(proposals(second))) == 48


def test_two_objectives(tmp_path: Path) -> None:
    nsga = NSGAIISampler(population_size=6, seed=1)
    summary = tuned(tmp_path / "a.db", nsga, objectives=("time", "error"), algorithms=["direct"])
    study = summary.searches[0].studies["direct"]
    assert study.metric_names == ["ms per call", "rms error"]
    finished = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert len(finished) >= 20
    assert all(len(t.values) == 2 for t in finished)
    assert study.best_trials
    generations = {t.system_attrs.get("NSGAIISampler:generation") for t in finished}
    assert len(generations) > 1
    with pytest.raises(SamplerError, match="minimises one value"):
        tuned(tmp_path / "b.db", "gp", objectives=("time", "error"))


def test_the_studies_of_a_search_say_what_the_records_say() -> None:
    asked = SearchOptions(limits=Limits(error=1e-6, workspace=100), algorithms=["direct"])
    search = ProblemSearch(P, 1, Cpu.host(), options=asked)
    template = search.arms["direct"].template
    errors = Errors(3e-6, 3e-6, 0.0)
    for n, made in enumerate(
        (
            {"samples": (2e-3,), "workspace": 99},
            {"samples": (1e-3,), "errors": errors},
            {"samples": (), "outcome": Outcome.COMPILE, "reason": "no", "errors": None},
        )
    ):
        trial = search.propose(lambda problem, algorithm: False)
        assert trial is not None
        assert trial.text == template.text(trial.schedule)
        search.tell(record(problem=str(P), schedule=trial.text, **made), trial)
        assert len(search.studies["direct"].trials) == n + 1
    good, wrong, failed = search.studies["direct"].trials
    assert good.value == pytest.approx(2.0)
    assert good.constraints == {"error": pytest.approx(-9e-7), "workspace": -1.0}
    assert wrong.constraints["error"] == pytest.approx(2e-6)
    assert search.studies["direct"].best_trial.number == good.number
    assert search.incumbent is not None
    assert search.incumbent.seconds_per_call == 2e-3
    assert failed.user_attrs["reason"] == "compile: no"
    assert set(search.studies) == {"direct"}


def test_what_was_given_up_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measurer = SimulatedMeasurer(Clock())
    timed = measurer.sandbox._timed

    def impatient(job: Job, rounds: int) -> Result:
        return replace(timed(job, rounds), complete="unroll=4" not in job.program.schedule)

    monkeypatch.setattr(measurer.sandbox, "_timed", impatient)
    with Database(tmp_path / "a.db") as database:
        asked = SearchOptions(algorithms=["direct(unroll=2|4)"])
        budget = Budget(trials=12)
        summary = fast_run([(P, 1)], database, budget, options=asked, measurer=measurer)
    trials = summary.searches[0].studies["direct"].trials
    assert {t.params["unroll"]: t.state for t in trials} == {
        0: TrialState.COMPLETE,
        1: TrialState.PRUNED,
    }
    assert all(t.value is not None for t in trials)
    assert summary.searches[0].studies["direct"].user_attrs["unroll"] == [2, 4]

"""Policies of `fastrun.load`; one warning if a database cannot be used."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrun.graph.core.problems import convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import make_plan
from fastrun.kernels.conv import direct
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.tuner.networks import stored_plans as plans
from fastrun.tuner.networks.load import POLICIES, load
from fastrun.tuner.networks.measured_choices import guessed_choices
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import NO_LIMITS
from fastrun.tuner.store.database import Database
from tests.graph.test_networks_run import residual
from tests.graph.test_quantised_models import UNFIT, layer
from tests.support.graph_models import normal
from tests.support.records import record

CPU = Cpu.host()
X = {"x": normal(2, 3, 33, 29)}
OLD = f"{toolchain().partition(',')[0]}, kernels of yesterday"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with Database(tmp_path / "records.db") as database:
        for p in problems():
            database.add(measured(p))
    return tmp_path / "records.db"


def problems() -> list[ConvProblem]:
    return [x.problem for x in convolutions(optimise(load_network(residual())))]


def measured(p: ConvProblem, **fields: Any) -> Any:
    """A record of a schedule that is not the heuristic's, and is fast."""
    rows = 1 + (direct.template.heuristic(p, CPU).rows == 1)
    schedule = direct.template.heuristic(p, CPU)
    schedule = type(schedule)(**{**vars(schedule), "rows": rows})
    usual: dict[str, Any] = {
        "problem": str(p),
        "schedule": direct.template.text(schedule),
        "machine": CPU.fingerprint,
        "toolchain": toolchain(),
        "ir_hash": direct.template.program(p, schedule, CPU).ir_hash,
        "samples": (1e-9,) * 3,
    }
    return record(**(usual | fields))


def algorithms(plan: Plan) -> list[str]:
    return [form.algorithm for form in plan.forms.values()]


def loaded(**options: Any) -> tuple[Any, list[str]]:
    """The network, and the warnings of loading it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        network = load(residual(), **options)
    assert {w.filename for w in said} <= {__file__}
    return network, [str(w.message) for w in said]


def test_cached_uses_what_was_measured_without_a_word(path: Path) -> None:
    network, said = loaded(database=path)
    assert said == []
    assert {measured(p).schedule for p in problems()} <= {*algorithms(network.plan)}


def test_heuristic_looks_at_no_database(path: Path, tmp_path: Path) -> None:
    for database in (path, tmp_path / "missing.db"):
        network, said = loaded(database=database, policy="heuristic")
        assert said == []
        assert not {measured(p).schedule for p in problems()} <= {*algorithms(network.plan)}


def test_profile_tunes_what_is_missing_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def tune(graph: Any, store: Database, threads: int, seconds: float, limits: Any) -> None:
        asked.append(seconds)
        for p in problems():
            store.add(measured(p))

    monkeypatch.setattr("fastrun.tuner.networks.tune.tune_network", tune)
    path = tmp_path / "new.db"
    network, said = loaded(database=path, policy="profile", seconds=7.0)
    assert (asked, said) == ([7.0], [])
    assert {measured(p).schedule for p in problems()} <= {*algorithms(network.plan)}
    graph = optimise(load_network(residual()))
    kept = make_plan(graph, guessed_choices(CPU, 1, NO_LIMITS), CPU)
    monkeypatch.setattr(plans, "stored_plan", lambda *_: kept)
    assert loaded(database=path, policy="profile")[0].plan == kept[0]
    assert asked == [7.0]


def missing(path: Path, stack: ExitStack) -> None:
    path.unlink()


def unreadable(path: Path, stack: ExitStack) -> None:
    path.write_bytes(b"not a database, " * 99)


def truncated(path: Path, stack: ExitStack) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def a_folder(path: Path, stack: ExitStack) -> None:
    path.unlink()
    path.mkdir()


def newer(path: Path, stack: ExitStack) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = '99'")


def locked(path: Path, stack: ExitStack) -> None:
    holder = stack.enter_context(closing(sqlite3.connect(path)))
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("UPDATE meta SET value = value")


def stale(path: Path, stack: ExitStack) -> None:
    path.unlink()
    with Database(path) as database:
        for p in problems():
            database.add(measured(p, toolchain=OLD, ir_hash="0" * 32))


def elsewhere(path: Path, stack: ExitStack) -> None:
    path.unlink()
    with Database(path) as database:
        for p in problems():
            database.add(measured(p, machine="another"))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("own", [False, True], ids=["given", "default"])
@pytest.mark.parametrize(
    "spoil", [missing, unreadable, truncated, a_folder, newer, locked, stale, elsewhere]
)
def test_no_database_keeps_a_network_from_running(
    spoil: Callable[[Path, ExitStack], None],
    own: bool,
    path: Path,
    stack: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastrun.tuner.networks.load._LOCK_SECONDS", 0.05)
    if own:
        monkeypatch.setenv("FASTRUN_CACHE", str(path.parent))
        path = path.rename(path.with_name("fastrun.db"))
    spoil(path, stack)
    network, said = loaded(**({} if own else {"database": path}))
    (line,) = said
    assert "heuristic" in line
    assert "\n" not in line
    expected = load(residual(), policy="heuristic")
    assert algorithms(network.plan) == algorithms(expected.plan)
    np.testing.assert_array_equal(network.run(X)["y"], expected.run(X)["y"])


@pytest.mark.parametrize("spoil", [None, stale, truncated])
def test_what_loading_opens_it_closes(
    spoil: Callable[[Path, ExitStack], None] | None, path: Path, stack: ExitStack
) -> None:
    """A Database that was passed stays open."""
    if spoil:
        spoil(path, stack)
    loaded(database=path)
    held = {os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}
    assert not {name for name in held if name.startswith(str(path))}


def test_a_database_of_the_caller_stays_open(path: Path) -> None:
    with Database(path) as database:
        loaded(database=database)
        assert database.info().records == len(problems())


def test_layers_that_lack_are_counted(path: Path, tmp_path: Path) -> None:
    first, *_ = problems()
    with Database(tmp_path / "part.db") as database:
        # Another layout of this layer could save less than this in the others.
        database.add(measured(first, samples=(1e-3,) * 3))
    network, (line,) = loaded(database=tmp_path / "part.db")
    assert f"{len(problems()) - 1} of {len(problems())} convolutions" in line
    assert measured(first).schedule in algorithms(network.plan)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("threads", [-1, 0, 3])
def test_each_thread_has_a_core(
    threads: int, policy: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cores are those of the affinity mask; whether a plan is given changes nothing."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3, 5})
    reason = f"{threads} threads, but this process may use 2 cores"
    for plan in (None, path.parent / "no.plan"):
        with pytest.raises(ValueError, match=reason):
            load(residual(), threads, path, policy, plan=plan)


def test_a_layer_that_stays_in_float_is_named_before_anything_runs() -> None:
    with pytest.warns(UserWarning, match=r"node 'conv' \(Conv\) runs in float32: .* axis 1"):
        load(layer(**UNFIT["another axis"]), policy="heuristic")

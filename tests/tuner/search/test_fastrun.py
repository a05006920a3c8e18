"""Fast-Run end to end on tiny problems: outcomes stored, nothing repeated, interrupts in order."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import heuristic_choice
from fastrun.tuner.measure.measurer import Measurer
from fastrun.tuner.measure.races import FINAL
from fastrun.tuner.records.record import PROTOCOL, Conditions, Limits, Outcome, Stage
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import fast_run
from fastrun.tuner.search.options import SearchOptions
from fastrun.tuner.search.problem_search import ProblemSearch, next_search, related
from fastrun.tuner.search.progress import Progress
from fastrun.tuner.store.database import Database
from tests.support.commands import short_finals
from tests.support.forking import interruptible
from tests.support.records import record

pytestmark = pytest.mark.slow

TINY = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1 bias relu")
OTHER = ConvProblem.parse("conv 1x16x8x8 32x1x1 s1 p0 bias")


def test_every_outcome_is_stored_and_the_best_is_found(tmp_path: Path) -> None:
    seen: list[Progress] = []
    with Database(tmp_path / "records.db") as database:
        summary = fast_run(
            [(TINY, 2), (OTHER, 1)], database, Budget(trials=14), observe=seen.append
        )
        records = database.records()
        (run,) = database.runs()
        machine = Cpu.host().fingerprint
        best = database.best(TINY, Conditions(machine))
    assert summary.trials == 28
    assert not summary.interrupted
    assert len([r for r in records if r.stage == "screen"]) == 28
    assert {r.run for r in records} == {summary.run}
    assert {r.protocol for r in records} == {PROTOCOL}
    assert (run.name, run.seed, run.sampler) == (summary.run, 0, "gp")
    assert run.command.startswith("fast_run(2 problems, Budget(")
    assert all(stage in run.timing for stage in Stage)
    assert seen[-1].stage == "done"
    finals = [r for r in records if r.stage == "final" and r.problem == str(TINY)]
    assert len(finals) >= 2
    assert best in finals
    assert best.errors is not None
    assert best.errors.max < 1e-4
    naive = [r for r in records if r.algorithm == "naive" and r.problem == str(TINY)]
    assert [r.stage for r in naive] == ["screen", "final"]
    assert naive[0].baseline
    assert {"screen", "final"} <= {r.stage for r in records}
    timed = [r for r in finals if not r.baseline]
    assert {len(r.samples) for r in timed} == {FINAL.processes * FINAL.rounds}
    assert all(r.noise is not None for r in timed)
    template, schedule = heuristic_choice(TINY, Cpu.host())
    heuristics = [r for r in records if r.heuristic and r.problem == str(TINY)]
    assert {r.schedule for r in heuristics} == {template.text(schedule)}


def test_the_final_may_be_raced_in_both_regimes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_finals(monkeypatch)
    with Database(tmp_path / "records.db") as database:
        options = SearchOptions(also=["cold-weights"])
        summary = fast_run([(TINY, 1)], database, Budget(trials=4), options=options)
        hot, cold = (
            {r.schedule for r in database.records(run=summary.run, regime=regime, stage="final")}
            for regime in ("hot", "cold-weights")
        )
        other = database.records(regime="cold-weights", stage="screen")
    assert hot == cold
    assert len(hot) >= 2
    assert other == []


def test_without_baselines_only_rivals_are_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_finals(monkeypatch)
    with Database(tmp_path / "records.db") as database:
        options = SearchOptions(baselines=False)
        summary = fast_run([(TINY, 1)], database, Budget(trials=1), options=options)
        records = database.records(run=summary.run)
    assert [r.stage for r in records] == ["screen"]
    assert not records[0].baseline


def test_a_second_run_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_finals(monkeypatch)
    with Database(tmp_path / "records.db") as database:
        options = SearchOptions(algorithms=["direct"])
        fast_run([(TINY, 1)], database, Budget(trials=8), options=options)
        before = {r.schedule for r in database.records(stage="screen")}
        summary = fast_run([(TINY, 1)], database, Budget(trials=6), options=options)
        again = [r for r in database.records(stage="screen") if r.run == summary.run]
    assert summary.known >= 8
    assert len(again) == 6
    assert not before & {r.schedule for r in again}


def test_failures_are_outcomes(tmp_path: Path) -> None:
    """An error limit nobody can meet: everything is refused, recorded, and the run ends well."""
    from fastrun.tuner.measure.job import ProcessLimits

    strict = ProcessLimits(error=1e-30)
    with Database(tmp_path / "records.db") as database:
        measurer = Measurer(limits=strict)
        summary = fast_run([(TINY, 1)], database, Budget(trials=6), measurer=measurer)
        outcomes = {r.outcome for r in database.records()}
        assert database.best(TINY, Conditions.here()) is None
    assert summary.trials == 6
    assert outcomes <= {Outcome.CORRECTNESS, Outcome.CONSTRAINTS}
    assert Outcome.CORRECTNESS in outcomes


def test_what_errs_too_much_cannot_win(tmp_path: Path) -> None:
    """Winograd with large tiles is fastest here; it is recorded, and does not lead."""
    p = ConvProblem.parse("conv 1x64x28x28 64x3x3 s1 p1")
    with Database(tmp_path / "records.db") as database:
        summary = fast_run(
            [(p, 1)], database, Budget(trials=8),
            options=SearchOptions(algorithms=["winograd"], limits=Limits(error=1e-9)),
        )  # fmt: skip
        errors = [r.errors.rms for r in database.records() if r.errors]
    assert min(errors) > 1e-9
    assert summary.searches[0].incumbent is None


def start(folder: Path) -> subprocess.Popen[str]:
    script = folder / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        from fastrun.kernels.core.problem import ConvProblem
        from fastrun.tuner.store.database import Database
        from fastrun.tuner.search.budget import Budget
        from fastrun.tuner.search.fastrun import fast_run

        with Database({str(folder / "records.db")!r}) as database:
            summary = fast_run(
                [(ConvProblem.parse({str(TINY)!r}), 1)], database, Budget(seconds=120),
                observe=lambda p: print(p.trials, flush=True),
            )
        print("interrupted", summary.interrupted, flush=True)
        """)
    )
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
        preexec_fn=interruptible,
    )


def wait_for_trials(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= count:
            return
    pytest.fail(f"ended early: {process.stderr.read() if process.stderr else ''}")


def test_interrupt_ends_in_order(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole process group, workers included, as in a terminal; twice."""
    process = start(tmp_path)
    wait_for_trials(process, 5)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert "in fast_run" not in err, err
    # The second signal may come when the run has ended, and then ends the script.
    if process.returncode != -signal.SIGINT:
        assert process.returncode == 0
        assert "interrupted True" in out, err
        assert "Traceback" not in err
    with Database(tmp_path / "records.db") as database:
        assert len(database.records()) >= 5


def test_a_killed_run_loses_nothing_and_leaves_nobody(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for_trials(process, 5)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 300
    while _group_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _group_alive(process.pid), "workers outlive a killed run"
    with Database(tmp_path / "records.db") as database:
        stored = database.records()
        assert len(stored) >= 5
        summary = fast_run([(TINY, 1)], database, Budget(trials=3))
        assert summary.known == len(stored)
        assert len({(r.schedule, r.stage) for r in database.records(stage="screen")}) == len(
            database.records(stage="screen")
        )


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_scheduler_goes_where_time_is(tmp_path: Path) -> None:
    slow, fast = (ProblemSearch(p, 1, Cpu.host()) for p in (TINY, OTHER))
    assert next_search([slow, fast]) is slow  # untried ones in order
    slow.history[:] = [1.0] * 10
    fast.history[:] = [0.1] * 10
    assert next_search([slow, fast]) is slow
    slow.history[:] = [1.0] * 500
    assert next_search([slow, fast]) is fast  # it has been tried long enough


def test_related_problems() -> None:
    other = ConvProblem.parse("conv 1x64x56x56 64x3x3 s1 p1")
    assert related(TINY, other)
    assert not related(TINY, OTHER)


def test_an_incumbent_is_tried_in_its_other_layouts() -> None:
    search = ProblemSearch(TINY, 1, Cpu.host(), options=SearchOptions(algorithms=["direct"]))
    direct = search.arms["direct"].study.space
    incumbent = next(s for s in direct if s.layout == "NHWC" and s.unroll == 4)
    text = search.arms["direct"].template.text(incumbent)
    search.tell(record(problem=str(TINY), schedule=text))
    search.spread()
    siblings = {replace(incumbent, layout=layout) for layout in direct.domains["layout"]}
    legal = [s for s in siblings - {incumbent} if direct.broken_rule(s) is None]
    proposed = [search.arms["direct"].study.ask() for _ in range(1 + len(legal))]
    assert set(proposed[1:]) == set(legal)  # after the heuristic
    assert legal

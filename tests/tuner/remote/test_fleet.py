"""Other machines: two workers on this machine; one is killed during its work."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.main import main
from fastrun.tuner.machine.probe import probe
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import Outcome
from fastrun.tuner.search.budget import Budget
from fastrun.tuner.search.fastrun import Progress, fast_run
from fastrun.tuner.store.database import Database

pytest.importorskip("distributed", reason="the extra `distributed` is not installed")

from distributed import KilledWorker, LocalCluster

from fastrun.tuner.remote.fleet import Fleet, _Remote, choose
from fastrun.tuner.remote.station import Station
from tests.support.commands import short_finals
from tests.support.forking import interruptible

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TINY = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1 bias relu")
OTHER = ConvProblem.parse("conv 1x16x8x8 32x1x1 s1 p0 bias")


def start_worker(address: str, number: int) -> subprocess.Popen[str]:
    """A worker on its own core, if there are enough cores."""
    cores = sorted(os.sched_getaffinity(0))

    def begin() -> None:
        os.sched_setaffinity(0, {cores[number % len(cores)]})
        interruptible()

    return subprocess.Popen(
        [sys.executable, "-m", "fastrun", "worker", address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        start_new_session=True,
        preexec_fn=begin,
    )  # fmt: skip


def group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def address() -> Iterator[str]:
    with LocalCluster(n_workers=0, dashboard_address=None, silence_logs=50) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def workers(address: str) -> Iterator[list[subprocess.Popen[str]]]:
    started = [start_worker(address, number) for number in range(2)]
    for worker in started:
        assert worker.stdout
        assert "measuring for" in worker.stdout.readline()
    yield started
    for worker in started:
        worker.kill()
        worker.wait()


def test_two_workers_and_the_death_of_one(
    address: str,
    workers: list[subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short_finals(monkeypatch)
    told = []

    def observe(progress: Progress) -> None:
        told.append(progress)
        if len(told) == 5:
            workers[0].kill()
            workers[0].wait()

    with Database(tmp_path / "one.db") as database:
        summary = fast_run(
            [(TINY, 1), (OTHER, 2)], database, Budget(trials=6), observe=observe,
            measurer=Fleet(address),
        )  # fmt: skip
        records = database.records()
        environments = database.environments(summary.run)
    screened = [r for r in records if r.stage == "screen"]
    assert summary.trials == len(screened) == 12
    assert len({(r.problem, r.schedule) for r in screened}) == 12
    assert {r.machine for r in records} == {Cpu.host().fingerprint}
    assert {r.outcome for r in records} <= {Outcome.CORRECT, Outcome.CONSTRAINTS}
    finals = [r for r in records if r.stage == "final"]
    assert {r.problem for r in finals} == {str(TINY), str(OTHER)}
    assert all(len(r.samples) >= 3 for r in finals)
    assert 1 <= len(environments) <= 2  # the killed worker may not have answered
    assert {e.machine for e in environments} == {Cpu.host().fingerprint}
    assert workers[1].poll() is None
    deadline = time.monotonic() + 300
    while group_alive(workers[0].pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_alive(workers[0].pid), "its processes outlive a killed worker"


def station(threads: int = 1, **cpu: str) -> Station:
    report = replace(probe(), time="2026-01-01T00:00:00+00:00")
    return Station(replace(Cpu.host(), **cpu), threads, toolchain(), report)


def test_the_kind_of_machine_is_chosen() -> None:
    here, board = station(threads=4), station(model="a board")
    assert choose([here], 1) is here
    assert choose([station(), here], 4) is here
    assert choose([here, board], 1, board.cpu.fingerprint[:6]) is board
    other = replace(here, toolchain="llvm 1.0.0, kernels 0ld")
    assert choose([other, board], 1) is board
    for stations, threads, machine, words in (
        ([here, board], 1, None, "--machine: .* a board"),
        ([here, board], 1, "nothing like it", "--machine"),
        ([here], 5, None, "--threads-per-trial 5"),
        ([other], 1, None, "llvm 1.0.0, kernels 0ld, here is"),
    ):
        with pytest.raises(ConnectionError, match=words):
            choose(stations, threads, machine)


def test_a_candidate_that_no_worker_survives_has_failed() -> None:
    """The scheduler gives it up after some workers have died, and the run continues."""

    class Scheduler:
        def submit(self, *_: object, **__: object) -> Scheduler:
            return self

        def result(self) -> None:
            raise KilledWorker("measure", None, allowed_failures=3)

    with _Remote(Scheduler(), {}, 1, "run") as remote:
        (result,) = remote.submit_all([None]).result(timeout=300)
    assert (result.outcome, result.reason) == (Outcome.RUNTIME, "4 workers died of it")


def test_other_machines_by_the_command_line(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ["tune", str(TINY), "--trials", "3", "--db", str(tmp_path / "one.db")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastrun.tuner.remote.station.CONNECT_SECONDS", 0.5)
        assert main([*tune, "--workers", address]) == 2
        assert f"start `fastrun worker {address}`" in capsys.readouterr().err
        assert main([*tune, "--workers", "tcp://127.0.0.1:1"]) == 2
        assert "`dask scheduler`" in capsys.readouterr().err
        assert main(["worker", "tcp://127.0.0.1:1"]) == 2
        assert "`dask scheduler`" in capsys.readouterr().err
    worker = start_worker(address, 0)
    try:
        assert worker.stdout
        worker.stdout.readline()
        assert main([*tune, "--workers", address, "--threads", "99"]) == 2
        assert "--threads-per-trial 99" in capsys.readouterr().err
        assert main([*tune, "--workers", address]) == 0
        assert re.search(
            rf"^{TINY} .*(faster|slower|tie|heuristic|unsure|not searched)",
            capsys.readouterr().out,
            re.M,
        )
        worker.send_signal(signal.SIGINT)
        out, err = worker.communicate(timeout=300)
        assert worker.returncode == 0, err
        assert "ended" in out
        assert "Traceback" not in err
    finally:
        worker.kill()

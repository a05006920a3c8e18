"""Exceptions by signal handlers, at every moment of a run: the next run returns, and is right.

FASTRUN_TEST_SCALE multiplies the number of interrupts at random moments.
"""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

from fastrun.graph.runtime import context, executable
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.core import forks
from fastrun.kernels.native import runner, team
from fastrun.tuner.networks.load import load
from tests.support.forking import child, code
from tests.support.graph_models import model, node, normal

SCALE = int(os.environ.get("FASTRUN_TEST_SCALE", "1"))
ROOT = Path(__file__).parents[2]
THREADS = (1, 2)
X, OTHER = normal(1, 4, 16, 16), normal(1, 4, 16, 16, seed=1)
MODEL = model(
    [node("Conv", "x a", "1", pads=[1] * 4), node("Conv", "1 b", "y", pads=[1] * 4)],
    {"a": normal(16, 4, 3, 3), "b": normal(8, 16, 3, 3)},
    shape=X.shape,
)


class Interrupt(BaseException):
    pass


def loaded(threads: int) -> Executable:
    return load(MODEL, threads, policy="heuristic")


def run(executable: Executable, x: np.ndarray = X) -> np.ndarray:
    return executable.run({"x": x})["y"]


class Interrupter:
    """Raises at the n-th moment at which Python would call a signal handler in a run.

    Those are the starts of functions and the returns from native ones.
    """

    FILES = frozenset(
        module.__file__ for module in (runner, team, executable, context, forks, threading)
    )

    def __init__(self) -> None:
        self._left = 0
        lead, self._serve = team._driver()

        def led(team: int, job: int) -> int:
            nanoseconds = lead(team, job)
            self._moment()
            return nanoseconds

        self._driver = led, self._serve

    def driver(self) -> tuple[Callable[..., int], Callable[..., None]]:
        return self._driver

    def at(self, moment: int, work: Callable[[], object]) -> bool:
        """Do the work but for an exception at this moment; whether there was one."""
        self._left = moment
        sys.setprofile(self._look)
        try:
            work()
        except Interrupt:
            return True
        finally:
            sys.setprofile(None)
            self._left = 0
        return False

    def _look(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename in self.FILES:
            self._moment()

    def _moment(self) -> None:
        self._left -= 1
        if self._left == 0:
            sys.setprofile(None)
            raise Interrupt


def _disbanded() -> None:
    for key in list(team.teams):
        team.teams.pop(key).disband()


@pytest.fixture
def interrupter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupter]:
    made = Interrupter()
    monkeypatch.setattr(team, "_driver", made.driver)
    _disbanded()
    yield made
    _disbanded()


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("founds", [False, True])
def test_an_exception_at_every_moment_of_a_run(
    interrupter: Interrupter, threads: int, founds: bool
) -> None:
    executable = loaded(threads)
    expected = run(executable)
    found = list[np.ndarray]()

    def moments() -> bool:
        moment = 0
        while True:
            moment += 1
            if founds:
                _disbanded()
            if not interrupter.at(moment, lambda: run(executable, OTHER)):
                return moment > 20
            # Neither this thread nor another waits for what was interrupted.
            other = threading.Thread(target=lambda: found.append(run(executable)))
            other.start()
            other.join()
            if not (
                np.array_equal(found.pop(), expected) and np.array_equal(run(executable), expected)
            ):
                return False

    # In a child, as what hangs in native code cannot be stopped otherwise.
    assert code(child(moments)) == 0


@pytest.mark.parametrize("threads", THREADS)
def test_signals_at_random_moments(threads: int) -> None:
    executable = loaded(threads)
    expected = run(executable)

    def handler(signum: int, frame: FrameType | None) -> None:
        raise Interrupt

    def interrupted() -> bool:
        gc.disable()  # Python drops an exception in a callback of the garbage collector
        signal.signal(signal.SIGALRM, handler)
        draw = random.Random(threads)
        for _ in range(300 * SCALE):
            try:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 4e-4))
                while True:
                    run(executable, OTHER)
            except Interrupt:
                pass
            if not np.array_equal(run(executable), expected):
                return False
        return True

    assert code(child(interrupted)) == 0


def test_a_signal_handler_runs_a_clone_but_not_what_it_interrupts() -> None:
    executable = loaded(2)
    clone, expected = executable.clone(), run(executable)
    said = list[str]()

    def handler(signum: int, frame: FrameType | None) -> None:
        if not np.array_equal(run(clone), expected):
            said.append("wrong")
        try:
            run(executable, OTHER)
        except RuntimeError as error:
            said.append(str(error))

    def interrupted() -> bool:
        signal.signal(signal.SIGALRM, handler)
        right = True
        while not said:
            signal.setitimer(signal.ITIMER_REAL, 1e-4)
            right &= all(np.array_equal(run(executable), expected) for _ in range(20))
        return right and all("use a clone()" in line for line in said)

    assert code(child(interrupted)) == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT"])
def test_a_signal_ends_a_program_that_runs(name: str) -> None:
    # A shell starts what runs in the background with SIGINT and SIGQUIT ignored.
    text = f"""
import os, signal, threading
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.kernels.test_interrupts import loaded, run
executable = loaded(2)
run(executable)
threading.Timer(0.05, os.kill, (os.getpid(), signal.{name})).start()
while True:
    run(executable)
"""
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -getattr(signal, name)
    assert name == "SIGINT" or not done.stderr


def test_threads_that_run_while_the_program_ends() -> None:
    text = """
import threading, time
from tests.kernels.test_interrupts import loaded, run
def forever(threads):
    executable = loaded(threads)
    while True:
        run(executable)
for threads in (1, 2, 1, 2):
    threading.Thread(target=forever, args=(threads,), daemon=True).start()
time.sleep(1)
"""
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, timeout=120)
    assert done.returncode == 0


def test_what_was_not_loaded_stays_in_its_process() -> None:
    network = loaded(1)
    network.reload = None
    with pytest.raises(TypeError, match=r"cannot be pickled; clone\(\)"):
        pickle.dumps(network)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy])
def test_copies_share_weights(way: Callable[[Executable], Executable]) -> None:
    network = loaded(1)
    other = way(network)
    assert other is not network
    assert other.memory.weights == network.memory.weights
    np.testing.assert_array_equal(run(other), run(network))

"""How commands end: one line and a code, and one interrupt at a time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastrun.graph.core.errors import GraphError
from fastrun.tuner.measure.interrupts import one_interrupt
from fastrun.tuner.store.database import Database, DatabaseError
from fastrun.tuner.terminal.exits import ended
from tests.support.forking import interruptible

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Python's own, which a process started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (GraphError("no such\n network"), 2, "it: error: no such network"),
        (FileNotFoundError(2, "No such file", "a.onnx"), 2, "it: error: a.onnx: No such file"),
        (ModuleNotFoundError(name="dask"), 2, r"it: error: dask is not .*\[distributed\]"),
        (
            ModuleNotFoundError(name="numpy.linalg"),
            2,
            "it: error: numpy is not installed for .*'.'",
        ),
        (MemoryError("9 GiB"), 2, "it: error: out of memory: 9 GiB"),
        (KeyboardInterrupt(), 130, "it: interrupted"),
    ],
)
def test_a_command_ends_with_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    assert ended("it", command) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.match(line, said)


@pytest.mark.parametrize("defect", [KeyError("x"), ModuleNotFoundError(name="fastrun.nothing")])
def test_a_defect_keeps_its_trace(defect: Exception) -> None:
    def command() -> int:
        raise defect

    with pytest.raises(type(defect)):
        ended("it", command)


def test_only_the_first_interrupt_of_a_block_counts() -> None:
    done = []

    def block() -> None:
        try:
            with one_interrupt():
                interrupt()
                done.append("not interrupted")
        finally:
            interrupt()
            done.append("ended in order")

    with pytest.raises(KeyboardInterrupt), one_interrupt():
        block()
    assert done == ["ended in order"]
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_a_destructor_drops_comes_again() -> None:
    class Dying:
        def __del__(self) -> None:
            interrupt()

    done = []

    def block() -> None:
        Dying()
        done.append("dropped")
        time.sleep(30)
        done.append("lost")

    hook = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), one_interrupt():
        block()
    assert done == ["dropped"]
    assert sys.unraisablehook is hook


def test_other_handlers_and_threads_are_left_alone() -> None:
    def own(*_: object) -> None:
        heard.append("own")

    heard: list[str] = []
    signal.signal(signal.SIGINT, own)
    with one_interrupt():
        interrupt()
    assert heard == ["own"]
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def elsewhere() -> None:
        with one_interrupt():
            heard.append(str(signal.getsignal(signal.SIGINT) is signal.default_int_handler))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert heard == ["own", "True"]


def test_an_experiment_is_interrupted_in_one_line(tmp_path: Path) -> None:
    """Twice, as by `timeout -s INT`; what was measured is there."""
    path = tmp_path / "spaces.db"
    words = ["-m", "fastrun.benchmarks.experiments.spaces", "--only", "depthwise-mobilenetv2-14x14"]
    running = subprocess.Popen(
        [sys.executable, *words, "--db", str(path), "--out", str(tmp_path)], cwd=ROOT, text=True,
        stderr=subprocess.PIPE,
        preexec_fn=interruptible,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not _records(path) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    for _ in range(2):
        running.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, err = running.communicate(timeout=300)
    assert running.returncode == 130, err
    assert err.splitlines()[-1].startswith("spaces: interrupted")
    # Python itself reports an interrupt that arrives in a destructor, and SQLAlchemy one that
    # arrives as a connection closes, each with the exception that it interrupted, if any.
    reported = err.count("Exception ignored") + err.count("Exception closing connection")
    interrupted = err.count("During handling of the above exception")
    assert err.count("Traceback") == reported + interrupted
    assert _records(path)


def _records(path: Path) -> int:
    try:
        with Database(path, read_only=True) as database:
            return database.info().records
    except DatabaseError:  # not there yet
        return 0

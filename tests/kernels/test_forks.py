"""A forked process computes for itself, whatever its parent's threads were doing.

FASTRUN_TEST_SCALE multiplies how often parents and children run.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.conv.winograd.transform import Transform, transform_weights
from fastrun.kernels.core.forks import ONCE, renewed_in_children
from fastrun.kernels.core.pages import private_pages
from fastrun.tuner.networks.load import load
from tests.support.forking import child, code
from tests.support.graph_models import model, node, normal

SCALE = int(os.environ.get("FASTRUN_TEST_SCALE", "1"))
RUNS = 60 * SCALE
THREADS = (1, 2)

WEIGHTS = {f"w{i}": normal(16, 3 if i == 0 else 16, 3, 3, seed=i) / 8 for i in range(4)}
MODEL = model(
    [node("Conv", f"{'x' if i == 0 else i} w{i}", str(i + 1), pads=[1] * 4) for i in range(3)]
    + [node("Conv", "3 w3", "y", pads=[1] * 4)],
    WEIGHTS,
    shape=(1, 3, 24, 24),
)
INPUTS = [normal(1, 3, 24, 24, seed=s) for s in range(4)]


def loaded(threads: int) -> Executable:
    return load(MODEL, threads, policy="heuristic")


def run(executable: Executable, which: int) -> np.ndarray:
    return executable.run({"x": INPUTS[which]})["y"]


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Another thread that does `work` again and again."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_pages_are_not_shared_with_a_forked_process() -> None:
    pages = private_pages(1 << 16)

    def write() -> bool:
        pages[:] = b"\1" * len(pages)
        return True

    assert code(child(write)) == 0
    assert pages[:] == bytes(len(pages))


@pytest.mark.parametrize("threads", THREADS)
def test_parent_and_children_run_one_executable_at_the_same_time(threads: int) -> None:
    executable = loaded(threads)
    expected = [run(executable, i) for i in range(len(INPUTS))]

    def right(which: int) -> bool:
        return all(np.array_equal(run(executable, which), expected[which]) for _ in range(RUNS))

    children = [child(lambda i=i: right(i)) for i in range(1, 3)]
    assert right(0)
    assert [code(pid) for pid in children] == [0, 0]


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("how", ["the same", "a clone", "a new one"])
def test_a_fork_in_the_middle_of_a_run(threads: int, how: str) -> None:
    executable = loaded(threads)
    expected = run(executable, 1)
    makers = {
        "the same": lambda: executable,
        "a clone": executable.clone,
        "a new one": lambda: loaded(threads),
    }

    def right() -> bool:
        mine = makers[how]()
        return all(np.array_equal(run(mine, 1), expected) for _ in range(3))

    with beside(lambda: run(executable, 0)):
        for _ in range(3 * SCALE):
            time.sleep(0.003)
            assert code(child(right)) == 0


def test_a_fork_while_a_network_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM compiles in one thread; the child of another needs it too."""
    executable = loaded(2)
    expected = run(executable, 1)
    folders = (tmp_path / str(i) for i in range(10_000))

    def compile_anew() -> None:
        monkeypatch.setenv("FASTRUN_CACHE", str(next(folders)))
        loaded(1)

    def right() -> bool:
        compile_anew()
        return np.array_equal(run(executable, 1), expected)

    with beside(compile_anew):
        for _ in range(3 * SCALE):
            time.sleep(0.02)
            assert code(child(right)) == 0


@pytest.mark.parametrize("threads", THREADS)
def test_children_of_children(threads: int) -> None:
    executable = loaded(threads)
    expected = [run(executable, i) for i in range(len(INPUTS))]

    def generation(which: int) -> bool:
        """Runs before, beside and after its own child."""

        def right() -> bool:
            return np.array_equal(run(executable, which), expected[which])

        if which == len(INPUTS):
            return True
        before = right()
        young = child(lambda: generation(which + 1))
        return before and all(right() for _ in range(10)) and code(young) == 0 and right()

    assert code(child(lambda: generation(0))) == 0


def test_a_fork_in_a_thread() -> None:
    executable = loaded(2)
    expected = run(executable, 1)
    codes = list[int]()

    def forks() -> None:
        codes.append(code(child(lambda: np.array_equal(run(executable, 1), expected))))

    with beside(lambda: run(executable, 0)):
        threads = [threading.Thread(target=forks) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes == [0, 0, 0]


_preloaded: Executable


def _serve(which: int) -> np.ndarray:
    return run(_preloaded, which)


def _load_and_run(which: int) -> np.ndarray:
    return run(loaded(2), which)


@pytest.mark.parametrize("work", [_serve, _load_and_run])
def test_daemonic_workers_of_a_pool(work: Callable[[int], np.ndarray]) -> None:
    global _preloaded
    _preloaded = loaded(2)
    expected = [run(_preloaded, i) for i in range(len(INPUTS))]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(work, list(range(len(INPUTS))) * 3).get(timeout=120)
    for i, output in enumerate(found):
        assert np.array_equal(output, expected[i % len(INPUTS)])


def test_a_child_renews_what_a_thread_of_its_parent_held() -> None:
    class Owner:
        def __init__(self) -> None:
            self._renew()
            renewed_in_children(self, Owner._renew)

        def _renew(self) -> None:
            self.lock = threading.Lock()

    owner = Owner()
    with owner.lock:
        assert code(child(lambda: not owner.lock.locked())) == 0
        assert owner.lock.locked()


def test_a_fork_waits_for_what_is_made_once() -> None:
    begun, over = threading.Event(), list[float]()

    def make() -> None:
        with ONCE:
            begun.set()
            time.sleep(0.1)
            over.append(time.monotonic())

    thread = threading.Thread(target=make)
    thread.start()
    begun.wait()
    # The child has the lock, and sees the end of what the thread was doing.
    assert code(child(lambda: ONCE.acquire(blocking=False) and bool(over))) == 0
    thread.join()


def test_a_fork_waits_while_blas_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is forked meanwhile would wait for ever for the lock of BLAS's memory."""
    multiply, free = np.matmul, []

    def acquired() -> None:
        free.append(ONCE.acquire(blocking=False))

    def observed(*arguments: np.ndarray) -> np.ndarray:
        other = threading.Thread(target=acquired)
        other.start()
        other.join()
        return multiply(*arguments)

    monkeypatch.setattr(np, "matmul", observed)
    transform = Transform.of(4, 3, "standard")
    transform_weights(normal(4, 4, 3, 3), transform, transform)
    assert free
    assert not any(free)

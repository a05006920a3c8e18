"""Threads that load, clone, run and drop executables at the same time."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastrun.kernels.core.forks import once
from fastrun.tuner.networks.load import load
from tests.support.execution import relative_error
from tests.support.graph_models import model, node, normal

ROOT = Path(__file__).parents[2]
EIGHT = range(8)
X = [normal(1, 4, 16, 16, seed=i) for i in EIGHT]


def network(channels: int) -> tuple[object, int]:
    convolutions = [node("Conv", "x a", "1", pads=[1] * 4), node("Conv", "1 b", "y", pads=[1] * 4)]
    weights = {"a": normal(channels, 4, 3, 3), "b": normal(8, channels, 3, 3)}
    return model(convolutions, weights, shape=X[0].shape), 1 + channels % 2


def at_once(work: Callable[[int], object]) -> list[object]:
    """What eight threads return that begin at the same moment."""
    begin = threading.Barrier(len(EIGHT))

    def one(i: int) -> object:
        begin.wait()
        return work(i)

    with ThreadPoolExecutor(len(EIGHT)) as pool:
        return list(pool.map(one, EIGHT))


def first_loads() -> None:
    """For a process of its own, which has loaded nothing yet."""

    def one(i: int) -> np.ndarray:
        source, threads = network(8 + i % 3)
        return load(source, threads, policy="heuristic").run({"x": X[0]})["y"]

    found = at_once(one)
    for i in EIGHT:
        assert np.array_equal(found[i], one(i))


def test_first_loads_of_eight_threads(tmp_path: Path) -> None:
    for temperature in ("cold", "warm"):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from tests.kernels.test_threads import first_loads; first_loads()",
            ],
            cwd=ROOT,
            env={**os.environ, "FASTRUN_CACHE": str(tmp_path)},
            timeout=300,
        )
        assert done.returncode == 0, temperature


def test_eight_threads_load_clone_run_and_drop() -> None:
    source, _ = network(8)
    shared = load(source, 2, policy="heuristic")
    expected = [shared.run({"x": x})["y"] for x in X]

    def one(i: int) -> bool:
        right = True
        for turn in range(2):
            mine = load(source, 1 + turn % 2, policy="heuristic")
            for executable in (mine, shared.clone(), shared):
                for _ in range(5):
                    found = executable.run({"x": X[i]})["y"]
                    right &= relative_error(found, expected[i]) < 1e-4
            gc.collect()
        return right

    assert all(at_once(one))


def test_what_is_made_once_is_made_once() -> None:
    made = list[object]()

    @once
    def slowly() -> object:
        threading.Event().wait(0.02)
        made.append(object())
        return made[-1]

    assert set(map(id, at_once(lambda _: slowly()))) == {id(made[0])}
    assert len(made) == 1

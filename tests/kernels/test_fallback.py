"""When a team of threads leaves the work to its caller's thread, in simulated time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastrun.kernels.native.driver import DUE
from fastrun.kernels.native.fallback import DISTURBED, LONGEST, Fallback
from fastrun.kernels.native.team import Script, Step, team
from tests.kernels.test_runner import TASKS, Bench

TEAM, ALONE = 1e-3, 1.9e-3


def share_alone(fallback: Fallback, seconds: float, team: Callable[[], float]) -> float:
    """The share of so many seconds of runs in which the caller's thread worked alone."""
    spent = {False: 0.0, True: 0.0}
    while sum(spent.values()) < seconds:
        alone = fallback.alone
        took = ALONE if alone else team()
        fallback.saw(took, late=False)
        spent[alone] += took
    return spent[True] / sum(spent.values())


def test_a_team_that_is_not_disturbed_does_all_runs() -> None:
    draw = np.random.default_rng(0)
    noise = lambda: TEAM * draw.uniform(0.95, 1.1)  # noqa: E731
    assert share_alone(Fallback(), 20, noise) == 0


def test_few_slow_runs_are_no_disturbance() -> None:
    """The first run is cold, and threads that another engine leaves spinning slow others down."""
    for slow in ((0,), (3, 4), (0, 5, 12, 13)):
        runs = iter(range(1_000_000))
        took = lambda: 20 * TEAM * (2.5 if next(runs) in slow else 1)  # noqa: B023, E731
        assert share_alone(Fallback(), 5, took) == 0


def test_a_disturbed_team_gives_way_and_comes_back() -> None:
    fallback = Fallback()
    share_alone(fallback, 1, lambda: TEAM)
    assert share_alone(fallback, 5, lambda: 3e-3) > 0.85
    share_alone(fallback, 2 * LONGEST, lambda: TEAM)
    assert share_alone(fallback, 5, lambda: TEAM) == 0


def test_a_disturbed_team_that_is_faster_than_one_thread_goes_on() -> None:
    fallback = Fallback()
    share_alone(fallback, 1, lambda: TEAM)
    assert share_alone(fallback, 5, lambda: 1.2 * DISTURBED * TEAM) < 0.1


def test_who_has_not_come_back_is_not_waited_for() -> None:
    bench = Bench("mark", threads=2)
    address = bench.runner._library.address("mark")
    local = [row.ctypes.data for row in bench.local]
    script = Script([Step(address, TASKS, 0, 0, 0, 0, 0, 0, 1)], 2, local)
    workers = team(2)
    due = np.frombuffer(workers._state._room, np.int64)
    due = due[(workers._state.address - due.ctypes.data + DUE) // 8 :][:1]
    due += 1  # as if a thread had not left the last job
    try:
        workers.run(script)
        assert bench.local[0].sum() == TASKS
        assert not bench.local[1].any()
    finally:
        due -= 1
    workers.run(script)
    assert (bench.local.max(axis=0) == 1).all()

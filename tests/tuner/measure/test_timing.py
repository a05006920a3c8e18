"""The protocol on kernels with known costs, and the division of the cores."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.measure import timing
from fastrun.tuner.measure.canary import canary, runnable
from fastrun.tuner.measure.climate import Climate, Sensors
from fastrun.tuner.measure.cores import ENOUGH, Cores, pin
from fastrun.tuner.measure.timing import (
    Protocol,
    Surroundings,
    calibrate,
    interleave,
    measure,
    weight_copies,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts do not depend on other processes: the core is never waited for, the clock steady."""
    monkeypatch.setattr(timing, "waited", lambda: 0.0)
    monkeypatch.setattr(timing, "climate", Climate)


@dataclass
class Simulated:
    """A kernel of known cost; `log` holds the size of each block."""

    cost: float
    log: list[int] = field(default_factory=list)

    def __call__(self, repeats: int) -> float:
        self.log.append(repeats)
        return self.cost * repeats


@pytest.mark.parametrize("cost", [0.0, 1e-9, 3e-6, 0.9e-3, 5e-3])
def test_a_block_is_long_enough_and_not_much_longer(cost: float) -> None:
    kernel = Simulated(cost or 1e-12)
    repeats, per_call = calibrate(kernel, 1e-3)
    assert kernel.cost * repeats >= 1e-3
    assert repeats == 1 or kernel.cost * repeats <= 2e-3
    assert per_call == pytest.approx(kernel.cost)
    assert len(kernel.log) <= 8


def test_screening_warms_up_once_and_keeps_three_blocks() -> None:
    kernel = Simulated(1e-4)
    timing = measure(kernel, Protocol(), first=2e-4)
    assert timing.samples == pytest.approx([1e-4] * 3)
    assert timing.complete
    assert kernel.log[-4:] == [timing.repeats] * 4  # the last of calibrating is the warm-up


def test_more_warm_up_is_more_blocks_thrown_away() -> None:
    kernel = Simulated(1e-4)
    timing = measure(kernel, Protocol(warmup=3, blocks=2), first=2e-4)
    assert len(timing.samples) == 2
    assert kernel.log.count(timing.repeats) == 5


def test_a_slow_kernel_is_not_called_again() -> None:
    kernel = Simulated(3.0)
    timing = measure(kernel, Protocol(), first=3.1)
    assert (timing.samples, timing.repeats, kernel.log) == ((3.1,), 1, [])


def test_a_first_call_in_which_the_machine_stood_still_does_not_count() -> None:
    timing = measure(Simulated(1e-4), Protocol(), first=0.3)
    assert timing.samples == pytest.approx([1e-4] * 3)
    assert measure(Simulated(0.2), Protocol(), first=0.3).samples == (0.2,)


def test_a_kernel_far_behind_the_incumbent_is_given_up_at_once() -> None:
    kernel = Simulated(1e-2)
    timing = measure(kernel, Protocol(), first=1e-2, incumbent=1e-3)
    assert not timing.complete
    assert timing.samples == (1e-2,)
    assert kernel.log == [1]


def test_a_kernel_near_the_incumbent_is_measured_in_full() -> None:
    timing = measure(Simulated(2e-3), Protocol(), first=1e-2, incumbent=1e-3)
    assert timing.complete
    assert len(timing.samples) == 3


def test_one_disturbed_block_does_not_give_a_kernel_up() -> None:
    costs = iter([9e-3, 1e-3, 1e-3, 1e-3])

    def kernel(repeats: int) -> float:
        return next(costs) * repeats

    timing = measure(kernel, Protocol(give_up=10.0), first=1e-3, incumbent=1e-3)
    assert timing.complete
    assert timing.samples == (1e-3,) * 3


def test_interleaved_rounds_run_everybody_once_in_changing_order() -> None:
    order: list[str] = []

    def kernel(name: str, cost: float):  # type: ignore[no-untyped-def]
        def calls(repeats: int) -> float:
            order.append(name)
            return cost * repeats

        return calls

    kernels = [kernel("a", 2e-3), kernel("b", 3e-3), kernel("c", 4e-3)]
    timings = interleave(kernels, 20, Protocol(), seed=1)
    assert [t.samples for t in timings] == [(2e-3,) * 20, (3e-3,) * 20, (4e-3,) * 20]
    blocks = order[3:]
    assert blocks[::2] == blocks[1::2]  # every block comes after calls that warm the caches up
    rounds = [tuple(blocks[i : i + 6 : 2]) for i in range(0, len(blocks), 6)]
    assert len(rounds) == 20
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 2
    first = list(order)
    order.clear()
    interleave(kernels, 20, Protocol(), seed=1)
    assert order == first


@pytest.mark.parametrize("drop_every", [0, 1])
def test_a_race_of_nobody_has_no_times(drop_every: int) -> None:
    """This happens if no kernel is correct."""
    assert interleave([], 4, Protocol(), seed=0, drop_every=drop_every) == []


def test_a_race_warms_up_by_a_quarter_of_a_block() -> None:
    kernel = Simulated(1e-4)
    [timing] = interleave([kernel], 3, Protocol(), seed=0)
    assert kernel.log[-6:] == [-(-timing.repeats // 4), timing.repeats] * 3


def test_a_block_that_waited_for_its_core_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 5e-4, 5e-4, 5e-4, 5e-4, 8e-4, 8e-4, 8.5e-4, 8.5e-4, 12e-4])
    monkeypatch.setattr(timing, "waited", lambda: next(clock))
    costs = iter([1e-3, 2e-3, 1e-3, 3e-3, 1.1e-3, 4e-3])
    found = measure(lambda repeats: next(costs) * repeats, Protocol(blocks=2), first=1e-3)
    # The first kept block waited a quarter of its time, and its repetition not at all. Of the three
    # blocks after it, which all waited, the one that waited least counts.
    assert found.samples == (1e-3, 1.1e-3)
    assert found.disturbed == pytest.approx(5e-5 / 1.1e-3)


def test_a_block_during_which_the_clock_changed_is_repeated() -> None:
    clocks = iter([1800, 1200, 1200, 1190, 1190, 1180])
    degrees = iter([70.0, 80.0, 81.0, 82.0, 82.5, 83.0])

    def look() -> Surroundings:
        return Surroundings(climate=Climate(next(clocks), next(degrees)))

    costs = iter([1e-3, 2e-3, 3e-3, 3.1e-3])
    kernel = lambda repeats: next(costs) * repeats  # noqa: E731
    found = measure(kernel, Protocol(blocks=2), first=1e-3, look=look)
    assert found.samples == (3e-3, 3.1e-3)
    assert (found.clocks, found.temperatures) == ((1190, 1180), (82.0, 83.0))
    assert found.disturbed == 0, "a per cent is no change"


def test_a_clock_that_never_rests_marks_the_times() -> None:
    clocks = itertools.cycle([1800, 1200])
    look = lambda: Surroundings(climate=Climate(next(clocks)))  # noqa: E731
    [found] = interleave([Simulated(1e-3)], 2, Protocol(), seed=0, look=look)
    assert found.disturbed == pytest.approx(1 / 3)
    assert found.clocks == (1200, 1200)
    assert found.temperatures == ()


def test_a_process_waits_for_a_core_that_another_uses() -> None:
    try:
        Path("/proc/self/schedstat").read_text()
    except OSError:
        pytest.skip("this system does not count it")
    code = (
        "import os; from fastrun.tuner.measure.timing import waited\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "child, before = os.fork(), waited()\n"
        "while child == 0 or waited() < before + 0.05: pass\n"
        "os.kill(child, 9); os.wait(); print('waited')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.strip() == "waited"


ZONE = "/sys/class/thermal/thermal_zone"
CLOCK = "/sys/devices/system/cpu/cpu3/cpufreq/scaling_cur_freq"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Climate()),
        ({CLOCK: "1800000"}, Climate(1800)),
        ({CLOCK: "1800000", f"{ZONE}0/type": "battery", f"{ZONE}0/temp": "30000"}, Climate(1800)),
        (
            {
                f"{ZONE}0/type": "acpitz", f"{ZONE}0/temp": "95000",
                f"{ZONE}1/type": "x86_pkg_temp", f"{ZONE}1/temp": "61000",
                f"{ZONE}2/type": "soc-thermal", f"{ZONE}2/temp": "62500",
            },
            Climate(temperature=62.5),
        ),
        (
            {
                f"{ZONE}0/type": "imx_thermal_zone", f"{ZONE}0/temp": "71000",
                f"{ZONE}0/trip_point_0_type": "critical", f"{ZONE}0/trip_point_0_temp": "95000",
                f"{ZONE}0/trip_point_1_type": "passive", f"{ZONE}0/trip_point_1_temp": "85000",
            },
            Climate(temperature=71.0),
        ),
        (
            {
                "/sys/class/hwmon/hwmon0/name": "nvme",
                "/sys/class/hwmon/hwmon0/temp1_input": "90000",
                "/sys/class/hwmon/hwmon1/name": "k10temp",
                "/sys/class/hwmon/hwmon1/temp1_input": "48250",
            },
            Climate(temperature=48.25),
        ),
        ({f"{ZONE}0/type": "cpu-thermal", f"{ZONE}0/temp": "asleep"}, Climate()),
    ],
    ids=["silent", "clock", "battery", "hottest", "slows", "chip", "asleep"],
)  # fmt: skip
def test_what_a_system_says_of_clock_and_temperature(
    files: dict[str, str], expected: Climate
) -> None:
    def text(path: str) -> str:
        return files.get(path, "")

    found = Sensors.of(3, text)
    assert found.climate([text(path) for path in found.files]) == expected
    slows = {f"{ZONE}0/temp": 85000} if f"{ZONE}0/trip_point_1_type" in files else {}
    assert found.limits == slows


def test_those_surely_slower_are_dropped_from_a_race() -> None:
    logs = [Simulated(2e-3), Simulated(2.2e-3), Simulated(2e-3)]
    timings = interleave(logs, 15, Protocol(), seed=0, drop_every=5)
    assert [len(t.samples) for t in timings] == [15, 5, 15]
    assert [t.complete for t in timings] == [True, False, True]
    assert len(interleave(logs, 15, Protocol(), seed=0)[1].samples) == 15


@pytest.mark.parametrize("l3", [0, 16 << 20, 64 << 20, 480 << 20])
def test_weight_copies_exceed_twice_the_last_cache(l3: int) -> None:
    cpu = replace(Cpu.avx2(), l3=l3)
    for size in (64, 1000, 9 << 20, 600 << 20):
        copies = weight_copies(size, cpu)
        # What is read between two uses of one copy; a cache that a whole server shares is no goal.
        assert (copies - 1) * size >= 2 * min(l3, 64 << 20)
        assert 2 <= copies <= 2 + (128 << 20) / size


def test_the_canary_measures_a_deviation_from_its_best() -> None:
    readings = [canary() for _ in range(20)]
    assert min(readings) >= 0
    assert len(set(readings)) > 1


@pytest.mark.parametrize(("tasks", "others"), [("3/120", 2), ("1/120", 0), ("0/120", 0)])
def test_runnable_leaves_the_caller_out(
    tasks: str, others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three running tasks is the caller."""
    monkeypatch.setattr(Path, "read_text", lambda path: f"0.50 0.40 0.30 {tasks} 4711\n")
    assert runnable() == others


def test_timing_gets_the_last_cores_and_compiling_the_rest() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    cores = Cores.split(1)
    assert cores.timing == (allowed[-1],)
    others = tuple(allowed[:-1])
    assert cores.compiling == (others if len(others) >= ENOUGH else tuple(allowed))
    whole = Cores.split(len(allowed))
    assert whole.timing == whole.compiling == tuple(allowed)
    for threads in (0, len(allowed) + 1):
        with pytest.raises(ValueError, match="cores"):
            Cores.split(threads)


def test_keeping_clear_moves_every_thread_and_puts_it_back() -> None:
    before = os.sched_getaffinity(0)
    cores = Cores.split(1)
    with cores.keep_clear():
        assert os.sched_getaffinity(0) == (before - set(cores.timing) or before)
    assert os.sched_getaffinity(0) == before
    pin(before)


@pytest.mark.parametrize(
    ("timing", "compiling", "together"),
    [((0,), (0,), False), ((0, 1), (0, 1), False), ((1,), (0, 1), True), ((2,), (0, 1), True)],
)
def test_no_core_compiles_while_it_times(
    timing: tuple[int, ...], compiling: tuple[int, ...], together: bool
) -> None:
    cores = Cores(timing, compiling)
    inside, met = threading.Event(), threading.Event()

    def compile_() -> None:
        inside.wait()
        with cores.compile_turn() as core:
            assert core == 0
            met.set()

    thread = threading.Thread(target=compile_)
    thread.start()
    with cores.timing_turn():
        inside.set()
        assert met.wait(300 if together else 0.1) == together
    thread.join(300)
    assert met.is_set()


def test_compilations_run_side_by_side() -> None:
    cores = Cores((0,), (0, 1))
    with cores.compile_turn() as one, cores.compile_turn() as other:
        assert {one, other} == {0, 1}
    with cores.timing_turn():
        pass  # it would wait for ever if a core were still compiling

"""Devices without Python: the runner on this machine and under emulation, hostile kernels, ways."""

from __future__ import annotations

import errno
import math
import os
import platform
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fastrun.kernels.codegen.builder import ARGUMENTS
from fastrun.kernels.core import processors
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Stage
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.apart import compile_all
from fastrun.kernels.registry import applicable, parse_schedule
from fastrun.search_spaces.space import space_for
from fastrun.tuner.device.bench import DeviceBench
from fastrun.tuner.device.cache_sizes import levels
from fastrun.tuner.device.channel import Channel, LostError, Operations
from fastrun.tuner.device.cooling import wait_while_hot
from fastrun.tuner.device.crew import Crew
from fastrun.tuner.device.identity import Identity, identify
from fastrun.tuner.device.reach import DeviceError, way_to
from fastrun.tuner.device.runner import runner
from fastrun.tuner.device.session import Child, Session
from fastrun.tuner.measure.climate import Sensors
from fastrun.tuner.measure.job import Compiled, Job, ProcessLimits, Result
from fastrun.tuner.measure.operands import Operands, Scratch
from fastrun.tuner.measure.process import Died
from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.measure.worker import compile_one
from fastrun.tuner.records.record import Outcome
from tests.support.tiles import BODY, DECLARATIONS

PROBLEM = ConvProblem.parse("conv 1x5x6x6 7x3x3 s1 p1 bias relu")
SCHEDULE = "naive(layout=NCHW)"
LIMITS = ProcessLimits(call=0.2, slack=1.0)
QUICK = Protocol(block=1e-4, slow=math.inf)
WAYS = {
    "native": "exec:env",
    "aarch64": "exec:qemu-aarch64",
    "riscv64": "exec:qemu-riscv64 -cpu rv64,v=true,vext_spec=v1.0,vlen=256",
}

NATIVE = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="there is no runner for this processor"
)
EMULATED, RISCV = (
    pytest.mark.skipif(not shutil.which(emulator), reason=f"{emulator} is not installed")
    for emulator in ("qemu-aarch64", "qemu-riscv64")
)


@dataclass
class Lab:
    """A device, a bench on it, and a good kernel."""

    session: Session
    identity: Identity
    bench: DeviceBench
    operands: Operands
    good: Compiled

    def job(self, program: Compiled | None = None, threads: int = 1) -> Job:
        return Job(program or self.good, self.operands, threads, protocol=QUICK, limits=LIMITS)

    def run(self, program: Compiled | None = None) -> Result:
        return self.bench.submit_all([self.job(program)]).result(timeout=300)[0]


def compiled(operands: Operands, schedules: Sequence[str], cpu: Cpu) -> list[Compiled]:
    """The schedules, compiled in one process, which LLVM may end."""
    p = ConvProblem.parse(operands.problem)
    parsed = [parse_schedule(text) for text in schedules]
    codes = compile_all([(t.program(p, s, cpu).ir, cpu) for t, s in parsed])
    return [
        compile_one(operands, text, cpu, code) for text, code in zip(schedules, codes, strict=True)
    ]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("native", marks=NATIVE),
        pytest.param("aarch64", marks=EMULATED),
        pytest.param("riscv64", marks=RISCV),
    ],
)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    start = way_to(WAYS[request.param], tmp_path_factory.mktemp("device"))
    session = Session(start)
    identity = identify(session)
    with Scratch() as scratch:
        operands = Operands.make(PROBLEM, scratch)
        (good,) = compiled(operands, [SCHEDULE], identity.cpu)
        bench = DeviceBench(start, session, identity.cpu, identity.cores[-1:])
        with bench:
            yield Lab(session, identity, bench, operands, good)


def hostile(lab: Lab, body: str, declarations: str = "") -> Compiled:
    """A program whose only stage is this IR."""
    pointers = ", ".join(f"ptr %{a}" for a in ARGUMENTS)
    cpu = lab.identity.cpu
    text = (
        f'target triple = "{cpu.triple}"\n\n{declarations}'
        f"define void @bad({pointers}, i64 %begin, i64 %end) nounwind {{\n{body}\n}}\n"
    )
    return replace(lab.good, code=compile_all([(text, cpu)])[0], stages=(Stage("bad", 1),))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64"])
def test_the_runner_is_small_and_the_same_each_time(machine: str) -> None:
    program = runner(machine)
    assert program[:4] == b"\x7fELF"
    assert len(program) < 100_000
    assert program == runner(machine)


def test_files_travel_whole_and_once(lab: Lab) -> None:
    content = bytes(range(256)) * 3000
    name = lab.session.put(content)
    assert lab.session.read(name, 1 << 14) == content[: 1 << 14]
    assert lab.session.put(content) == name
    lab.session.forget()
    assert lab.session.read(name) is None
    assert lab.session.text("/proc/self/comm")
    assert lab.session.text("/nowhere") == ""


def test_what_a_killed_runner_left_is_removed(lab: Lab, tmp_path: Path) -> None:
    native = lab.session.machine == platform.machine()
    start = way_to(WAYS["native" if native else lab.session.machine], tmp_path)
    left, other = Session(start), Session(start)
    left.put(b"operands")
    kept = other.put(b"others")
    os.killpg(left.channel.pid, 9)
    left.close()
    assert len([*tmp_path.glob("run-*")]) == 2
    with pytest.raises(LostError, match="closed"):
        left.put(b"more")
    after = Session(start)
    assert {path.name for path in tmp_path.glob("run-*")} == {other.folder, after.folder}
    after.close()
    assert other.read(kept) == b"others", "another session has lost its files"
    other.close()
    assert [*tmp_path.glob("run-*")] == []


def test_a_child_that_dies_is_replaced(lab: Lab) -> None:
    session = lab.session
    with pytest.raises(Died, match="SIGSEGV"):
        Child(session, 5.0).ask(Operations().peek(0, 8))
    with pytest.raises(TimeoutError):
        Child(session, 5.0).ask(session.system(Operations(), "ppoll", 0, 0, 0, 0, 8), 0.1)
    child = Child(session, 5.0)
    (left,) = child.ask(Operations().poke(session.scratch, b"12345678").peek(session.scratch, 5))
    assert left == b"12345"
    (ours,) = session.channel.own(Operations().peek(session.scratch, 8))
    assert ours != b"12345678", "a child writes into the runner"


def test_good_kernels_are_timed(lab: Lab) -> None:
    alone = lab.run()
    assert (alone.outcome, alone.reason) == (Outcome.CORRECT, "")
    assert len(alone.samples) == QUICK.blocks
    assert all(0 < seconds < 1 for seconds in alone.samples)
    assert alone.errors
    assert alone.errors.max < 1e-5
    first, second = lab.bench.race([lab.job(), lab.job()], 3).result(timeout=300)
    assert len(first.samples) == len(second.samples) == 3
    cold = replace(lab.job(), regime="cold-weights")
    (result,) = lab.bench.submit_all([cold]).result(timeout=300)
    assert result.outcome == Outcome.CORRECT


NOTHING = "  ret void"
STORE = "  store float 1.0, ptr %add\n  ret void"
BEFORE = "  %p = getelementptr i8, ptr %{to}, i64 -8\n  store i32 7, ptr %p\n  ret void"
FOREVER = "entry:\n  br label %again\nagain:\n  br label %again"


@pytest.mark.parametrize(
    ("body", "outcome", "reason"),
    [
        (NOTHING, Outcome.CORRECTNESS, "unwritten or not finite"),
        ("  store i8 1, ptr null\n  ret void", Outcome.RUNTIME, "killed by SIG"),
        (BEFORE.format(to="dst"), Outcome.CORRECTNESS, "wrote outside dst"),
        (BEFORE.format(to="weights"), Outcome.CORRECTNESS, "wrote outside weights"),
        (FOREVER, Outcome.TIMEOUT, "stopped after"),
    ],
    ids=["nothing", "crash", "before dst", "before weights", "hang"],
)
def test_bad_kernels_are_outcomes(lab: Lab, body: str, outcome: Outcome, reason: str) -> None:
    result = lab.run(hostile(lab, body))
    assert result.outcome == outcome
    assert reason in result.reason
    assert lab.run().outcome == Outcome.CORRECT


def test_a_child_may_use_tiles(lab: Lab) -> None:
    if not processors.needs(lab.identity.cpu).tiles:
        pytest.skip("the device has no tile registers")
    result = lab.run(hostile(lab, BODY + NOTHING, DECLARATIONS))
    assert "unwritten or not finite" in result.reason


def test_a_greedy_candidate_is_one_failed_trial(lab: Lab) -> None:
    result = lab.run(replace(lab.good, shared_bytes=1 << 40))
    assert result.outcome == Outcome.RUNTIME
    assert "MB are allowed" in result.reason
    assert lab.run().outcome == Outcome.CORRECT


def test_a_child_has_limits(lab: Lab) -> None:
    if lab.session.machine != platform.machine():
        pytest.skip("an emulator ignores them")
    child = Child(lab.session, 30.0)
    child.limit(64 << 20, 1)
    asked = lab.session.system(Operations(), "mmap", 0, 1 << 30, 3, 34, -1, 0)
    assert child.ask(asked) == [-errno.ENOMEM]
    with pytest.raises(Died, match="SIGXCPU"):
        child.ask(Operations().call(lab.session.function("spin"), 0, 1 << 40))


def test_inputs_must_stay(lab: Lab) -> None:
    """A right result does not help a kernel that spoils an input afterwards."""
    template, schedule = parse_schedule(SCHEDULE)
    program = template.program(PROBLEM, schedule, lab.identity.cpu)
    pointers = ", ".join(f"ptr %{a}" for a in ARGUMENTS)
    spoils = f"define void @bad({pointers}, i64 %begin, i64 %end) nounwind {{\n{STORE}\n}}\n"
    code = compile_all([(f"{program.ir}\n\n{spoils}", lab.identity.cpu)])[0]
    stages = (*program.stages, Stage("bad", 1))
    result = lab.run(replace(lab.good, code=code, stages=stages))
    assert (result.outcome, result.reason) == (Outcome.CORRECTNESS, "wrote into add")


def test_system_calls_end_a_child_where_there_are_filters(lab: Lab) -> None:
    if lab.session.machine != platform.machine():
        pytest.skip("an emulator has no filters")
    crew = Crew(Child(lab.session, 5.0), lab.identity.cores[-1:])
    crew.confine()
    with pytest.raises(Died, match="SIGSYS"):
        crew.child.ask(lab.session.system(Operations(), "openat", -100, 0, 0, 0))


def test_threads_share_the_work(lab: Lab) -> None:
    if len(lab.identity.cores) < 2:
        pytest.skip("one core")
    start = lab.bench._start
    bench = DeviceBench(start, Session(start), lab.identity.cpu, lab.identity.cores[-2:])
    with bench:
        (result,) = bench.submit_all([lab.job(threads=2)]).result(timeout=300)
    assert (result.outcome, result.reason) == (Outcome.CORRECT, "")


def killed_during(bench: DeviceBench, times: int) -> Callable[[Session, Job], list[Result]]:
    """A trial during which the runner is killed, so many times."""
    left, real = [times], bench._trial

    def trial(session: Session, job: Job) -> list[Result]:
        if left[0]:
            left[0] -= 1
            threading.Timer(0.05, os.killpg, (session.channel.pid, 9)).start()
            session.channel.ask(session.system(Operations(), "ppoll", 0, 0, 0, 0, 8), 30.0)
        return real(session, job)

    return trial


def test_a_killed_runner_costs_a_retry(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    start = lab.bench._start
    bench = DeviceBench(start, Session(start), lab.identity.cpu, lab.identity.cores[-1:])
    with bench:
        bench._session.channel.fork()
        monkeypatch.setattr(bench, "_trial", killed_during(bench, 1))
        (result,) = bench.submit_all([lab.job()]).result(timeout=300)
        assert (result.outcome, result.reason) == (Outcome.CORRECT, "")


def test_a_runner_that_stays_away_ends_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    start = lab.bench._start
    bench = DeviceBench(start, Session(start), lab.identity.cpu, lab.identity.cores[-1:])
    with bench:

        def gone() -> Channel:
            raise DeviceError("no route to host")

        monkeypatch.setattr(bench, "_start", gone)
        os.killpg(bench._session.channel.pid, 9)
        with pytest.raises(ConnectionError, match=r"no route to host; all measurements .* stored"):
            bench.submit_all([lab.job()]).result(timeout=300)


def scripts(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """A program of this name at the front of PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


LAST = 'for last; do :; done\ncd "$HOME" && exec sh -c "$last"'


@NATIVE
@pytest.mark.parametrize("kind", ["ssh", "adb"])
def test_shells_get_the_runner_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs are replaced by ones that run the command here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    here = tmp_path / ".cache/fastrun"
    text = LAST
    if kind == "adb":
        here = tmp_path / "phone"
        text = (
            f'for last; do :; done\nlast=$(echo "$last" | sed s,/data/local/tmp/fastrun,{here},g)'
        )
        text += '\nexec sh -c "$last"'
    scripts(tmp_path, monkeypatch, kind, f'echo "$@" >> {tmp_path}/log\n{text}')
    for _ in range(2):
        session = Session(way_to(f"{kind}:board", tmp_path))
        assert session.text("/proc/self/comm").startswith("runner-")
        session.close()
    assert [path.name[:7] for path in here.iterdir()] == ["runner-"]
    assert (tmp_path / "log").read_text().count("cat > ") == 1
    assert ("-s board" if kind == "adb" else "BatchMode=yes") in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("board", "names no device"),
        ("exec:", "names no device"),
        ("exec:false", "no runner answers"),
        ("exec:cat", "no runner"),
        ("exec:no-such-program", "No such file"),
    ],
)
def test_what_is_no_device(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=message):
        way_to(name, tmp_path)()


def test_a_shell_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts(tmp_path, monkeypatch, "ssh", "echo no route to host >&2; exit 255")
    with pytest.raises(DeviceError, match="cannot reach the device: no route to host"):
        way_to("ssh:board", tmp_path)()
    scripts(tmp_path, monkeypatch, "ssh", "echo sparc64")
    with pytest.raises(DeviceError, match="sparc64: there are runners for"):
        way_to("ssh:board", tmp_path)()


def test_cores_that_are_not_there_are_refused(lab: Lab) -> None:
    with pytest.raises(DeviceError, match="no core 999"):
        identify(lab.session, [999])


def test_what_a_processor_says_becomes_a_target() -> None:
    facts = {"model": "a model", "l1": 1, "l2": 2, "l3": 3, "cores": 4}
    needs = processors.needs(processors.target("x86-64-v4+vnni")).x86
    cpu = processors.x86_64(needs[:-1], 0xE6, **facts)
    assert (cpu.name, cpu.lanes, cpu.registers) == ("x86-64-v4", 16, 32)
    assert {"-prefer-256-bit", "+avx512vnni", "+avx512f"} <= set(cpu.features.split(","))
    assert processors.vectors(cpu.features) == ("x86_64", 16)
    kept_off = processors.x86_64(needs[:-1], 0x06, **facts)
    assert (kept_off.name, kept_off.lanes) == ("x86-64-v3", 8), "the system saves no wide registers"
    assert "avx512" not in kept_off.features
    old = processors.x86_64(needs[:-1], 0, **facts)
    assert (old.name, old.fma) == ("x86-64-v2", False)
    needs = processors.needs(processors.target("x86-64-v4+amx")).x86
    for state, permitted in ((0x600E6, True), (0x600E6, False), (0xE6, True)):
        tiled = processors.x86_64(needs[:-1], state, permitted, **facts)
        assert ("+amx-int8" in tiled.features) is (permitted and state == 0x600E6)
        assert "+avx512bf16" in tiled.features
    arm = processors.aarch64(processors.aarch64_features(1 << 20 | 2, 1 << 13), **facts)
    assert arm.features == "+dotprod,+i8mm,+neon"
    assert processors.vectors(arm.features) == ("aarch64", 4)
    assert arm.model == "a model"


def test_levels_of_caches_are_seen_in_jumps() -> None:
    sizes = [8 << 10 << i for i in range(13)]
    times = [1.1] * 3 + [3.8] * 3 + [5.9, 6.0, 6.4] + [16.0, 17.0] + [60.0, 80.0]
    assert levels(sizes, times) == {1: 32 << 10, 2: 2 << 20, 3: 8 << 20}
    assert levels(sizes, [1.0] * 13) == {}


class Board:
    """What a device says in its files, which change from look to look."""

    def __init__(self, **files: list[str]) -> None:
        self.files = files

    def text(self, path: str) -> str:
        name = path.removeprefix("/sys/class/thermal/thermal_zone0/")
        said = self.files.get(name if "/" not in name else path.rpartition("/")[2], [""])
        return said.pop(0) if len(said) > 1 else said[0]


def test_a_hot_board_is_waited_for() -> None:
    hot = Board(type=["cpu", ""], trip_point_0_type=["passive"], trip_point_0_temp=["85000"],
                trip_point_1_type=[""], temp=["84000", "82000", "79000"])  # fmt: skip
    slept = list[float]()
    assert wait_while_hot(Sensors.of(0, hot.text), hot.text, slept.append) == 4.0
    assert slept == [2.0, 2.0]
    assert wait_while_hot(Sensors(), hot.text, slept.append) == 0


@EMULATED
def test_clock_and_temperature_are_kept_beside_each_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator shows files of this folder to the device: a clock that falls once."""
    root = tmp_path / "root"
    for name, content in {
        "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000",
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": "52500",
    }.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    clock = root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    start = way_to(f"exec:qemu-aarch64 -L {root}", tmp_path)
    session = Session(start)
    identity = identify(session)
    bench = DeviceBench(start, session, identity.cpu, (0,))
    run, calls = Crew.run, 0

    def falling(crew: Crew, *arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:  # the first block that is kept, after a check and a block to warm up
            clock.write_text("1200000\n")
        return run(crew, *arguments)

    monkeypatch.setattr(Crew, "run", falling)
    with Scratch() as scratch, bench:
        operands = Operands.make(PROBLEM, scratch)
        (good,) = compiled(operands, [SCHEDULE], identity.cpu)
        protocol = replace(QUICK, block=1e-9, blocks=2)
        job = Job(good, operands, protocol=protocol, limits=LIMITS)
        (result,) = bench.submit_all([job]).result(timeout=300)
    assert (result.outcome, result.reason) == (Outcome.CORRECT, "")
    assert calls >= 5, "the block in which the clock fell is not repeated"
    assert result.clocks == (1200, 1200)
    assert result.temperatures == (52.5, 52.5)


ODD = [
    "conv 1x8x7x6 12x3x3 s1 p1 bias add relu",
    "conv 1x12x9x7 12x3x3 s2 p1 g12 bias hardswish",
    "conv 1x24x5x7 20x1x1 s1 p0 bias sigmoid",
    "conv 1x6x10x9 7x5x3 s1 p2 d2 bias",
    "conv 1x16x6x5 12x3x3 s1 p1 bias relu u8s8>u8",
]


def drawn(p: ConvProblem, cpu: Cpu, draw: random.Random) -> list[str]:
    """A schedule of every algorithm, within its space and no baseline."""
    found = []
    for template in applicable(p, cpu):
        space = space_for(template.name, p, cpu)
        sizes = [len(values) for values in space.domains.values()]
        for _ in range(0 if template.baseline else 50):
            schedule = space.at(tuple(draw.randrange(n) for n in sizes))
            try:
                template.program(p, schedule, cpu)
            except ScheduleError:
                continue
            found.append(template.text(schedule))
            break
    return found


@pytest.mark.slow
@pytest.mark.parametrize("text", ODD)
def test_random_schedules_are_right_on_a_device(text: str, lab: Lab) -> None:
    """All algorithms, as the device's processor runs them: AArch64 where it is emulated."""
    p, cpu, draw = ConvProblem.parse(text), lab.identity.cpu, random.Random(len(text))
    schedules = drawn(p, cpu, draw)
    assert len(schedules) > 1
    with Scratch() as scratch:
        operands = Operands.make(p, scratch)
        limits = ProcessLimits(call=5.0)
        jobs = [
            Job(program, operands, protocol=QUICK, limits=limits)
            for program in compiled(operands, schedules, cpu)
        ]
        results = lab.bench.submit_all(jobs).result(timeout=300)
    wrong = {s: r.reason for s, r in zip(schedules, results, strict=True) if r.reason}
    assert not wrong

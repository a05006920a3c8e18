"""A program's key: what is the same for the same text, and what keeps keys from being wrong."""

import os
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastrun.graph.build import bands as fused
from fastrun.graph.build import kernels as built
from fastrun.kernels.core import identity
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified, key_of
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.ops import elementwise, pool
from fastrun.kernels.registry import parse_schedule, templates
from fastrun.tuner.networks.load import load

CPU = Cpu.avx2()
P = ConvProblem.parse("conv 1x64x14x14 64x3x3 s1 p1 bias relu")
DIRECT = templates()["direct"]
SCHEDULE = DIRECT.heuristic(P, CPU)
IO = Io.of(P, SCHEDULE.layout)


@pytest.fixture(autouse=True)
def _sources_are_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout may have been edited a moment ago, and keys are then refused."""
    found = identity.source_hash(identity._FOLDER)
    monkeypatch.setattr(identity, "_sources", lambda: found)


def key(p: ConvProblem = P, schedule: Any = SCHEDULE, cpu: Cpu = CPU, io: Io = IO) -> str:
    return DIRECT.build(p, schedule, cpu, io).key


def test_the_same_arguments_have_the_same_key() -> None:
    again = parse_schedule(DIRECT.text(SCHEDULE))[1]
    assert key() == key(ConvProblem.parse(str(P)), again, Cpu.avx2(), Io.of(P, again.layout)) != ""


def test_every_argument_changes_the_key() -> None:
    others = [
        key(replace(P, activation="")),
        key(schedule=replace(SCHEDULE, unroll=SCHEDULE.unroll + 1)),
        key(cpu=replace(CPU, l2=CPU.l2 + 1)),
        key(io=replace(IO, src=replace(IO.src, halo=(2, 2, 2, 2)))),
        pool.build(pool.Pool("max", (2, 2)), CPU, IO.src, replace(IO.dst, h=7, w=7)).key,
    ]
    assert len({key(), *others}) == 6
    assert all(others)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ("1", 1),
        ((1, (2, 3)), ((1, 2), 3)),
        ([1], (1,)),
        (np.float32(1), np.float64(1)),
        (np.zeros(4, np.float32), np.zeros((2, 2), np.float32)),
        (elementwise.Unary("relu"), elementwise.Binary("relu")),
    ],
)
def test_no_two_values_are_described_alike(one: object, other: object) -> None:
    assert "" != key_of(pool.build, one) != key_of(pool.build, other) != ""


@dataclass(frozen=True)
class _Foreign(elementwise.Unary):
    @property
    def steps(self) -> int:
        return 1


@pytest.mark.parametrize("value", [_Foreign("relu"), lambda x: x, {1: 2}, np.array([None])])
def test_what_cannot_be_described_has_no_key(value: object) -> None:
    assert key_of(pool.build, value) == ""


def test_generators_of_other_packages_have_no_key() -> None:
    @identified
    def mine(io: Io) -> Program:
        return pool.build(pool.Pool("max", (2, 2)), CPU, io.src, replace(io.dst, h=7, w=7))

    assert mine(IO).key == ""


def test_sources_that_changed_since_the_start_give_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (tmp_path / "a.py").write_text("A = 1\n")
    monkeypatch.setattr(identity, "_FOLDER", tmp_path)
    monkeypatch.setattr(identity, "IMPORTED", time.time() + 60)
    before = identity._sources.__wrapped__()
    (tmp_path / "a.py").write_text("A = 2\n")
    assert before != identity._sources.__wrapped__() != ""
    monkeypatch.setattr(identity, "IMPORTED", time.time() - 60)
    os.utime(tmp_path / "a.py", (0, 0))  # a time of the past does not hide when it was set
    assert identity._sources.__wrapped__() == ""


def test_a_known_key_needs_no_text(tmp_path: Path) -> None:
    cache, program = ObjectCache(tmp_path), DIRECT.build(P, SCHEDULE, CPU, IO)
    first = cache.named(program)
    assert first.digest[:32] == program.ir_hash

    def never() -> str:
        raise AssertionError("the text was written again")

    again = cache.named(replace(program, write=never))
    assert again.digest == first.digest
    assert again.ir_hash == program.ir_hash
    for path in tmp_path.rglob("*.digest"):
        path.write_bytes(b"damaged")
    assert cache.named(program).digest == first.digest


def test_a_schedule_that_only_its_text_refuses_is_still_refused(tmp_path: Path) -> None:
    def refuses() -> str:
        raise ScheduleError("a tile is too large")

    program = replace(DIRECT.build(P, SCHEDULE, CPU, IO), write=refuses)
    for _ in range(2):
        with pytest.raises(ScheduleError):
            ObjectCache(tmp_path).named(program)


@pytest.mark.parametrize("network", ["mobilenetv2", "shufflenetv2"])
def test_a_second_load_writes_no_text(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrun.kernels.codegen.builder import Kernel

    def forget() -> None:
        built._program.cache_clear()
        fused._program.cache_clear()

    forget()
    first = load(network, policy="heuristic")
    forget()
    monkeypatch.setattr(Kernel, "text", lambda self: pytest.fail("text was written"))
    again = load(network, policy="heuristic")
    assert [s.program.digest for s in again.steps] == [s.program.digest for s in first.steps]
    assert all(len(s.program.digest) == 64 for s in again.steps)


def test_descriptions_leave_no_field_out() -> None:
    words = list[str]()
    identity._describe(CPU, words)
    assert len(words) == 1 + len(fields(CPU))

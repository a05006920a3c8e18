"""The probe: its loops, and its report, which is stored and checked."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastrun.kernels.codegen.builder import Module
from fastrun.kernels.codegen.dot import dots, has
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, Placement
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.types import Types
from fastrun.kernels.native.compile import compile_assembly
from fastrun.tuner.machine import dot_rates
from fastrun.tuner.machine import probe as machine
from fastrun.tuner.machine.probe import (
    STREAMS,
    MachineReport,
    fma_loop,
    levels,
    probe,
    read_loop,
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTRUN_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "_BLOCK", 1e-5)
    monkeypatch.setattr(machine, "_BLOCKS", 2)
    monkeypatch.setattr(machine, "dot_rates", lambda cpu, cores: {"vnni": 1e11})
    monkeypatch.setattr(machine, "kinds", lambda cpu: {"vnni"})
    monkeypatch.setattr(machine, "move_rates", lambda cpu, sizes, cores: {"a>b": {"1": 1e9}})
    return tmp_path


def report_file(cache: Path) -> Path:
    (path,) = cache.glob("machine-*.json")
    return path


def inner_loop(module: Module, cpu: Cpu) -> str:
    """The assembly between the innermost loop's label and its jump back."""
    none = Placement(NCHW, 1, 1, 1, 1)
    text = compile_assembly(module.program(Io(none, none, none), lambda w: w).ir, cpu)
    loops = re.findall(r"\n(\.LBB\d+_\d+):((?:(?!\n\.LBB).)*?\n\s+[bj]\S+\s+\1\n)", text, re.DOTALL)
    assert loops
    return str(min(loops, key=lambda found: len(found[1]))[1])


def test_a_probe_measures_everything_and_leaves_the_affinity_alone() -> None:
    before = os.sched_getaffinity(0)
    report = probe()
    assert os.sched_getaffinity(0) == before
    assert (report.machine, report.cores) == (Cpu.host().fingerprint, len(before))
    assert set(report.read) == set(report.read_streams) <= {"L1", "L2", "L3", "DRAM"}
    assert {"L1", "DRAM"} <= set(report.read)
    rates = [report.peak, report.peak_all, *report.read.values(), *report.read_streams.values()]
    assert all(1e6 < rate < math.inf for rate in rates)
    assert report.noise >= 0
    assert report.peak_of(1, "vnni") == pytest.approx(1e11)
    assert report.peak_of(1, "unknown") == report.peak
    assert report.moves == report.moves_all == {"a>b": {"1": 1e9}}


@pytest.mark.parametrize("l3", [0, 8 << 20, 32 << 20, 64 << 20, 480 << 20])
def test_arrays_leave_the_caches_and_can_be_read_in_time(l3: int) -> None:
    cpu = replace(Cpu.avx512(), l2=2 << 20, l3=l3)
    sizes = {level: 4 * floats for level, floats in levels(cpu).items()}
    assert sizes["L1"] < cpu.l1 < sizes["L2"] < cpu.l2 < sizes.get("L3", 4 << 20)
    assert 4 * min(l3, 64 << 20) <= sizes["DRAM"] <= 256 << 20


def test_every_kind_of_dot_product_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dot_rates, "_BLOCK", 1e-6)
    monkeypatch.setattr(dot_rates, "_BLOCKS", 1)
    monkeypatch.setattr(dot_rates, "TILES", dot_rates.TILES[-1:])
    cpu = Cpu.host()
    rates = dot_rates.dot_rates(cpu, sorted(os.sched_getaffinity(0))[:1])
    kinds = {d.name for types in ("u8s8>u8", "u8s4>u8") for d in dots(Types.parse(types), cpu)}
    if has(cpu, "amx-int8"):
        kinds.add("tdpbusd")
    assert kinds <= set(rates) == dot_rates.kinds(cpu)
    assert all(1e6 < rate < math.inf for rate in rates.values())


def test_a_report_is_kept_until_a_new_one_is_asked_for() -> None:
    first = probe()
    assert probe() == first
    assert probe(refresh=True).time > first.time


def test_a_report_without_a_kind_of_dot_product_is_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = probe()
    monkeypatch.setattr(machine, "kinds", lambda cpu: {"vnni", "newer"})
    assert probe().time > first.time


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"peak": 1}', json.dumps({"machine": "other"}), "\0"]
)
def test_a_damaged_report_is_measured_again(cache: Path, damage: str) -> None:
    first = probe()
    report_file(cache).write_text(damage)
    again = probe()
    assert isinstance(again, MachineReport)
    assert again.time > first.time
    assert probe() == again


def test_a_cache_that_cannot_be_written_costs_only_time(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "file").write_text("not a folder")
    monkeypatch.setenv("FASTRUN_CACHE", str(cache / "file" / "below"))
    assert probe().peak > 0


TARGETS = [Cpu.avx2(), Cpu.avx512(), Cpu.neon()]


@pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: cpu.name)
def test_the_arithmetic_loop_is_nothing_but_arithmetic(cpu: Cpu) -> None:
    loop = inner_loop(fma_loop(cpu, 1), cpu)
    assert len(re.findall(r"\bv?fm(?:add\w*ps|la)\b", loop)) == 12
    assert not re.search(r"sp\b|\[|\(%", loop), "the loop touches memory"


@pytest.mark.parametrize("streams", [1, STREAMS])
@pytest.mark.parametrize("cpu", TARGETS, ids=lambda cpu: cpu.name)
def test_the_reading_loop_reads_every_vector_once(cpu: Cpu, streams: int) -> None:
    loop = inner_loop(read_loop(cpu, 1 << 16, streams, 2), cpu)
    assert len(re.findall(r"\bv?f?addp?s?\b.*[xyz]mm|\bfadd\b", loop)) == 8
    loaded = re.findall(r"\(%r|\bldr\s+q|\bldp\s+q|\bldur\s+q", loop)
    pairs = len(re.findall(r"\bldp\s+q", loop))
    assert len(loaded) + pairs == 8

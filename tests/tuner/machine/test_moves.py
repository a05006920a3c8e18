"""The costs of moving data: measured rates, and their use by the planner."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import U8
from fastrun.kernels.core.layout import NCHW, NHWC, Layout
from fastrun.tuner.machine import move_rates as moves
from fastrun.tuner.machine.move_rates import move_rates
from fastrun.tuner.networks.costs import costs
from tests.graph.test_networks_run import residual
from tests.tuner.report.test_report import MACHINE

KINDS = ("NCHW", "NHWC", "NCHWc")
RATES = {f"{a}>{b}": {"1000": 1e9, "100000": 3e9} for a in KINDS for b in KINDS}
SLOW = {"NHWC>NCHWc": {"1000": 1e6, "100000": 1e6}}
REPORT = replace(MACHINE, moves=RATES | SLOW, moves_all={p: {"1000": 4e9} for p in RATES})


def test_rates_are_measured_for_every_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRUN_CACHE", str(tmp_path))
    monkeypatch.setattr(moves, "_BLOCK", 1e-5)
    rates = move_rates(Cpu.host(), [16384, 1 << 18], [0])
    assert set(rates) == set(RATES)
    for by_size in rates.values():
        assert list(by_size) == ["16384", str(1 << 18)]
        assert all(1e6 < rate < math.inf for rate in by_size.values())


def test_costs_follow_size_layouts_and_threads() -> None:
    alone, shape = costs(REPORT, 1), (1, 16, 4, 4)  # 2048 bytes in all
    small, large = alone.move(shape, NCHW, NHWC), alone.move((1, 16, 400, 400), NCHW, NHWC)
    step = alone.stream(0)
    assert small - step == pytest.approx(2048 / 1e9, rel=0.4)
    assert large - step == pytest.approx(8 * 16 * 400 * 400 / 3e9, rel=0.01)
    for block in (4, 16):
        assert alone.move(shape, NHWC, Layout(f"NCHW{block}c")) == step + 2048 / 1e6
    assert costs(REPORT, 2).move(shape, NCHW, NHWC) == step + 2048 / 4e9


def test_results_pass_through_l3_as_fast_as_it_is_read() -> None:
    slow = replace(REPORT, read_streams={**REPORT.read_streams, "L3": 28e9})
    assert costs(slow, 2).passing == 28e9


def test_missing_channels_of_a_block_are_moved_too() -> None:
    blocked = costs(REPORT, 1).move((1, 3, 64, 64), NCHW, Layout("NCHW16c"))
    assert blocked > 2 * costs(REPORT, 1).move((1, 3, 64, 64), NCHW, NHWC)


def test_bytes_are_moved_at_the_same_rate() -> None:
    alone, large = costs(REPORT, 1), (1, 16, 400, 400)
    step = alone.stream(0)
    floats = alone.move(large, NCHW, NHWC) - step
    assert alone.move(large, NCHW.of(U8), NHWC.of(U8)) - step == pytest.approx(floats / 4, rel=0.5)
    assert alone.move(large, NCHW, NHWC.of(U8)) < alone.move(large, NCHW, NHWC)


def test_a_graph_is_known_by_what_a_plan_depends_on() -> None:
    graph = optimise(load_network(residual()))
    assert optimise(load_network(residual())).digest == graph.digest
    assert replace(graph, name="another").digest == graph.digest
    constants = {name: 2 * value for name, value in graph.constants.items()}
    assert replace(graph, constants=constants).digest == graph.digest
    larger = optimise(load_network(residual(), {"x": (1, 3, 33, 29)}))
    assert larger.digest != graph.digest
    assert replace(graph, nodes=graph.nodes[:-1], outputs=()).digest != graph.digest

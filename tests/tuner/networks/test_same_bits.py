"""Tuning again without changing a bit: which schedules are allowed, and what the planner makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from fastrun.graph.core.problems import convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choice, heuristic_choices
from fastrun.graph.plan.form import GUESSED
from fastrun.graph.planner import make_plan
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule
from fastrun.main import main
from fastrun.tuner.networks.alternatives import PlanInputs
from fastrun.tuner.networks.same_bits import keeping_bits, same_results
from tests.support.commands import fresh_cache, short_finals
from tests.support.graph_models import model, node, normal

CPU = Cpu.host()


def network() -> onnx.ModelProto:
    nodes = [node("Conv", "x w", "c", pads=[1] * 4), node("Relu", "c", "y")]
    return model(nodes, {"w": normal(32, 32, 3, 3)}, shape=(1, 32, 14, 14))


def choice(text: str) -> Choice:
    return Choice(text, *layout_pair(parse_schedule(text)[1].layout), 1e-6)


def direct(tile: int, unroll: int) -> str:
    return (
        f"direct(layout=NCHW{CPU.lanes}c, tile_h=1, tile_w={tile}, cols=1, unroll={unroll}, "
        "rows=14, oc_outer=no, prefetch=0)"
    )


def test_other_tiles_keep_bits_and_other_algorithms_do_not() -> None:
    graph = optimise(load_network(network()))
    first, other = choice(direct(7, 8)), choice(direct(14, 4))
    winograd = choice(
        f"winograd(layout=NCHW{CPU.lanes}c, mh=4, mw=4, points=balanced, nr_tiles=4, cols=1, "
        "unroll=4, oc_block=1, prefetch=0, split=channels)"
    )
    kept, _ = make_plan(graph, lambda p: [first], CPU)

    def several(p: ConvProblem) -> list[Choice]:
        return [winograd, other]

    def proposed(p: ConvProblem, layout: str) -> list[str]:
        return [winograd.schedule, other.schedule]

    inputs = PlanInputs(heuristic_choices(CPU), several, several, GUESSED, proposed=proposed)
    keeping = keeping_bits(graph, kept, inputs, CPU)
    ((p, _, _),) = convolutions(graph)
    assert [c.schedule for c in keeping.guessed(p)] == [first.schedule]
    assert [c.schedule for c in keeping.known(p)] == [first.schedule, other.schedule]
    assert keeping.proposed(p, "") == [other.schedule]
    same, _ = make_plan(graph, lambda p: [other], CPU)
    different, _ = make_plan(graph, lambda p: [winograd], CPU)
    assert same_results(graph, kept, same, CPU, 1)
    assert not same_results(graph, kept, different, CPU, 1)


@pytest.mark.slow
def test_tune_keeps_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import fastrun

    fresh_cache(tmp_path / "cache", monkeypatch)
    short_finals(monkeypatch)
    file = tmp_path / "net.onnx"
    onnx.save(network(), file)
    assert main(["tune", str(file), "--trials", "2", "--keep-bits"]) == 2
    assert "there are no bits to keep" in capsys.readouterr().err
    assert main(["tune", str(file), "--trials", "4", "--quiet"]) == 0
    x = normal(1, 32, 14, 14)
    before = fastrun.load(file)(x)
    assert main(["tune", str(file), "--trials", "12", "--quiet", "--keep-bits"]) == 0
    np.testing.assert_array_equal(fastrun.load(file)(x), before)

"""Plans whose packed weights must not take more than a limit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrun
from fastrun.graph.aot.export import ExportError
from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.problems import convolutions
from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import heuristic_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import make_plan, packed_bytes
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.processors import target
from fastrun.tuner.records.environment import Environment
from fastrun.tuner.records.record import PROTOCOL
from fastrun.tuner.store.database import Database
from tests.support.execution import relative_error
from tests.support.graph_models import model, node, normal
from tests.support.lanes import without_tiles
from tests.support.records import record

CPU = Cpu.avx2()
RAW = 3 * 4 * 64 * 64 * 9  # bytes of the weights of the model


def network(layers: int = 3, size: int = 24) -> Any:
    """Layers that Winograd suits, all alike."""
    pairs = list(pairwise(["x", *map(str, range(1, layers)), "y"]))
    nodes = [
        node("Conv", f"{x} w{i}", y, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
        for i, (x, y) in enumerate(pairs)
    ]
    constants = {f"w{i}": normal(64, 64, 3, 3, seed=i) * np.float32(0.05) for i in range(layers)}
    return model(nodes, constants, shape=(1, 64, size, size))


def algorithms(plan: Plan) -> list[str]:
    return [form.algorithm.partition("(")[0] for form in plan.forms.values()]


def test_winograd_runs_as_often_as_its_weights_fit() -> None:
    graph = optimise(load_network(network()))
    free, arrangement = make_plan(graph, heuristic_choices(CPU), CPU)
    whole = packed_bytes(arrangement)
    assert algorithms(free) == ["winograd"] * 3
    assert whole > 2 * RAW
    part = RAW + (whole - RAW) // 3 + 4096
    some, arrangement = make_plan(graph, heuristic_choices(CPU), CPU, max_weights=part)
    assert packed_bytes(arrangement) <= part
    assert algorithms(some).count("winograd") == 1
    none, arrangement = make_plan(graph, heuristic_choices(CPU), CPU, max_weights=RAW + 4096)
    assert packed_bytes(arrangement) <= RAW + 4096
    assert "winograd" not in algorithms(none)
    same, _ = make_plan(graph, heuristic_choices(CPU), CPU, max_weights=whole)
    assert same.forms == free.forms
    with pytest.raises(UnsupportedError, match=r"take 0\.4\d* MB in the lightest plan: allow more"):
        make_plan(graph, heuristic_choices(CPU), CPU, max_weights=RAW // 2)


def test_loading_and_exporting_keep_to_the_limit(tmp_path: Path) -> None:
    limit = RAW + 4096
    x = normal(1, 64, 24, 24)
    light = fastrun.load(network(), policy="heuristic", max_weights=limit)
    free = fastrun.load(network(), policy="heuristic")
    assert "winograd" not in algorithms(light.plan)
    assert relative_error(light.run({"x": x})["y"], free.run({"x": x})["y"]) < 1e-3
    options: dict[str, Any] = {"policy": "heuristic", "name": "net"}
    done = fastrun.export(network(), tmp_path / "a", ["aarch64"], max_weights=limit, **options)
    assert done.files["net.weights"] <= limit + 3 * 4096
    host = Cpu.host()
    graph = optimise(load_network(network()))
    in_vectors, _ = make_plan(graph, heuristic_choices(without_tiles(host)), host)
    assert "winograd" in algorithms(in_vectors)
    with pytest.raises(ExportError, match="plan again with this limit"):
        fastrun.export(
            network(), tmp_path / "b", ["native"], plan=in_vectors, max_weights=limit, **options
        )
    assert not (tmp_path / "b").exists()


def test_levels_take_what_a_device_of_their_kind_was_tuned_to(tmp_path: Path) -> None:
    graph = optimise(load_network(network()))
    cpu = target("aarch64")
    problem = str(convolutions(graph)[0].problem)
    choices = heuristic_choices(cpu)(convolutions(graph)[0].problem)
    slow = next(c.schedule for c in choices if c.schedule.startswith("direct"))
    with Database(tmp_path / "one.db") as database:
        here = replace(Environment.host(), machine="0123456789abcdef", features="+dotprod,+neon")
        measured = record(
            problem=problem,
            schedule=slow,
            machine=here.machine,
            samples=(1e-3,) * 3,
            protocol=PROTOCOL,
        )
        database.add(measured)
        database.add_environment(here, measured.run)
        options: dict[str, Any] = {"database": database, "name": "net"}
        done = fastrun.export(network(), tmp_path / "a", ["aarch64"], **options)
        assert algorithms(done.targets[0].plan) == ["direct"] * 3
        other = fastrun.export(network(), tmp_path / "b", ["x86-64-v2"], **options)
    assert algorithms(other.targets[0].plan) != ["direct"] * 3


def test_weights_that_no_cache_keeps_are_not_fetched_ahead() -> None:
    """L3 holds the weights of each layer, but not those of all."""
    graph = optimise(load_network(network(layers=6, size=14)))
    cpu = replace(CPU, l3=2 << 20)
    plan, arrangement = make_plan(graph, heuristic_choices(cpu), cpu)
    assert packed_bytes(arrangement) > 2 * cpu.l3
    assert all("winograd" in f.algorithm for f in plan.forms.values())
    assert all("prefetch=0, split=channels" in f.algorithm for f in plan.forms.values())
    larger = replace(CPU, l3=32 << 20)
    plan, _ = make_plan(graph, heuristic_choices(larger), larger)
    assert all("prefetch=64, split=channels" in f.algorithm for f in plan.forms.values())

"""Weights of 16 bits in networks: only within a limit of the error, and planned like float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fastrun.graph.networks import load_network
from fastrun.graph.passes.pipeline import optimise
from fastrun.graph.plan.choices import Choice, Choose, heuristic_choices
from fastrun.graph.plan.plan import Plan
from fastrun.graph.planner import follow_plan, make_plan
from fastrun.graph.reference import interpreter as reference
from fastrun.graph.runtime.executable import Executable
from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.rounding import roundings
from fastrun.kernels.core.types import Types
from fastrun.tuner.networks.measured_choices import stored_choices
from fastrun.tuner.networks.targets import Target, merged
from fastrun.tuner.records.record import Limits
from fastrun.tuner.store.database import Database
from tests.graph import test_networks_run as networks
from tests.support.graph_models import model, node, normal
from tests.support.quantised_graphs import normal_inputs

CPU = Cpu.host()
# A processor whose caches hold hardly any weights.
SMALL = replace(CPU, l2=2048)
BIG = ConvProblem.parse("conv 1x64x14x14 64x3x3 s1 p1 bias relu")
INT16 = ["f32s16"] if dots(Types.pairs(), CPU) else []
NETWORKS: list[Callable[[], onnx.ModelProto]] = [
    networks.residual, networks.concatenations, networks.shuffled, networks.preactivated,
]  # fmt: skip


def preferring(types: str) -> Choose:
    """The heuristics' choices, those of these types as if they took no time."""
    choose = heuristic_choices(CPU)

    def chosen(p: ConvProblem) -> Sequence[Choice]:
        cheap = p.types == types
        return [replace(c, seconds=c.seconds * 1e-3) if cheap else c for c in choose(p)]

    return chosen


def in_whole_vectors() -> onnx.ModelProto:
    """Channels by eights: a strided layer, a residual, a slice and a concatenation, a dilation."""
    nodes = [
        networks.conv("x", "a", "wa", 1, strides=[2, 2]),
        networks.conv("a", "b", "wb", 1),
        node("Add", "b a", "c"),
        node("Slice", "c first last axis", "d"),
        networks.conv("d", "e", "wc", 2, dilations=[2, 2]),
        node("Concat", "e c", "f", axis=1),
        networks.conv("f", "y", "wd", 1),
    ]
    constants = {
        "wa": networks.weights(24, 8, 3), "wb": networks.weights(24, 24, 3),
        "wc": networks.weights(16, 16, 3), "wd": networks.weights(8, 40, 3),
        "first": np.array([8]), "last": np.array([24]), "axis": np.array([1]),
    }  # fmt: skip
    return model(nodes, constants, shape=(1, 8, 21, 18))


CASES = [(n, t) for n in NETWORKS for t in ("f32f16", "f32bf16")]
CASES += [(in_whole_vectors, t) for t in INT16]


@pytest.mark.parametrize(("network", "types"), CASES)
def test_networks_with_rounded_weights(network: Callable[[], onnx.ModelProto], types: str) -> None:
    """Also where tensors are parts of others or have halos, and some kernels refuse them."""
    graph = optimise(load_network(network()))
    plan, arrangement = make_plan(graph, preferring(types), CPU, rounded=lambda p: [types])
    assert types in {form.types for form in plan.forms.values()}
    again = follow_plan(graph, Plan.parse(str(plan)), CPU)
    assert [s.program.ir for s in again.steps] == [s.program.ir for s in arrangement.steps]
    inputs = normal_inputs(graph, 1)
    found, truth = (
        Executable.of(arrangement, CPU, 1, plan).run(inputs),
        reference.run(graph, inputs),
    )
    for name, value in truth.items():
        off = np.sqrt(np.mean((found[name] - value) ** 2) / np.mean(value**2))
        assert 1e-6 < off < (3e-2 if types == "f32bf16" else 3e-3)


def test_dense_layers_round_weights_that_stream() -> None:
    weights = {"w": normal(40, 300), "b": normal(40)}
    proto = model([node("Gemm", "x w b", "y", transB=1)], weights, shape=(1, 300))
    graph = optimise(load_network(proto))
    for limit, types in ((None, ""), (1e-4, ""), (1e-3, "f32f16")):
        rounded = roundings(limit, SMALL)
        plan, arrangement = make_plan(graph, heuristic_choices(CPU), CPU, rounded=rounded)
        assert [form.types for form in plan.forms.values()] == [types]
        inputs = normal_inputs(graph, 1)
        found = Executable.of(arrangement, CPU, 1, plan).run(inputs)
        for name, value in reference.run(graph, inputs).items():
            off = np.sqrt(np.mean((found[name] - value) ** 2) / np.mean(value**2))
            assert off < (5e-4 if types else 2e-6)


def test_recurrent_layers_round_weights_that_each_step_reads() -> None:
    weights = {"w": normal(1, 160, 12), "r": 0.1 * normal(1, 160, 40), "b": normal(1, 320)}
    m = model([node("LSTM", "x w r b", "y", hidden_size=40)], weights, shape=(6, 2, 12))
    graph = optimise(load_network(m))
    for limit, types in ((1e-4, ""), (1e-3, "f32f16")):
        rounded = roundings(limit, SMALL)
        plan, arrangement = make_plan(graph, heuristic_choices(CPU), CPU, rounded=rounded)
        [layer] = [form for form in plan.forms.values() if form.algorithm == "Recurrent"]
        assert layer.types == types
        again = follow_plan(graph, Plan.parse(str(plan)), CPU)
        assert [s.program.ir for s in again.steps] == [s.program.ir for s in arrangement.steps]
        inputs = normal_inputs(graph, 1)
        found = Executable.of(arrangement, CPU, 1, plan).run(inputs)
        for name, value in reference.run(graph, inputs).items():
            off = np.sqrt(np.mean((found[name] - value) ** 2) / np.mean(value**2))
            assert (1e-5 if types else 0) < off < (5e-4 if types else 2e-6)


def test_nothing_is_rounded_without_a_limit() -> None:
    assert not roundings(None, SMALL)(BIG)
    assert not roundings(1e-4, SMALL)(BIG)
    assert roundings(1e-3, SMALL)(BIG) == ["f32f16", *INT16]
    assert roundings(1e-3, replace(SMALL, l2=1 << 20))(BIG) == INT16
    pairs = replace(SMALL, features="+avx512bf16")
    assert roundings(5e-3, pairs)(BIG) == ["f32f16", "f32bf16", *INT16]
    assert roundings(5e-3, replace(SMALL, features=""))(BIG) == ["f32f16", *INT16]
    pointwise = replace(BIG, kernel=(1, 1), padding=(0, 0, 0, 0))
    assert not roundings(1e-3, replace(SMALL, l2=1 << 20))(pointwise)


def test_rounded_problems_are_tuned_beside_their_own() -> None:
    """Those of networks, as often as they occur; a problem that is named is tuned as it is."""
    rounded = roundings(1e-3, SMALL)
    assert merged([Target(str(BIG), ((BIG, 1),))], rounded) == [(BIG, 1)]
    every = [(replace(BIG, types=types), 3) for types in ("", "f32f16", *INT16)]
    assert merged([Target("network", ((BIG, 3),))], rounded) == every


def test_products_of_int16_are_expected_to_be_as_fast_as_their_tiles() -> None:
    """A strict limit makes tiles so small that those of float32 are faster."""
    p = ConvProblem.parse("conv 1x64x56x56 64x3x3 s1 p1 bias relu")

    def expected(types: str, limit: float) -> float:
        choices = heuristic_choices(Cpu.avx512(), limit)(replace(p, types=types))
        return min(choice.seconds for choice in choices)

    assert 0.8 < expected("f32s16", 1e-3) / expected("", 1e-3) < 1
    assert expected("f32s16", 3e-4) > 1.5 * expected("", 3e-4)


def test_missing_measurements_of_rounded_problems_are_no_remark(tmp_path: Path) -> None:
    missing = list[ConvProblem]()
    with Database(tmp_path / "empty.db") as store:
        choose = stored_choices(store, CPU, 1, Limits(1e-3), missing=missing.append)
        assert choose(replace(BIG, types="f32f16"))
        assert choose(BIG)
    assert missing == [BIG]

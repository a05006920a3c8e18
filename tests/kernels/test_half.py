"""Weights and activations of 16 bits: results are as exact as the templates say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F16, F32, DType
from fastrun.kernels.core.layout import NCHW, NHWC, Layout, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import convolve, random_operands
from fastrun.kernels.core.template import ROUNDING, ScheduleError
from fastrun.kernels.ops import dense
from fastrun.kernels.registry import applicable, templates
from tests.support.execution import execute, rms_error, run
from tests.support.lanes import RUN_HERE

AVX2 = replace(Cpu.avx2(), model=Cpu.host().model, lanes=8, registers=16)
CPUS = [*RUN_HERE, *([AVX2] if Cpu.host().lanes >= 8 else [])]

PROBLEMS = [
    "conv 1x16x9x7 16x3x3 s1 p1 bias relu",
    "conv 2x7x6x5 5x3x3 s2 p1 bias",
    "conv 1x40x5x6 33x1x1 s1 p0 bias add relu",
    "conv 1x3x20x21 18x7x7 s2 p3 add",
    "conv 1x12x8x8 8x3x3 s1 p1 g2 bias leaky0.1",
    "conv 1x24x13x12 40x3x3 s1 p1 bias silu",
    "conv 1x5x4x3 1x1x1 s1 p0 bias",
]
TYPES = ["f32f16", "f32bf16", "bf16", "bf16>f32"]


def operands_of(p: ConvProblem, spread: bool) -> dict[str, np.ndarray]:
    """Random operands as their types hold them; output channels differ in size if `spread`."""
    given = random_operands(p, seed=3)
    for name in ("x", "add") if p.precision.src is BF16 else ():
        kind = BF16 if name == "x" else p.precision.dst
        given[name] = kind.decode(kind.encode(given[name]))
    if spread:
        sizes = np.array([1e-8, 1e6, 1.0], np.float32)[np.arange(p.oc) % 3]
        given["weights"] *= sizes[:, None, None, None]
        given["bias"] *= sizes
        given["add"] *= sizes[:, None, None]
    return given


def truth_of(p: ConvProblem, given: dict[str, np.ndarray]) -> np.ndarray:
    bias, add = given["bias"] if p.bias else None, given["add"] if p.add else None
    return convolve(p, given["x"], given["weights"], bias, add)


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("text", PROBLEMS)
def test_errors_are_as_expected(text: str, types: str, cpu: Cpu) -> None:
    p = ConvProblem.parse(f"{text} {types}")
    given = operands_of(p, spread=False)
    given["poison"] = np.nan if p.precision.dst is F32 else 0x7FC0
    if not p.bias:
        given["bias"] = np.zeros(p.oc, np.float32)
    truth = truth_of(p, given)
    for template in applicable(p, cpu):
        first = template.heuristic(p, cpu)
        kinds = [dot.name for dot in dots(p.precision, cpu) if not dot.rounds or p.c % 2 == 0]
        if not hasattr(first, "dot") or template.name == "winograd":
            kinds = [""]  # one multiply-add for each channel
        for name in kinds:
            schedule = replace(first, dot=name) if hasattr(first, "dot") else first
            found = execute(template.program(p, schedule, cpu), given, threads=2)
            error = rms_error(found, truth)
            expected = template.error(p, schedule)
            assert expected / 30 < error < 2 * expected + 2**-23, template.text(schedule)


def test_rounding_input_needs_a_whole_tensor_of_pairs() -> None:
    """Pairs of bf16 are no choice where a pair would reach into another pixel or tensor."""
    template, cpu = templates()["direct"], Cpu.host()
    odd = ConvProblem.parse("conv 1x5x6x6 8x3x3 s1 p1 f32bf16")
    assert template.heuristic(odd, cpu).dot == ""
    if "bf16" in {dot.name for dot in dots(odd.precision, cpu)}:
        pairs = replace(template.heuristic(odd, cpu), layout="NHWC", dot="bf16")
        with pytest.raises(ScheduleError, match="whole groups of 2 channels"):
            template.program(odd, pairs, cpu)


@pytest.mark.parametrize("types", ["f32f16", "f32bf16"])
@pytest.mark.parametrize("text", [PROBLEMS[0], PROBLEMS[2], PROBLEMS[4]])
def test_channels_of_any_size(text: str, types: str) -> None:
    """Weights of 1e-8 do not vanish and weights of 1e6 do not overflow."""
    p = replace(ConvProblem.parse(f"{text} {types}"), activation="")
    given = operands_of(p, spread=True)
    truth, cpu = truth_of(p, given), Cpu.host()
    for template in applicable(p, cpu):
        schedule = template.heuristic(p, cpu)
        found = run(p, template.program(p, schedule, cpu), given)
        for channel in range(p.oc):
            part = truth[:, channel]
            off = rms_error(found[:, channel], part) / np.sqrt(np.mean(part**2))
            assert off < 5 * template.error(p, schedule), (template.name, channel)


def test_scales_of_extreme_weights() -> None:
    """Weights that are zero, near the least float or near the largest stay what they are."""
    p = ConvProblem.parse("conv 1x4x1x2 4x1x1 s1 p0 f32f16")
    weights = np.array([0, 2e-38, 3e38, 1], np.float32)[:, None, None, None] * np.ones((4, 4, 1, 1))
    given = {**random_operands(p, seed=0), "weights": weights.astype(np.float32)}
    given["x"] = np.full((1, 4, 1, 2), 0.125, np.float32)
    for name in ("direct", "pointwise"):
        template, cpu = templates()[name], Cpu.host()
        found = run(p, template.program(p, template.heuristic(p, cpu), cpu), given)
        assert found[0, :, 0, 0] == pytest.approx([0, 1e-38, 1.5e38, 0.5], rel=5e-4)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW8c", "NHWC>NCHW8c", "NCHW>NCHW8c"])
def test_bf16_in_other_layouts(layout: str) -> None:
    p = ConvProblem.parse("conv 1x24x6x6 24x3x3 s1 p1 bias add relu bf16")
    given = {**operands_of(p, spread=False), "poison": 0x7FC0}
    template, cpu = templates()["direct"], Cpu.host()
    for dot in dots(p.precision, cpu):
        if dot.group == 1 or not layout.startswith("NCHW>"):
            schedule = replace(template.heuristic(p, cpu), layout=layout, dot=dot.name)
            found = execute(template.program(p, schedule, cpu), given)
            assert rms_error(found, truth_of(p, given)) < 2 * template.error(p, schedule)


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
@pytest.mark.parametrize("dtype", [F16, BF16], ids=lambda t: t.name)
def test_dense_layers(dtype: DType, cpu: Cpu) -> None:
    rng = np.random.default_rng(5)
    for images, outputs, layout in ((1, 37, NCHW), (2, 16, NHWC), (7, 20, Layout("NCHW8c"))):
        src = Placement(layout, images, 11, 3, 4, (1, 0, 0, 1))
        dst = Placement(NCHW, images, outputs, 1, 1)
        x = rng.standard_normal((images, 11, 3, 4), np.float32)
        sizes = np.array([1e-8, 1e6, 1.0])[np.arange(outputs) % 3]
        weights = (rng.standard_normal((outputs, 132)) * sizes[:, None]).astype(np.float32)
        bias = (rng.standard_normal(outputs) * sizes).astype(np.float32)
        program = dense.build(dense.Dense(True, weights=dtype), cpu, src, dst)
        found = execute(program, {"x": x, "weights": weights, "bias": bias})[:, :, 0, 0]
        truth = x.reshape(images, -1).astype(np.float64) @ weights.T.astype(np.float64) + bias
        off = (found - truth) / (sizes * 132**0.5)
        assert np.sqrt(np.mean(np.square(off))) < 1.5 * ROUNDING[dtype]

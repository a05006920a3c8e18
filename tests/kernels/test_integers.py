"""Kernels of integers give the true sums to the bit, on operands that saturate as well."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.conv.depthwise import kinds
from fastrun.kernels.conv.im2col.forms import kinds as im2col_kinds
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem, ProblemError
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.quantised import trial_operands
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.registry import applicable, templates
from tests.support.integers import steps_allowed, steps_off_by
from tests.support.lanes import RUN_HERE

AVX2 = replace(Cpu.avx2(), model=Cpu.host().model, lanes=8, registers=16)
CPUS = [*RUN_HERE, *([AVX2] if Cpu.host().lanes >= 8 else [])]

PROBLEMS = [
    "conv 1x16x9x7 16x3x3 s1 p1 bias relu u8s8>u8",
    "conv 2x7x6x5 5x3x3 s2 p1 bias u8s8>u8",
    "conv 1x40x5x6 33x1x1 s1 p0 bias add relu u8s8>u8",
    "conv 1x64x4x5 48x1x1 s1 p0 bias add u8s8>f32",
    "conv 1x3x20x21 18x7x7 s2 p3 bias relu6 u8s8>u8",
    "conv 1x5x6x7 7x3x3 s1x2 p1 d1x2 bias u8s8>u8",
    "conv 1x12x7x7 8x3x3 s1 p1 g4 bias leaky0.1 u8s7>u8",
    "conv 1x64x5x5 16x3x3 s1 p1 bias u8s4>u8",
    "conv 1x16x5x5 17x3x3 s1 p1 d2 bias hardswish u8s6>u8",
    "conv 1x100x1x1 37x1x1 s1 p0 bias u8s6>u8",
    "conv 2x64x3x2 40x2x2 s1 p0 g2 bias u8s5>u8",
    "conv 1x32x5x5 1x1x1 s1 p0 bias sigmoid u8s5>f32",
    "conv 1x40x9x8 40x3x3 s1 p1 g40 bias relu6 u8s8>u8",
    "conv 2x19x9x8 19x3x3 s2 p1 g19 bias add u8s7>u8",
    "conv 1x70x7x9 70x5x5 s1 p2 d1x2 g70 bias leaky0.1 u8s8>u8",
    "conv 1x16x9x11 16x7x7 s2x1 p3 d2x1 g16 bias u8s8>f32",
    "conv 1x16x9x7 16x3x3 s1 p1 bias relu u8s9>u8",
    "conv 2x140x5x6 33x1x1 s1 p0 bias add u8s9>u8",
    "conv 2x3x20x21 18x7x7 s2 p3 bias relu6 u8s9>u8",
    "conv 1x24x7x7 16x3x3 s1 p1 g2 d2x1 bias u8s9>f32",
    "conv 1x40x9x8 40x3x3 s1 p1 g40 bias relu6 u8s9>u8",
]


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
@pytest.mark.parametrize("text", PROBLEMS)
def test_outputs_are_exact(text: str, cpu: Cpu) -> None:
    p = ConvProblem.parse(text)
    for template in applicable(p, cpu):
        if template.name == "winograd":
            continue  # it has fields of its own: see test_winograd_integers
        first = template.heuristic(p, cpu)
        schedules = [first]
        if hasattr(first, "dot"):
            small = {"cols": 1} | ({"rows": 2} if template.name == "pointwise" else {"tile_w": 2})
            names = [dot.name for dot in dots(p.precision, cpu)]
            if template.name == "im2col":
                names, small = (
                    list(im2col_kinds(p, cpu)),
                    {"cols": 1, "rows": 2, "kc": p.group_c // 2 or 1},
                )
            if template.name == "depthwise":
                names, small = list(kinds(p, cpu)), {"vectors": 1, "tile_h": 2, "tile_w": 3}
            schedules += [replace(first, dot=name, **small) for name in names]
        for schedule in schedules:
            if template.error(p, schedule) == 0:
                try:
                    program = template.program(p, schedule, cpu)
                except ScheduleError:
                    assert schedule is not first
                    continue
                assert steps_off_by(p, program) <= steps_allowed(p), template.text(schedule)


def test_saturating_weights_would_be_found() -> None:
    """The operands of trials meet the saturation of vpmaddubsw, which random ones do not."""
    p = ConvProblem.parse(PROBLEMS[0])
    operands, _ = trial_operands(p, seed=1)
    x, w = operands["x"].astype(int), operands["weights"].astype(int)
    pairs = x[0, 0:2].reshape(2, -1).T @ w[:, 0:2, 1, 1].T
    assert np.abs(pairs).max() > 32767


def test_weights_of_nine_bits_need_products_of_their_own() -> None:
    """Their operands have both signs' extremes, and the rows of a channel fit bytes."""
    p = ConvProblem.parse("conv 1x16x9x7 64x3x3 s1 p1 bias u8s9>u8")
    weights = trial_operands(p, seed=1)[0]["weights"].reshape(p.oc, -1).astype(int)
    assert np.ptp(weights, axis=1).max() == 255
    assert weights.min() < -200
    assert weights.max() > 200
    template = templates()["direct"]
    for cpu in CPUS:
        for dot in dots(p.precision, cpu):
            s = replace(template.heuristic(p, cpu), dot=dot.name, tile_h=1, tile_w=2, cols=1)
            program = template.program(p, s, cpu)
            assert (len(program.stages) == 2) == dot.centred
            if dot.centred:
                with pytest.raises(ValueError, match="differ by more than 255"):
                    program.pack_weights(np.resize([-128, 128], p.weight_shape))


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
def test_weights_of_few_bits_lie_packed_where_they_come_from_memory(cpu: Cpu) -> None:
    """For a single pixel, and in as many bits as they have but for the last group of channels."""
    template = templates()["pointwise"]
    for types in ("u8s4>u8", "u8s5>u8", "u8s6>f32", "u8s7>u8"):
        p = ConvProblem.parse(f"conv 1x128x1x1 80x1x1 s1 p0 bias relu {types}")
        schedule = template.streaming(p, template.heuristic(p, cpu))
        assert (schedule.dot == "packed") == (p.precision.bits < 7)
        program = template.program(p, schedule, cpu)
        assert steps_off_by(p, program) == 0
        several = replace(p, w=2)
        usual = template.heuristic(several, cpu)
        assert template.streaming(several, usual) is usual
        if p.precision.bits < 7:
            packed = program.pack_weights(trial_operands(p, seed=1)[0]["weights"])
            tables = 4 * 80 if any(dot.offset for dot in dots(p.precision, cpu)) else 0
            assert packed.nbytes == 128 * 80 * p.precision.bits // 8 + tables


def test_three_vectors_of_channels_share_the_pixels_that_are_widened() -> None:
    """A tile of one vector takes the bytes of each pixel apart for one product."""
    for text, name in (
        ("conv 1x96x56x56 24x1x1 s1 p0 u8s8>u8", "pointwise"),
        ("conv 1x40x28x28 24x3x3 s1 p1 u8s8>u8", "direct"),
    ):
        schedule = templates()[name].heuristic(ConvProblem.parse(text), Cpu.avx2())
        assert (schedule.dot, schedule.cols) == ("wdp", 3)


def test_sums_beyond_int32_are_refused() -> None:
    with pytest.raises(ProblemError, match="can exceed int32"):
        ConvProblem.parse("conv 1x70000x1x1 1x1x1 s1 p0 u8s8>f32")


def test_blocks_of_channels() -> None:
    template, plain = templates()["direct"], "conv 1x24x6x6 24x3x3 s1 p1 bias relu"
    problems = [ConvProblem.parse(f"{plain} {types}") for types in ("u8s8>u8", "u8s9>u8")]
    for p, cpu in product(problems, CPUS):
        for layout in ("NCHW8c", "NHWC>NCHW8c", "NCHW8c>NHWC"):
            for dot in dots(p.precision, cpu):
                if dot.group <= 8:
                    first = replace(template.heuristic(p, cpu), layout=layout, dot=dot.name)
                    schedule = replace(first, tile_w=2, cols=1)
                    io = Io.of(p, layout)
                    assert steps_off_by(p, template.build(p, schedule, cpu, io)) == 0

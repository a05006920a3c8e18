"""Depthwise: vectors that span groups, in every vector width, against float64."""

import re
from dataclasses import replace

import numpy as np
import pytest

from fastrun.kernels.codegen.reduction import share_met
from fastrun.kernels.conv.depthwise import Schedule, Span, template
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NHWC, Layout
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import ScheduleError
from fastrun.search_spaces.conv.depthwise import space
from tests.support.execution import reference, relative_error, run
from tests.support.lanes import CPUS, cpus

PROBLEMS = [
    "conv 1x3x7x9 3x3x3 s1 p1 g3 bias relu6",
    "conv 2x19x9x11 19x5x5 s2 p2 g19 bias add relu",
    "conv 1x32x8x8 32x7x7 s1 p3 g32 bias",
    "conv 1x17x12x10 17x3x3 s1 p2 d2 g17",
    "conv 1x6x13x14 6x1x1 s3 p0 g6 add",
    "conv 1x5x33x35 5x31x31 s1 p15 g5 bias",
    "conv 1x5x4x21 5x9x13 s1 p4x6 g5 bias",
    "conv 1x6x5x5 6x3x5 s1x2 p4x8 d4 g6 bias relu",
    "conv 1x7x6x9 14x3x3 s1 p1 g7 bias",
    "conv 1x12x6x5 6x3x3 s1 p1 g6 bias relu",
    "conv 1x20x7x6 15x3x3 s1 p1 g5 bias hardswish",
    "conv 1x36x6x7 36x3x3 s2 p1 g9 bias add relu",
    "conv 1x24x5x9 24x3x3 s1 p1 g12 bias",
    "conv 1x64x6x6 64x3x3 s1 p1 g16 bias relu",
]


def cases(p: ConvProblem, cpu: Cpu) -> list[Schedule]:
    """The heuristic's; weights read again and held, several vectors a task, both layouts mixed.

    The first two fit any machine.
    """
    usual = template.heuristic(p, cpu)
    small = Schedule("NHWC", tile_h=2, tile_w=2, vectors=2, rows=1, hold=True)
    mixed = replace(small, layout="NHWC>NCHW16c", tile_w=3, vectors=1, rows=2, hold=False)
    return [usual, replace(small, tile_h=1, vectors=64, hold=False), small, mixed]


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("text", PROBLEMS)
def test_agrees_with_float64(text: str, cpu: Cpu) -> None:
    p = ConvProblem.parse(text)
    operands = random_operands(p, seed=3)
    truth = reference(p, operands)
    for number, schedule in enumerate(cases(p, cpu)):
        try:
            program = template.program(p, schedule, cpu)
        except ScheduleError as refusal:
            known = re.search("too many registers|whole groups do not fill", str(refusal))
            assert known, template.text(schedule)
            assert number > 1, template.text(schedule)
            continue
        whole = run(p, program, operands)
        assert relative_error(whole, truth) < 1e-5, template.text(schedule)
        assert np.array_equal(whole, run(p, program, operands, threads=5))


def test_large_filters_are_not_unrolled() -> None:
    """A 31x31 filter's code is its rows in a loop, not a thousand multiply-adds a pixel."""
    cpu = CPUS[2]
    small = ConvProblem.parse("conv 1x16x9x9 16x3x3 s1 p1 g16")
    large = ConvProblem.parse("conv 1x16x40x40 16x31x31 s1 p15 g16")
    schedule = Schedule("NHWC", tile_h=1, tile_w=2, vectors=1, rows=9, hold=False)
    counts = [
        template.program(p, schedule, cpu).ir.count("call <16 x float> @llvm.fma")
        for p in (small, large)
    ]
    # Tiles of two columns, and a last one, of whose taps a third lie in padding.
    assert counts[0] == (2 * 3 + 2) * 3
    assert counts[1] == 31 * 2


def test_padding_is_not_multiplied() -> None:
    """A 13x13 filter on 7x7 pixels has 13 taps on each axis, of which 7 meet the image."""
    p = ConvProblem.parse("conv 1x16x7x7 16x13x13 s1 p6 g16")
    schedule = Schedule("NHWC", tile_h=1, tile_w=7, vectors=1, rows=7, hold=False)
    program = template.program(p, schedule, CPUS[2])
    assert program.ir.count("call <16 x float> @llvm.fma") == 7 * 7  # of a row, in a loop
    assert share_met(p, 0, 1) == pytest.approx(7 / 13)


def test_a_vector_spans_as_many_groups_as_it_holds() -> None:
    cpu = CPUS[2]
    p = ConvProblem.parse("conv 1x128x8x8 128x3x3 s1 p1 g32")
    assert Span.of(p, NHWC, NHWC, cpu) == Span(16, groups=4, inputs=16, outputs=16, fits=True)
    assert not Span.of(p, NHWC, Layout("NCHW4c"), cpu).outputs > 4
    thin = ConvProblem.parse("conv 1x10x8x8 20x3x3 s1 p1 g10")
    assert Span.of(thin, NHWC, NHWC, cpu) == Span(16, groups=8, inputs=8, outputs=16, fits=True)


def test_refusals_name_the_reason() -> None:
    cpu = CPUS[1]
    dense = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1")
    assert "one group" in (template.why_not(dense, cpu) or "")
    wide = ConvProblem.parse("conv 1x64x8x8 64x3x3 s1 p1 g4")
    assert "more than 8 channels" in (template.why_not(wide, cpu) or "")
    p = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1 g16")
    schedule = template.heuristic(p, cpu)
    with pytest.raises(ScheduleError, match="registers"):
        template.program(p, replace(schedule, tile_h=4, tile_w=4), cpu)
    with pytest.raises(ScheduleError, match="NHWC or NCHWc"):
        template.program(p, replace(schedule, layout="NCHW"), cpu)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("text", PROBLEMS)
def test_space_offers_only_what_can_be_built(text: str, cpu: Cpu) -> None:
    p = ConvProblem.parse(text)
    offered = space(p, cpu)
    legal = list(offered)
    assert legal
    for schedule in legal[:: max(1, len(legal) // 5)]:
        template.program(p, schedule, cpu)

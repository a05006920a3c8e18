"""Products in tile registers, where the processor has them: of bytes, exact, and of floats."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fastrun.kernels.conv.amx.schedule import Lines, Schedule
from fastrun.kernels.conv.amx.sums import multiplies
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, U8
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.assembly import facts
from fastrun.kernels.registry import heuristic_choice, templates
from fastrun.search_spaces.space import space_for
from tests.support.execution import reference, rms_error, run
from tests.support.integers import steps_allowed, steps_off_by
from tests.support.lanes import TILES

CPU = Cpu.host()
AMX = templates()["amx"]

has_tiles = pytest.mark.skipif(
    not (multiplies(CPU, U8) and multiplies(CPU, BF16)), reason="the processor has no tiles"
)

# Full and ragged tiles, rows of the filter as runs of bytes, strides, dilation, groups, batches.
SHAPES = [
    "conv 1x64x9x16 48x3x3 s1 p1 bias relu",
    "conv 2x40x7x7 33x3x3 s1 p1 bias add relu",
    "conv 1x96x14x14 16x1x1 s1 p0 bias",
    "conv 1x24x20x33 40x3x3 s2 p1 bias relu6",
    "conv 1x130x6x5 70x1x1 s1 p0 bias add",
    "conv 1x32x12x9 24x3x3 s1x2 p2 d2x1 bias hardswish",
    "conv 2x64x8x10 96x3x3 s1 p1 g2 bias",
    "conv 1x16x23x19 16x5x5 s1 p2 bias leaky0.1",
    "conv 1x200x1x1 100x1x1 s1 p0 bias",
    "conv 1x128x1x50 64x1x1 s1 p0 bias gelu",
    "conv 2x40x1x90 33x1x3 s1 p0,2,0,5 d1x2 bias add relu",
    "conv 1x32x1x40 48x1x5 s1x2 p0x2 bias",
    "conv 2x40x13x20 33x3x3 s1 p12 d12 bias add relu",
    "conv 1x64x9x33 48x3x3 s1x2 p7 d7 g2 bias",
    "conv 1x48x5x40 40x3x3 s1 p0,9,8,0 d4x9 bias relu",
]
SCHEDULES = [
    {},
    {"rows": 1, "panels": 1, "tiles": 1, "cols": 1},
    {"rows": 3, "panels": 2, "tiles": 3, "cols": 1, "oc_outer": True},
    {"rows": 1000, "tiles": 1, "cols": 3},
    {"rows": 4, "tiles": 1, "cols": 4, "chunks": 1},
    {"strips": True, "rows": 2},
    {"layout": "NHWC", "rows": 2, "strips": False},
    {"rows": 5, "chunks": 1, "stream": True},
    {"rows": 1000, "chunks": 2, "tiles": 1},
]


@has_tiles
@pytest.mark.parametrize("types", ["u8s8>u8", "u8s8>f32", "u8s7>u8", "u8s4>u8"])
@pytest.mark.parametrize("text", [*SHAPES, "conv 1x3x20x21 18x7x7 s2 p3 bias relu6"])
def test_integers_are_exact(text: str, types: str) -> None:
    p = ConvProblem.parse(f"{text} {types}")
    first = AMX.heuristic(p, CPU)
    for fields in SCHEDULES:
        if fields.get("strips"):
            continue
        program = AMX.program(p, replace(first, **fields), CPU)
        assert steps_off_by(p, program) <= steps_allowed(p), fields


@has_tiles
@pytest.mark.parametrize("types", ["", "bf16", "bf16>f32", "f32bf16"])
@pytest.mark.parametrize("text", SHAPES)
def test_floats_are_as_exact_as_said(text: str, types: str) -> None:
    p = ConvProblem.parse(f"{text} {types}".strip())
    operands = random_operands(p, seed=3) | {"poison": np.array(0x7FC0)}
    truth = reference(p, operands)
    first, ran = AMX.heuristic(p, CPU), 0
    for fields, terms in product(SCHEDULES, (2, 3) if not types else (1,)):
        if fields.get("cols") == 4 and terms > 1:
            continue
        try:
            schedule = replace(first, **fields, terms=terms)
            program = AMX.program(p, schedule, CPU)
        except ScheduleError:
            assert types.startswith("bf16"), "only bf16 may be read in place"
            continue
        found, ran = run(p, program, operands, threads=2), ran + 1
        assert rms_error(found, truth) <= 2 * AMX.error(p, schedule) + 2**-23, schedule
    assert ran >= 4


@has_tiles
def test_three_numbers_are_as_exact_as_float32() -> None:
    p = ConvProblem.parse("conv 1x256x9x9 64x3x3 s1 p1 bias")
    operands = random_operands(p, seed=4)
    truth = reference(p, operands)
    two = AMX.heuristic(p, CPU)
    assert two.terms == 2
    three = AMX.heuristic_within(p, CPU, 2e-6)
    assert three.terms == 3
    errors = [rms_error(run(p, AMX.program(p, s, CPU), operands), truth) for s in (two, three)]
    assert errors[0] > 2e-6 > 4 * errors[1]
    direct = templates()["direct"]
    plain = run(p, direct.program(p, direct.heuristic(p, CPU), CPU), operands)
    assert errors[1] < 2 * rms_error(plain, truth)


@pytest.mark.parametrize(
    ("text", "strips"),
    [
        ("conv 1x64x1x8000 128x1x3 s1 p0x1 d1x8 bias", True),
        ("conv 1x64x1x8000 128x1x3 s1 p0x128 d1x128 bias", False),
        ("conv 1x64x1x197 192x1x1 s1 p0 bias gelu", True),
        ("conv 1x192x1x197 768x1x1 s1 p0 bias u8s8>u8", False),
    ],
)
def test_a_row_of_pixels_is_shared_by_tasks(text: str, strips: bool) -> None:
    """It was a single task, so one thread did all."""
    p = ConvProblem.parse(text)
    cpu = replace(TILES, cores=2)
    s = AMX.heuristic(p, cpu)
    assert s.strips is strips
    program = AMX.program(p, s, cpu)
    assert program.stages[-1].tasks > 1
    assert program.io == Io.of(p, s.layout)


@has_tiles
def test_rows_are_the_same_whoever_computes_them() -> None:
    """The bits of an output do not depend on how an image is cut."""
    p = ConvProblem.parse("conv 1x48x17x13 40x3x3 s1 p1 bias")
    operands = random_operands(p, seed=5)
    first = AMX.heuristic(p, CPU)
    found = [
        run(p, AMX.program(p, replace(first, rows=rows, tiles=tiles), CPU), operands)
        for rows, tiles in product((1, 4, 17), (1, 2))
    ]
    assert all(np.array_equal(x, found[0]) for x in found)


def test_a_line_covers_every_pixel_once_or_twice() -> None:
    for text, rows in product(SHAPES, (1, 2, 5)):
        p = ConvProblem.parse(text)
        pitch = p.w + p.padding[1] + p.padding[3]
        lines = Lines.of(p, AMX.heuristic(p, TILES), pitch, min(rows, p.oh))
        assert lines.height <= 16
        assert 0 <= lines.overlap < lines.tiles
        assert lines.total * lines.height >= min(rows, p.oh) * p.ow


def test_bytes_of_few_steps_fill_cache_lines() -> None:
    """Four tiles of channels are a line; of more steps each weight should serve two products."""
    for text, block in (
        ("conv 1x64x28x28 256x1x1 s1 p0 bias relu u8s8>u8", (1, 4)),
        ("conv 1x512x28x28 64x1x1 s1 p0 bias relu u8s8>u8", (1, 4)),
        ("conv 1x64x28x28 48x1x1 s1 p0 bias relu u8s8>u8", (2, 2)),
        ("conv 1x64x28x28 256x1x1 s1 p0 bias relu u8s8>f32", (2, 2)),
        ("conv 1x1024x28x28 64x1x1 s1 p0 bias relu u8s8>u8", (2, 2)),
        ("conv 1x64x28x28 64x3x3 s1 p1 bias relu u8s8>u8", (2, 2)),
        ("conv 1x64x28x28 256x1x1 s1 p0 bias relu", (2, 2)),
    ):
        s = AMX.heuristic(ConvProblem.parse(text), TILES)
        assert (s.tiles, s.cols) == block, text


def test_tiles_leave_out_taps_that_meet_only_padding() -> None:
    """Wide dilation, as in DeepLab: of nine taps all but one to four meet only padding."""
    met = {}
    for dilation in (1, 12, 24):
        text = f"conv 1x960x20x20 256x3x3 s1 p{dilation} d{dilation} bias"
        p = ConvProblem.parse(text)
        schedule = AMX.heuristic(p, TILES)
        met[dilation] = Lines.of(p, schedule, p.w + 2 * dilation, 20).met
        zero_point = ConvProblem.parse(f"{text} u8s8>u8")  # in the padding, and of some effect
        assert Lines.of(zero_point, schedule, p.w + 2 * dilation, 20).met == 1
    assert met == pytest.approx({1: 1, 12: 0.4, 24: 1 / 9})


def test_tiles_are_chosen_where_they_are_faster() -> None:
    """Without measuring: for many channels, not for a first layer nor on other processors."""

    def chosen(text: str, cpu: Cpu = TILES) -> str:
        return heuristic_choice(ConvProblem.parse(text), cpu)[0].name

    assert chosen("conv 1x512x7x7 512x3x3 s1 p1 bias") == "amx"
    assert chosen("conv 1x1024x14x14 256x1x1 s1 p0 bias") == "amx"
    assert chosen("conv 1x64x56x56 64x3x3 s1 p1 bias u8s8>u8") == "amx"
    assert chosen("conv 1x3x224x224 64x7x7 s2 p3 bias") != "amx"
    assert chosen("conv 1x64x56x56 64x3x3 s1 p1 g64 bias") != "amx"
    assert chosen("conv 1x512x7x7 512x3x3 s1 p1 bias", Cpu.avx512()) != "amx"
    # Of filters with few rows or columns Winograd's method saves less.
    large = replace(TILES, l2=2 << 20)
    assert chosen("conv 1x128x16x16 256x2x2 s1 p1 bias relu", large) == "amx"
    assert chosen("conv 1x64x64x64 64x3x3 s1 p1 bias", large) == "amx"
    assert chosen("conv 1x16x128x128 16x3x3 s1 p1 bias", large) == "winograd"
    assert chosen("conv 1x45x8x3136 64x3x1 s1 p1x0 bias", large) == "winograd"


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        (SHAPES[0], {"tiles": 3, "cols": 3}, "leave none for operands"),
        (SHAPES[0], {"tiles": 1, "cols": 4}, "leave none for operands"),
        (SHAPES[0], {"terms": 4}, "terms=4"),
        (SHAPES[0] + " u8s8>u8", {"terms": 2}, "terms=2"),
        (SHAPES[0] + " u8s8>u8", {"strips": True}, "is not copied"),
        (SHAPES[0], {"layout": "NCHW"}, "writes NHWC or NCHW16c"),
        (SHAPES[0], {"layout": "NCHW8c>NCHW16c"}, "copies input in NHWC or NCHW16c"),
    ],
)
def test_what_cannot_be_is_one_line(text: str, fields: dict[str, object], message: str) -> None:
    p = ConvProblem.parse(text)
    with pytest.raises(ScheduleError, match=message):
        AMX.program(p, replace(AMX.heuristic(p, TILES), **fields), TILES)


def test_every_schedule_of_the_space_can_be_built() -> None:
    for text in ("conv 1x64x14x14 96x3x3 s1 p1 bias", SHAPES[3] + " u8s8>u8", SHAPES[4]):
        p = ConvProblem.parse(text)
        space = space_for("amx", p, TILES)
        assert space.point(AMX.heuristic(p, TILES)) is not None
        schedules = list(space)
        assert len(schedules) > 20
        for schedule in schedules:
            assert isinstance(schedule, Schedule)
            AMX.build(p, schedule, TILES, Io.of(p, schedule.layout))


def test_products_with_the_same_weights_follow_one_another() -> None:
    """Other weights take as long to load into the multipliers as a product of 16 rows."""
    for text in ("conv 1x64x14x14 64x3x3 s1 p1 bias", "conv 1x64x14x14 64x3x3 s1 p1 bias u8s8>u8"):
        p = ConvProblem.parse(text)
        ir = AMX.program(p, AMX.heuristic(p, TILES), TILES).ir
        weights = re.findall(r"call void @llvm.x86.tdp\w+\(i8 \d, i8 \d, i8 (\d)\)", ir)
        assert len(weights) >= 4
        assert weights[::2] == weights[1::2]


def test_a_block_is_finished_until_the_last_step_of_the_next() -> None:
    """Vectors' multipliers sleep where nothing uses them, and stores of sums wait for them."""
    lines = Lines(1, 14, joined=True)
    for steps in (1, 9, 14, 36, 144):
        shares = [lines.share(step, steps) for step in range(steps)]
        assert [row for first, end in shares for row in range(first, end)] == list(range(14))
        assert shares[-1][1] - shares[-1][0] == max(end - first for first, end in shares)


def test_products_of_tiles_are_found_in_the_hot_loop() -> None:
    """Twelve products and eight tiles that are read, for two numbers of bf16 each."""
    p = ConvProblem.parse("conv 1x256x14x14 256x3x3 s1 p1 bias")
    found = facts(AMX.program(p, AMX.heuristic(p, TILES), TILES), TILES)
    assert (found.tiles, found.fmas) == (12, 0)
    assert 8 * 16 <= found.memory_references < 8 * 16 + 8
    assert found.bound == 1.0

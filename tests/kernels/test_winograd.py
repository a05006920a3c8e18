"""Winograd: exact matrices, every size of tile on ragged maps, accuracy, and what tasks share."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from fastrun.kernels.conv import winograd, winograd_naive
from fastrun.kernels.conv.winograd.parts import Axis, Parts, widened
from fastrun.kernels.conv.winograd.transform import (
    POINTS,
    Transform,
    expected_error,
    finite_points,
    tile_sizes,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import KernelTemplate, ScheduleError
from fastrun.kernels.native.assembly import facts
from tests.support.execution import reference, run

CPU = Cpu.host()
RMS_LIMIT = 2e-5


def rms_error(p: ConvProblem, template: KernelTemplate, schedule: object, seed: int = 1) -> float:
    operands = random_operands(p, seed)
    truth = reference(p, operands)
    found = run(p, template.program(p, schedule, CPU), operands)
    return float(np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2)))


def schedule(**changes: object) -> winograd.Schedule:
    usual: dict[str, object] = {
        "layout": "NCHW8c", "mh": 4, "mw": 4, "points": "balanced", "nr_tiles": 5, "cols": 2,
        "unroll": 4, "oc_block": 1, "prefetch": 0, "split": "tiles",
    }  # fmt: skip
    return winograd.Schedule(**{**usual, **changes})


def times(matrix, columns):
    return [[sum(a * b for a, b in zip(row, c, strict=True)) for c in columns] for row in matrix]


def transposed(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


@pytest.mark.parametrize(
    ("kernel", "stride"), [(7, 2), (4, 2), (3, 2), (11, 4), (2, 3), (9, 1), (13, 1)]
)
def test_parts_have_every_tap_once(kernel: int, stride: int) -> None:
    axis = Axis.of(kernel, stride)
    taps = sorted(int(tap) for tap in axis.numbers(kernel).ravel() if tap < kernel)
    assert taps == list(range(kernel))
    assert axis.taps <= 7


PARTS = [
    # A network's first layer; channels that fill no vector; an axis without stride; a large
    # filter; images, groups, residual
    "conv 1x3x23x29 20x7x7 s2 p3 bias relu",
    "conv 1x20x13x11 17x4x4 s2 p1 bias",
    "conv 1x16x9x17 16x5x3 s1x3 p2x0",
    "conv 1x18x11x12 9x9x10 s1 p4 bias",
    "conv 2x32x9x10 48x3x3 s2 p0,1,1,0 g2 bias add relu",
    "conv 1x5x41x1 16x11x1 s1 p5x0",
]


@pytest.mark.parametrize("text", PARTS)
def test_strided_and_large_filters(text: str) -> None:
    """The heuristic's, and other tiles and tasks, in plain and blocked layouts."""
    p = ConvProblem.parse(text)
    usual = winograd.heuristic(p, CPU)
    wide = min(2, max(widened(p).kernel[1] - 1, 1))
    plain = replace(usual, layout="NHWC", mh=2, mw=wide, nr_tiles=3, split="channels", oc_block=2)
    blocked = replace(usual, layout="NCHW8c", nr_tiles=7, split="tiles", cols=1)
    for s in (usual, plain) if p.groups > 1 else (usual, plain, blocked):
        assert rms_error(p, winograd.template, s) < RMS_LIMIT, s


def test_parts_are_few_products() -> None:
    """A 7x7 filter of stride 2 is four of 4x4: of 196 taps 147 are its own."""
    p = ConvProblem.parse("conv 1x3x224x224 64x7x7 s2 p3 bias relu")
    inner = widened(p)
    assert (Parts.of(p).count, inner.c, inner.kernel, inner.stride) == (4, 12, (4, 4), (1, 1))
    assert (inner.oh, inner.ow) == (p.oh, p.ow)
    assert winograd.rank(p, CPU) > 1
    assert winograd.rank(ConvProblem.parse("conv 1x256x14x14 256x3x3 s2 p1"), CPU) == 0
    dilated = ConvProblem.parse("conv 1x16x33x33 16x3x3 s2 p2 d2")
    assert "gaps" in (winograd.why_not(dilated, CPU) or "")


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize(
    ("m", "r"), [(1, 3), (2, 3), (3, 3), (4, 3), (5, 3), (6, 3), (2, 5), (4, 5), (2, 7), (3, 1)]
)
def test_nested_transforms_are_exactly_a_correlation(m: int, r: int, points: str) -> None:
    """At [(G g Gt) * (Bt d B)] A in rationals, with another size across than down."""
    down, across = Transform.of(m, r, points), Transform.of(2, 3, points)
    draw = np.random.default_rng(m * 10 + r)
    g = [[Fraction(int(x)) for x in row] for row in draw.integers(-9, 10, (r, 3))]
    d = [[Fraction(int(x)) for x in row] for row in draw.integers(-9, 10, (down.alpha, 4))]

    def both(vertical, x, horizontal):
        return times(times(vertical, transposed(x)), horizontal)

    u, v = both(down.g, g, across.g), both(down.bt, d, across.bt)
    products = [[a * b for a, b in zip(*rows, strict=True)] for rows in zip(u, v, strict=True)]
    found = both(down.at, products, across.at)
    taps = list(product(range(r), range(3)))
    assert found == [
        [sum(g[i][j] * d[y + i][x + j] for i, j in taps) for x in range(2)] for y in range(m)
    ]


def test_points_are_few_and_named() -> None:
    assert finite_points(3, "balanced") == finite_points(3, "standard") == (0, 1, -1)
    assert finite_points(5, "balanced") != finite_points(5, "standard")
    with pytest.raises(ScheduleError, match="use one of standard, balanced"):
        rms_error(
            ConvProblem.parse("conv 1x8x8x8 8x3x3 s1 p1"), winograd.template, schedule(points="pi")
        )
    with pytest.raises(ScheduleError, match="no balanced points for 10 inputs"):
        rms_error(ConvProblem.parse("conv 1x8x8x8 8x5x5 s1 p2"), winograd.template, schedule(mh=6))


@pytest.mark.parametrize(("m", "r"), [(3, 3), (4, 3), (5, 3), (2, 5)])
def test_balanced_points_amplify_less(m: int, r: int) -> None:
    standard, balanced = (Transform.of(m, r, points).amplification for points in POINTS)
    assert 1 < balanced < standard


def test_tile_sizes_that_a_smaller_one_makes_pointless_are_left_out() -> None:
    assert tile_sizes(3, 56) == [1, 2, 3, 4, 5, 6, 7]
    assert tile_sizes(3, 14) == [1, 2, 3, 4, 5, 7]
    assert tile_sizes(3, 7) == [1, 2, 3, 4, 7]
    assert tile_sizes(5, 14) == [1, 2, 3, 4, 5]
    assert tile_sizes(1, 14) == tile_sizes(3, 1) == [1]


@pytest.mark.parametrize("m", [(2, 2), (4, 4), (6, 6), (7, 7), (7, 1)])
def test_expected_errors_are_those_found(m: tuple[int, int]) -> None:
    p = ConvProblem.parse("conv 1x96x14x14 16x3x3 s1 p1")
    found = rms_error(p, winograd.template, schedule(mh=m[0], mw=m[1]))
    assert found == pytest.approx(expected_error(p, m), rel=0.5)


RAGGED = [
    "conv 1x16x12x12 16x3x3 s1 p1",
    "conv 2x9x7x13 11x3x3 s1 p0 bias relu",
    "conv 3x5x5x8 7x3x3 s1 p2 bias add hardswish",
    "conv 1x20x13x6 24x3x3 s1 p2,0,1,1 add relu6",
]


@pytest.mark.parametrize("text", RAGGED)
@pytest.mark.parametrize(("mh", "mw"), [(2, 2), (3, 4), (5, 5), (6, 6), (1, 7), (7, 2)])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW16c>NCHW4c"])
def test_every_tile_on_ragged_maps(text: str, mh: int, mw: int, layout: str) -> None:
    p = ConvProblem.parse(text)
    assert rms_error(p, winograd.template, schedule(layout=layout, mh=mh, mw=mw)) < RMS_LIMIT


@pytest.mark.parametrize("text", RAGGED)
@pytest.mark.parametrize("m", [2, 4, 6])
def test_naive_on_ragged_maps(text: str, m: int) -> None:
    p = ConvProblem.parse(text)
    naive = winograd_naive.Schedule("NCHW", m)
    assert rms_error(p, winograd_naive.template, naive) < RMS_LIMIT


@pytest.mark.parametrize("text", ["conv 1x8x9x9 8x5x5 s1 p2", "conv 1x8x7x9 8x1x7 s1 p0x3",
                                  "conv 2x32x6x6 32x3x3 s1 p1 g2 bias"])  # fmt: skip
def test_other_filters_and_groups(text: str) -> None:
    p = ConvProblem.parse(text)
    mh, mw = (1 if r == 1 else 2 for r in p.kernel)
    assert rms_error(p, winograd.template, schedule(mh=mh, mw=mw)) < RMS_LIMIT


def test_errors_grow_with_the_tile_and_stay_in_bounds() -> None:
    """Root mean squares relative to the output's, for the deepest sum of the usual networks."""
    p = ConvProblem.parse("conv 1x512x12x12 16x3x3 s1 p1")
    sets = [(2, "standard"), (4, "balanced"), (4, "standard"), (6, "standard")]
    errors = [
        rms_error(p, winograd.template, schedule(mh=m, mw=m, points=points)) for m, points in sets
    ]
    assert errors == sorted(errors)
    assert errors[0] < 2e-6
    assert errors[-1] < RMS_LIMIT


@pytest.mark.parametrize("split", ["tiles", "channels"])
@pytest.mark.parametrize("changes", [{"nr_tiles": 4}, {"nr_tiles": 3, "oc_block": 2, "cols": 1}])
def test_bits_do_not_depend_on_the_cut(split: str, changes: dict[str, object]) -> None:
    p = ConvProblem.parse("conv 2x24x9x10 40x3x3 s1 p1 bias relu")
    program = winograd.template.program(p, schedule(split=split, **changes), CPU)
    operands = random_operands(p, seed=3)
    whole = run(p, program, operands)
    for threads in (2, 3, 7):
        assert np.array_equal(whole, run(p, program, operands, threads))


def test_both_splits_agree_bit_by_bit() -> None:
    p = ConvProblem.parse("conv 1x24x9x10 40x3x3 s1 p1")
    operands = random_operands(p, seed=4)
    outputs = [
        run(p, winograd.template.program(p, schedule(split=split, nr_tiles=n), CPU), operands)
        for split, n in (("tiles", 3), ("channels", 4))
    ]
    assert np.array_equal(*outputs)


@pytest.mark.parametrize("cols", [2, 3])
@pytest.mark.parametrize("target", [Cpu.avx2(), Cpu.avx512()], ids=lambda cpu: cpu.name)
def test_unrolled_products_stay_in_registers(target: Cpu, cols: int) -> None:
    p = ConvProblem.parse("conv 1x64x56x56 64x3x3 s1 p1 bias relu")
    blocked = schedule(layout="NCHW16c", mh=2, mw=2, nr_tiles=28, cols=cols)
    found = facts(winograd.template.program(p, blocked, target), target)
    assert found.stack_references == 0, found.hot_loop


@pytest.mark.parametrize("channels", [512, 2048])
def test_the_heuristic_prefers_tiles_that_are_exact_enough(channels: int) -> None:
    """The cheapest tile of these layers would err by more than 2e-5 of the output's rms."""
    p = ConvProblem.parse(f"conv 1x{channels}x28x28 {channels}x3x3 s1 p1")
    chosen = winograd.template.heuristic(p, Cpu.host())
    assert expected_error(p, (chosen.mh, chosen.mw)) <= 2e-5
    assert expected_error(p, (7, 7)) > 2e-5


@pytest.mark.parametrize("limit", [2e-6, 6e-7])
def test_a_limit_of_the_error_is_met_by_smaller_tiles(limit: float) -> None:
    p = ConvProblem.parse("conv 1x64x26x26 32x3x3 s1 p1")
    usual, within = (winograd.template.heuristic_within(p, CPU, e) for e in (None, limit))
    assert 2 <= within.mh < usual.mh
    assert rms_error(p, winograd.template, within) < limit < rms_error(p, winograd.template, usual)


def test_there_may_be_no_tile_within_a_limit() -> None:
    p = ConvProblem.parse("conv 1x64x26x26 32x3x3 s1 p1")
    assert winograd.template.heuristic_within(p, CPU, 1e-8) is None

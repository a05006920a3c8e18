"""Winograd of integers: exact where it says so, bounded elsewhere, and no sum exceeds int32."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.conv import winograd
from fastrun.kernels.conv.winograd.rounding import Rounding, rounded
from fastrun.kernels.conv.winograd.transform import transform_weights
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.quantised import steps_off, trial_operands
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.core.types import Types
from fastrun.kernels.registry import parse_schedule
from fastrun.search_spaces.space import space_for
from tests.kernels.test_integers import CPUS
from tests.support.execution import execute

PROBLEM = ConvProblem.parse("conv 1x64x13x12 24x3x3 s1 p1 bias relu u8s8>u8")
STEPS = 0.1


def schedule(p: ConvProblem, cpu: Cpu = CPUS[-1], **changes: object) -> winograd.Schedule:
    small = {"nr_tiles": 5, "cols": 2, "split": "tiles", "prefetch": 0, "points": "standard"}
    return replace(winograd.heuristic(p, cpu), **{**small, "chunk": "", **changes})


def outputs(
    p: ConvProblem, s: winograd.Schedule, cpu: Cpu = CPUS[-1]
) -> tuple[NDArray[np.floating], NDArray[np.float64], NDArray[np.floating]]:
    """(found, truth, what exact sums give) on operands that saturate."""
    operands, scales = trial_operands(p, seed=1)
    bias = operands["bias"] if p.bias else None
    add = operands["add"] if p.add else None
    sums = scales.sums(p, operands["x"], operands["weights"], bias)
    stored = scales.stored(p, sums, add)
    poison = int(stored.flat[0]) ^ 0x80 if stored.dtype == np.uint8 else 0
    packed = scales.operand(p, operands["weights"], bias)
    given = {**operands, "packed_bias": packed, "poison": poison}
    program = winograd.template.program(p, s, cpu)
    return execute(program, given, threads=2), scales.truth(p, sums, add), stored


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
@pytest.mark.parametrize("m", [(2, 2), (3, 3), (4, 4), (4, 1)])
def test_small_tiles_are_exact(m: tuple[int, int], cpu: Cpu) -> None:
    """No int16 and no sum is rounded, so only float32 in the output transform is."""
    for dot in dots(Types.pairs(), cpu):
        s = schedule(PROBLEM, cpu, mh=m[0], mw=m[1], dot=dot.name)
        found, _, stored = outputs(PROBLEM, s, cpu)
        assert np.array_equal(found, stored), winograd.template.text(s)


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("conv 2x7x6x5 5x3x3 s1 p1 bias u8s8>u8", {}),
        ("conv 1x35x9x7 19x3x3 s1 p0,1,2,1 bias add relu6 u8s8>u8", {"layout": "NHWC>NCHW8c"}),
        ("conv 1x48x9x7 24x3x3 s1 p1 d2 bias add hardswish u8s7>u8", {"layout": "NCHW16c>NHWC"}),
        ("conv 1x24x7x7 24x3x3 s1 p1 g3 bias leaky0.1 u8s8>u8", {"layout": "NCHW8c"}),
        ("conv 2x10x6x7 14x3x3 s1 p1 g2 bias u8s8>u8", {"split": "channels"}),
        ("conv 1x9x11x8 8x5x5 s1 p2 u8s6>u8", {"mh": 2, "mw": 3, "points": "balanced"}),
        ("conv 1x20x7x9 12x1x7 s1 p0x3 bias u8s5>u8", {"mh": 1, "mw": 2}),
        ("conv 1x100x6x6 9x3x3 s1 p1 bias u8s8>u8", {"chunk": "32"}),
        ("conv 1x96x6x6 33x3x3 s1 p1 bias u8s8>u8", {"chunk": "32", "oc_block": 4, "cols": 1}),
        ("conv 1x64x8x8 24x3x3 s1 p1 bias u8s8>u8", {"points": "balanced", "prefetch": 64}),
        ("conv 1x1x5x5 3x2x2 s1 p0 u8s8>u8", {}),
        ("conv 1x40x9x7 24x3x3 s1 p1 bias add u8s9>u8", {}),
    ],
)
def test_odd_problems(text: str, changes: dict[str, object], cpu: Cpu) -> None:
    p = ConvProblem.parse(text)
    s = schedule(p, cpu, **{"mh": 4, "mw": 4, **changes})
    found, truth, _ = outputs(p, s, cpu)
    rms, largest = steps_off(found, truth)
    assert rms <= STEPS, winograd.template.text(s)
    assert largest <= 1


@pytest.mark.parametrize("m", [(4, 4), (5, 5), (6, 6)])
@pytest.mark.parametrize("types", ["u8s8>u8", "u8s8>f32"])
def test_errors_are_no_larger_than_expected(m: tuple[int, int], types: str) -> None:
    p = ConvProblem.parse(f"conv 1x128x12x12 16x3x3 s1 p1 bias {types}")
    s = schedule(p, mh=m[0], mw=m[1], points="balanced", chunk="64")
    found, truth, _ = outputs(p, s)
    expected = winograd.template.error(p, s)
    if types.endswith("u8"):
        assert expected / 4 < steps_off(found, truth)[0] < expected
    else:
        rms = math.sqrt(np.square(found - truth).mean() / np.square(truth).mean())
        assert expected / 8 < rms < expected  # these outputs have a large mean


@pytest.mark.parametrize("points", ["standard", "balanced"])
@pytest.mark.parametrize("chunk", ["", "64"])
@pytest.mark.parametrize("m", [2, 4, 5, 6])
def test_no_sum_exceeds_int32(m: int, chunk: str, points: str) -> None:
    """The input that makes the sum of each plane largest or least, in integers of any size."""
    p = ConvProblem.parse("conv 1x192x12x12 6x3x3 s1 p1 u8s8>u8")
    rounding = Rounding.of(p, (m, m), points, chunk)
    weights = trial_operands(p, 1)[0]["weights"].astype(np.float32)
    weights[0], weights[1] = 127, 0
    weights[2, ::2], weights[2, 1::2] = 127, -127
    # The inputs of a plane of which each is 0 or 255, whatever makes its value largest.
    bt = np.array(rounding.vertical.bt, np.float64)
    both = np.kron(bt, bt) * rounding.input_scales[:, None]
    largest = np.rint(255 * np.maximum(both, 0).sum(1))
    least = np.rint(255 * np.minimum(both, 0).sum(1))
    assert max(largest.max(), -least.min()) <= 32767

    u = transform_weights(weights.swapaxes(0, 1), rounding.vertical, rounding.horizontal)
    starts = list(range(0, p.c, int(chunk or p.c)))
    packed, units = rounding.weights(u.reshape(len(both), p.c, p.oc), starts)
    assert np.isfinite(units).all()
    whole = packed.astype(np.float64)
    plus, minus = np.maximum(whole, 0), np.minimum(whole, 0)
    high, low = largest[:, None, None], least[:, None, None]
    most = np.add.reduceat(plus * high + minus * low, starts, axis=1).max()
    fewest = np.add.reduceat(plus * low + minus * high, starts, axis=1).min()
    assert fewest >= -(2**31)
    assert most < 2**31
    # Scales are no smaller than they must be: some plane fills its room or is exact.
    exact = np.isclose(units * rounding.input_scales[:, None] * rounding.denominators[:, None], 1)
    assert exact.any() or max(most, -fewest) > 2**29


def test_rounding_keeps_sums() -> None:
    values = np.random.default_rng(1).normal(0, 9, (300, 5))
    values[:, 1] = 0.4  # each alone would become 0
    found = rounded(values)
    assert np.abs(found - values).max() < 1
    assert np.abs(found.sum(0) - values.sum(0)).max() <= 0.5
    assert found[:, 1].sum() == 120


@pytest.mark.parametrize("split", ["tiles", "channels"])
def test_bits_do_not_depend_on_the_split(split: str) -> None:
    other = schedule(PROBLEM, mh=4, mw=5, points="balanced", split=split, nr_tiles=3, oc_block=2)
    first = schedule(PROBLEM, mh=4, mw=5, points="balanced")
    assert np.array_equal(outputs(PROBLEM, first)[0], outputs(PROBLEM, other)[0])


@pytest.mark.parametrize("c", [8, 64, 512, 2048])
@pytest.mark.parametrize("dst", ["u8", "f32"])
def test_the_heuristic_is_exact_enough(c: int, dst: str) -> None:
    p = ConvProblem.parse(f"conv 1x{c}x28x28 {c}x3x3 s1 p1 u8s8>{dst}")
    chosen = winograd.heuristic(p, Cpu.avx2())
    assert winograd.template.error(p, chosen) <= winograd.largest_error(p) / 2
    assert max(chosen.mh, chosen.mw) >= 4


def test_the_space_has_no_schedule_that_errs_more() -> None:
    space = space_for("winograd", PROBLEM, Cpu.avx2())
    bad = schedule(PROBLEM, Cpu.avx2(), mh=6, mw=6, dot="wd16", nr_tiles=4, points="balanced")
    assert space.broken_rule(bad) == "exact_enough"
    good = winograd.heuristic(PROBLEM, Cpu.avx2())
    assert space.broken_rule(good) is None
    assert space.point(good) is not None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dot": "wd"}, "dot=wd: for s16"),
        ({"dot": ""}, "for s16"),
        ({"chunk": "many"}, "a number of channels"),
        ({"chunk": "0"}, "a number of channels"),
        ({"chunk": "4"}, "a vector has"),
    ],
)
def test_what_cannot_be_right_is_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        winograd.template.program(PROBLEM, schedule(PROBLEM, **changes), CPUS[-1])


def test_float32_has_neither_field() -> None:
    p = replace(PROBLEM, types="")
    chosen = winograd.heuristic(p, Cpu.avx2())
    assert "dot" not in (text := winograd.template.text(chosen))
    assert parse_schedule(text)[1] == chosen
    for change in ({"dot": "wd16"}, {"chunk": "64"}):
        with pytest.raises(ScheduleError):
            winograd.template.program(p, replace(chosen, **change), Cpu.avx2())

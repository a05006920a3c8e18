"""Float32 convolutions whose products are those of int16 (`f32s16`): errors, range, bad numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fastrun.kernels.codegen.dot import dots
from fastrun.kernels.conv import winograd
from fastrun.kernels.conv.winograd.schedule import Schedule
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.reference import random_operands
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.core.types import Types
from fastrun.kernels.registry import applicable
from fastrun.search_spaces.conv.winograd import space
from tests.support.execution import reference, rms_error, run
from tests.support.lanes import RUN_HERE

CPUS = [cpu for cpu in RUN_HERE if dots(Types.pairs(), cpu)]
pytestmark = pytest.mark.skipif(not CPUS, reason="no products of int16 here")

PROBLEMS = [
    "conv 1x16x9x7 16x3x3 s1 p1 bias relu f32s16",
    "conv 2x24x10x11 40x3x3 s1 p1 bias add f32s16",
    "conv 1x32x12x12 16x3x3 s2 p1 bias f32s16",
    "conv 1x32x8x8 32x3x3 s1 p1 g2 bias leaky0.1 f32s16",
    "conv 1x16x13x12 24x5x5 s1 p2 bias silu f32s16",
    "conv 1x16x14x9 8x3x3 s1 p2 d2 f32s16",
]


def chosen(p: ConvProblem, cpu: Cpu, **fields: object) -> Schedule:
    return replace(winograd.heuristic(p, cpu), **fields)


@pytest.mark.parametrize("cpu", CPUS, ids=lambda c: f"{c.lanes} lanes {c.name}")
@pytest.mark.parametrize("text", PROBLEMS)
def test_errors_are_as_expected(text: str, cpu: Cpu) -> None:
    p = ConvProblem.parse(text)
    given = random_operands(p, seed=4)
    truth = reference(p, given)
    for fields in ({}, {"split": "channels"}, {"layout": "NHWC", "chunk": "16"}):
        schedule = chosen(p, cpu, **fields)
        found = run(p, winograd.template.program(p, schedule, cpu), given, threads=2)
        expected = winograd.template.error(p, schedule)
        assert expected / 10 < rms_error(found, truth) < 1.5 * expected, schedule


def test_a_smaller_limit_takes_smaller_tiles_and_shorter_sums() -> None:
    p = ConvProblem.parse("conv 1x256x14x14 64x3x3 s1 p1 bias f32s16")
    given = random_operands(p, seed=4)
    truth = reference(p, given)
    for limit in (1e-3, 5e-4, 3e-4):
        schedule = winograd.template.heuristic_within(p, CPUS[-1], limit)
        found = run(p, winograd.template.program(p, schedule, CPUS[-1]), given)
        assert limit / 2 < rms_error(found, truth) < limit
    assert winograd.template.heuristic_within(p, CPUS[-1], 1e-4) is None


def test_sums_have_room_for_the_worst_input() -> None:
    """Every plane at its bound, and all channels of the weights' signs: nothing may wrap."""
    p = ConvProblem.parse("conv 1x64x4x4 16x3x3 s1 p1 f32s16")
    rng, given = np.random.default_rng(0), random_operands(p, seed=4)
    given["weights"] = np.abs(given["weights"])
    for pattern in (1.0, rng.choice([-1.0, 1.0], (1, 1, 4, 4))):
        given["x"] = np.broadcast_to(np.float32(pattern), (1, 64, 4, 4)).copy()
        truth = reference(p, given)
        found = run(p, winograd.template.program(p, chosen(p, CPUS[-1]), CPUS[-1]), given)
        assert rms_error(found, truth) < 2e-3 * np.sqrt(np.mean(truth**2))


@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-30, 1e30])
def test_inputs_of_any_size(size: float) -> None:
    p = ConvProblem.parse("conv 1x16x8x8 16x3x3 s1 p1 f32s16")
    given = random_operands(p, seed=4)
    given["x"] *= np.float32(size)
    truth = reference(p, given)
    found = run(p, winograd.template.program(p, chosen(p, CPUS[-1]), CPUS[-1]), given)
    assert np.isfinite(found).all()
    assert rms_error(found, truth) <= 1e-3 * np.sqrt(np.mean(truth**2)) + 1e-40


@pytest.mark.parametrize("split", ["tiles", "channels"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows(bad: float, split: str) -> None:
    """In all outputs that read it, and at most in those of the same block of tiles."""
    p = ConvProblem.parse("conv 1x16x32x32 16x3x3 s1 p1 f32s16")
    given = random_operands(p, seed=4)
    given["x"][0, 3, 1, 1] = bad
    schedule = chosen(p, CPUS[-1], split=split, nr_tiles=8, mh=2, mw=2)
    found = run(p, winograd.template.program(p, schedule, CPUS[-1]), given)
    assert not np.isfinite(found[0, :, :3, :3]).any()
    assert np.isfinite(found[0, :, 8:]).all()


def test_only_winograd_computes_them_in_whole_vectors() -> None:
    p = ConvProblem.parse(PROBLEMS[0])
    assert [t.name for t in applicable(p, CPUS[-1])] == ["winograd"]
    odd = ConvProblem.parse("conv 1x12x9x7 16x3x3 s1 p1 f32s16")
    with pytest.raises(ScheduleError, match="a multiple of 8"):
        winograd.template.program(odd, winograd.heuristic(odd, CPUS[-1]), CPUS[-1])


def test_the_search_tries_exact_enough_schedules() -> None:
    p = ConvProblem.parse("conv 1x64x14x14 64x3x3 s1 p1 bias f32s16")
    tried = space(p, CPUS[-1])
    assert tried.broken_rule(winograd.heuristic(p, CPUS[-1])) is None
    assert tried.broken_rule(chosen(p, CPUS[-1], mh=6, mw=6, nr_tiles=4)) == "exact_enough"

"""Operators on u8: to the bit what their formulas give in NumPy, in every layout and width."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, U8, DType
from fastrun.kernels.core.layout import Layout, Placement
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import pool
from fastrun.kernels.ops.pool import Pool
from tests.kernels.test_ops import HALO, LAYOUTS, POOLS, pooled
from tests.support.execution import execute
from tests.support.lanes import CPUS, cpus
from tests.support.typed import DST, SRC, values, with_scales


def in_steps(steps: np.ndarray) -> np.ndarray:
    """Numbers in steps of the output, as it stores them."""
    return np.clip(np.rint(steps) + DST.zero, 0, 255).astype(np.uint8)


def averaged(spec: Pool, x: np.ndarray, windows: tuple[int, int], dtype: DType) -> np.ndarray:
    """Averages as one multiplication and one division of exact sums in float32."""
    inside, counted = [], []
    for axis in (0, 1):
        zones = pool.zones(spec, axis, x.shape[axis + 2], windows[axis])
        inside.append(np.concatenate([np.full(z.count, len(z.taps)) for z in zones]))
        counted.append(np.concatenate([np.full(z.count, z.counted) for z in zones]))
    means = pooled(replace(spec, count_padding=False), x.astype(np.float64) - SRC.zero, *windows)
    total = np.rint(means * np.outer(*inside)).astype(np.float32)
    factor, taps = np.float32(SRC.scale), np.outer(*counted).astype(np.float32)
    if dtype is U8:
        return in_steps(total * (factor / np.float32(DST.scale)) / taps)
    return total * factor / taps


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_pools(layout: Layout, cpu: Cpu) -> None:
    for number, (spec, image, windows) in enumerate(POOLS):
        after = (U8, F32)[(number + CPUS.index(cpu)) % 2]
        src = Placement(layout.of(U8), 2, 37, *image, HALO, zero=255)
        dst = Placement(layout.of(after), 2, 37, *windows, HALO)
        x = values(U8, 2, 37, *image) // 2  # a halo of 255 would win every maximum
        program = pool.build(spec, cpu, src, dst)
        if spec.function == "max":
            expected = pooled(spec, x, *windows).astype(np.uint8)
            if after is F32:
                real = expected.astype(np.float32) - np.float32(SRC.zero)
                expected = real * np.float32(SRC.scale)
        else:
            expected = averaged(spec, x, windows, after)
        for threads in (1, 3):
            assert np.array_equal(execute(program, with_scales(x=x), threads), expected), spec


def test_ties_of_averages_go_to_even() -> None:
    """With one scale for both, averages of two and of six are often halves."""
    x = values(U8, 1, 64, 12, 12)
    for kernel in ((2, 1), (2, 3), (2, 2)):
        spec, windows = Pool("average", kernel, kernel), (12 // kernel[0], 12 // kernel[1])
        place = Layout("NHWC", U8)
        program = pool.build(
            spec, CPUS[2], Placement(place, 1, 64, 12, 12), Placement(place, 1, 64, *windows)
        )
        operands = {**with_scales(x=x), "packed_bias": np.tile(np.float32([0.3, 7]), 40)}
        sums = pooled(spec, x.astype(np.float64) - 7, *windows)
        expected = np.clip(np.rint(sums) + 7, 0, 255)
        assert (np.abs(sums % 1 - 0.5) < 1e-9).mean() > 0.1
        assert np.array_equal(execute(program, operands), expected)


def test_global_average_of_many_pixels() -> None:
    x, layout = values(U8, 1, 24, 97, 83), Layout("NHWC", U8)
    spec = Pool("average", (97, 83))
    for cpu in CPUS:
        program = pool.build(
            spec, cpu, Placement(layout, 1, 24, 97, 83), Placement(layout, 1, 24, 1, 1)
        )
        total = (x.astype(np.int64) - SRC.zero).sum((2, 3)).astype(np.float32)
        steps = total * (np.float32(SRC.scale) / np.float32(DST.scale)) / np.float32(97 * 83)
        found = execute(program, with_scales(x=x))
        assert np.array_equal(found[..., 0, 0], in_steps(steps))


def test_sums_beyond_int32_are_refused() -> None:
    layout, side = Layout("NHWC", U8), math.isqrt(2**31 // 255) + 1
    src, dst = Placement(layout, 1, 1, side, side), Placement(layout, 1, 1, 1, 1)
    with pytest.raises(ScheduleError, match="exceed int32"):
        pool.build(Pool("average", (side, side)), CPUS[0], src, dst)


def test_pools_of_floats_that_write_bytes() -> None:
    x, layout = values(F32, 1, 21, 8, 8), Layout("NHWC")
    src, dst = Placement(layout, 1, 21, 8, 8), Placement(layout.of(U8), 1, 21, 4, 4)
    found = execute(pool.build(Pool("max", (2, 2), (2, 2)), CPUS[1], src, dst), with_scales(x=x))
    largest = pooled(Pool("max", (2, 2), (2, 2)), x, 4, 4).astype(np.float32)
    assert np.array_equal(found, in_steps(largest / np.float32(DST.scale)))

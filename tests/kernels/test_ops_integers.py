"""Operators on u8: to the bit what their formulas give in NumPy, in every layout and width."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fastrun.graph.reference import numerics
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, U8, DType
from fastrun.kernels.core.layout import Layout, Placement
from fastrun.kernels.core.scales import REAL, Quantisation, scales, table
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import elementwise, pool
from fastrun.kernels.ops.elementwise import Affine, Binary, Clip, Unary
from fastrun.kernels.ops.pool import Pool
from tests.kernels.test_ops import HALO, LAYOUTS, POOLS, pooled
from tests.support.execution import execute
from tests.support.lanes import CPUS, cpus
from tests.support.strided import assert_close
from tests.support.typed import ADD, DST, SRC, run, values, view, with_scales


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


def stored(x: np.ndarray) -> np.ndarray:
    """Real numbers as the output stores them."""
    return in_steps(x.astype(np.float32) / np.float32(DST.scale))


def real(x: np.ndarray, q: Quantisation) -> np.ndarray:
    """What elements stand for, in float32."""
    if x.dtype != np.uint8:
        return x
    return (x.astype(np.float32) - np.float32(q.zero)) * np.float32(q.scale)


def multiplied_added(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """As one instruction does it; products of float32 are exact in float64."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def combined(
    spec: Binary, x: np.ndarray, y: np.ndarray, grids: tuple[Quantisation, Quantisation]
) -> np.ndarray:
    """Sums, differences and products as bytes, in float32 in the order of the kernel."""
    (a, a_zero), (b, b_zero) = ((np.float32(q.scale), np.float32(q.zero)) for q in grids)
    step, u, v = np.float32(DST.scale), x.astype(np.float32), y.astype(np.float32)
    if spec.function == "mul":
        value = (u - a_zero) * (v - b_zero) * (a * b / step)
    else:
        a, b = a / step, b / step * np.float32(-1 if spec.function == "sub" else 1)
        value = multiplied_added(u, a, multiplied_added(v, b, -(a_zero * a + b_zero * b)))
    if spec.activation.startswith("leaky"):
        value = np.maximum(value, value * np.float32(0.1))
    return in_steps(np.maximum(value, 0) if spec.activation == "relu" else value)


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


BROADCAST = [((2, 24, 5, 7), (1, 24, 1, 1)), ((1, 70, 3, 9), (1, 70, 3, 9)), ((3, 65), (3, 1))]


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("function", ["add", "sub", "mul"])
def test_binary(function: str, cpu: Cpu) -> None:
    """Two tensors of u8 with scales of their own, broadcast, and a tensor and a constant."""
    for number, (shape, other) in enumerate(BROADCAST):
        spec = Binary(function, ("", "relu", "leaky0.1")[number])
        last = 1 if number == 0 else None  # as in NHWC
        x, y, constant = values(U8, *shape), values(U8, *other), values(F32, *other)
        src, add, dst = view(shape, last=last), view(other, last=last), view(shape, last=last)
        program = elementwise.binary(spec, cpu, src, add, dst)
        found = run(program, dst, (x, src), (y, add))
        assert np.array_equal(found, combined(spec, x, y, (SRC, ADD))), spec
        row = Strided.row_major(other)
        program = elementwise.binary(spec, cpu, row, src, dst, ("weights", "src"))
        found = run(program, dst, (x, src), weights=constant)
        assert np.array_equal(found, combined(spec, constant, x, (REAL, SRC))), spec


@pytest.mark.parametrize("function", elementwise.BINARY)
def test_binary_of_real_numbers(function: str) -> None:
    """What is not linear is computed in real numbers; u8 and float32 in any mixture."""
    shape, spec = (3, 77), Binary(function, "relu6")
    x, y, wide = values(U8, *shape), values(U8, *shape)[::-1], values(F32, *shape)
    if function in ("div", "pow", "quotient", "mod"):
        x, y = np.maximum(x, SRC.zero + 1), np.maximum(y, ADD.zero + 1)
        wide = np.abs(wide)
    for a, b, after in ((x, y, F32), (wide, y, U8), (x, wide, F32), (x, y, U8)):
        src, add = (view(shape, U8 if t.dtype == np.uint8 else F32) for t in (a, b))
        dst = view(shape, after)
        found = run(elementwise.binary(spec, CPUS[-1], src, add, dst), dst, (a, src), (b, add))
        truth = numerics.BINARY[function](real(a, SRC).astype(float), real(b, ADD).astype(float))
        truth = np.clip(truth, 0, 6)
        if after is F32:
            assert_close(found, truth, ulps=64, least=1e-6)
        else:
            steps = np.clip(truth / DST.scale + DST.zero, 0, 255)
            assert np.abs(found - steps).max() < 0.5 + 1e-4


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_functions_of_one_tensor(cpu: Cpu) -> None:
    """Tables for bytes into bytes; real numbers where one side is float32."""
    shape = (2, 19, 3, 7)
    x, wide = values(U8, *shape), values(F32, *shape)
    src, turned, floats = view(shape), view(shape, last=1), view(shape, F32)
    sigmoid = table(SRC, DST, lambda v: 1 / (1 + np.exp(-v)))
    for program in (
        elementwise.unary(Unary("sigmoid"), cpu, src, turned),
        elementwise.clip(Clip(-1, 1), cpu, src, turned),
    ):
        assert np.array_equal(run(program, turned, (x, src), weights=sigmoid), sigmoid[x])
    found = run(elementwise.clip(Clip(-1, 2), cpu, src, floats), floats, (x, src))
    assert np.array_equal(found, np.clip(real(x, SRC), np.float32(-1), np.float32(2)))
    found = run(elementwise.unary(Unary("relu"), cpu, floats, src), src, (wide, floats))
    assert np.array_equal(found, stored(np.maximum(wide, 0)))


@pytest.mark.parametrize("after", [U8, F32])
def test_affine(after: DType) -> None:
    shape = (2, 19, 3, 7)
    x, both = values(U8, *shape), values(F32, 2, 19)
    src, dst = view(shape, last=1), view(shape, after, last=1)
    program = elementwise.affine(Affine((1,), "relu"), CPUS[1], src, dst)
    a, b = both[:, None, :, None, None]
    value = np.maximum(multiplied_added(real(x, SRC), a, b), 0)
    found = run(program, dst, (x, src), weights=both)
    assert np.array_equal(found, value if after is F32 else stored(value))


def test_halves_of_steps_are_exact() -> None:
    """Scales that are multiples by powers of two: sums that end in a half go to the even step."""
    x, y = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    src = view(x.shape)
    program = elementwise.binary(Binary("add"), CPUS[-1], src, src, src)
    grids = Quantisation(0.3, 3), Quantisation(0.6, 7), Quantisation(0.3, 250)
    operands = {"x": x.reshape(1, 1, 1, -1), "add": y.reshape(1, 1, 1, -1), "poison": 1}
    operands["packed_bias"] = np.concatenate([scales(*grids), np.zeros(64, np.float32)])
    found = execute(program, operands).reshape(x.shape)
    twice = x.astype(int) - 3 + y.astype(int) - 250
    assert np.array_equal(found, np.clip(np.rint(twice / 2) + 7, 0, 255))

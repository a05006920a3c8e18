"""Operators that only move elements, on bytes and halves: in every vector width, exactly."""

from __future__ import annotations

import numpy as np
import pytest

from fastrun.graph.core import ops
from fastrun.graph.reference import numerics
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import BF16, F32, U8, DType
from fastrun.kernels.core.layout import NCHW, NHWC, Placement
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.compile import compile_assembly
from fastrun.kernels.ops import (
    conv_transpose,
    dense,
    lrn,
    matmul,
    movement,
    reduce,
    sampling,
    shuffle,
)
from fastrun.kernels.ops.sampling import Gather, Resize
from fastrun.kernels.ops.shuffle import Shuffle
from tests.kernels.test_ops import HALO
from tests.support.execution import execute
from tests.support.lanes import CPUS, cpus
from tests.support.typed import DST, SRC, run, values, view, with_scales

SHAPE = (2, 21, 5, 70)


def moved(cpu: Cpu, x: np.ndarray, src: Strided, seen: Strided, dst: Strided) -> np.ndarray:
    """What a copy of `seen`, a view of `src`, leaves in `dst`."""
    return run(movement.copy(cpu, seen, dst), dst, (x, src))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("dtype", [U8, BF16], ids=lambda d: d.name)
def test_copies(dtype: DType, cpu: Cpu) -> None:
    x, src = values(dtype, *SHAPE), view(SHAPE, dtype)
    for order in ((0, 2, 3, 1), (3, 1, 0, 2), (1, 0, 2, 3), (0, 1, 3, 2)):
        turned = x.transpose(order)
        dst = view(turned.shape, dtype)
        assert np.array_equal(moved(cpu, x, src, src.transpose(order), dst), turned)
    steps = (1, -2, 1, 3)
    sliced = src.slice((0, 20, 1, 2), (2, 10, 3, 20), steps)
    part = view((2, 30, 3, 20), dtype, last=1).part(1, 7, 10)  # a piece of a concatenation
    assert np.array_equal(moved(cpu, x, src, sliced, part), x[:, 20:0:-2, 1:4, 2:62:3])
    deep = src.slice((0, 0, 0, 0), (2, 20, 5, 70), (1,) * 4).split(1, (5, 2, 2))
    spread = deep.transpose((0, 1, 4, 2, 5, 3))
    expected = x[:, :20].reshape(2, 5, 2, 2, 5, 70).transpose(0, 1, 4, 2, 5, 3)
    assert np.array_equal(moved(cpu, x, src, spread, view(spread.shape, dtype)), expected)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("mode", movement.MODES)
def test_padding(mode: str, cpu: Cpu) -> None:
    padding = (0, 1, 2, 3, 0, 0, 1, 2)
    for last in (None, 1):
        x, src = values(U8, *SHAPE), view(SHAPE, last=last)
        truth = numerics.pad(ops.Pad(padding, mode, 131), x.astype(float))
        dst = view(truth.shape, last=last)
        program = movement.pad(movement.Pad(padding, mode, 131), cpu, src, dst)
        assert np.array_equal(run(program, dst, (x, src)), truth)


def test_constants_lie_in_the_weights() -> None:
    x, dst = values(U8, 1, 30), view((5, 30))
    program = movement.copy(CPUS[1], view((1, 30)), dst, constant=True)
    found = run(program, dst, (x[:, :1], view((1, 1))), weights=x)
    assert np.array_equal(found, np.broadcast_to(x, (5, 30)))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("channels", [1, 29, 70])
def test_shuffles(channels: int, cpu: Cpu) -> None:
    layout = NHWC.of(U8)
    src = Placement(layout, 2, 3 * channels, 3, 37).part(channels, channels)
    add = Placement(layout, 2, channels, 3, 37, HALO)
    dst = Placement(layout, 2, 2 * channels, 3, 37, HALO)
    x, y = values(U8, 2, channels, 3, 37), values(U8, 2, channels, 3, 37)[..., ::-1]
    program = shuffle.build(Shuffle(), cpu, src, dst, add)
    found = execute(program, with_scales(x=x, add=y), threads=2)
    assert np.array_equal(found[:, ::2], x)
    assert np.array_equal(found[:, 1::2], y)
    planes = [Placement(NCHW.of(U8), 2, 12, 4, 67, halo) for halo in (HALO, (0, 0, 0, 0))]
    z = values(U8, 2, 12, 4, 67)
    found = execute(shuffle.build(Shuffle(3), cpu, *planes), with_scales(x=z))
    assert np.array_equal(found, z.reshape(2, 3, 4, 4, 67).swapaxes(1, 2).reshape(z.shape))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("last", [None, 1])
def test_sampling(last: int | None, cpu: Cpu) -> None:
    """Gathering, nearest and linear resizing, with rows along and across the sampled axes."""
    shape, big = (1, 21, 6, 35), (1, 21, 12, 70)
    x, src = values(U8, *shape), view(shape, last=last)
    for axis in (1, 3):
        index = np.random.default_rng(1).integers(-shape[axis], shape[axis], 19)
        truth = x.take(index, axis)
        dst = view(truth.shape, last=last)
        program = sampling.gather(Gather(axis, tuple(index.tolist())), cpu, src, dst)
        assert np.array_equal(run(program, dst, (x, src)), truth)
    dst = view(big, last=last)
    nearest = Resize("nearest", (1, 1, 2, 2), "asymmetric", "floor")
    found = run(sampling.resize(nearest, cpu, src, dst), dst, (x, src))
    assert np.array_equal(found, x.repeat(2, 2).repeat(2, 3))
    linear = Resize("linear", (1, 1, 2, 2))
    given = (x.astype(np.float64) - SRC.zero) * SRC.scale
    truth = numerics.resize(ops.Resize("linear", (1, 1, 2, 2)), big, given)
    found = run(sampling.resize(linear, cpu, src, dst), dst, (x, src))
    steps = np.clip(truth / DST.scale + DST.zero, 0, 255)
    assert np.abs(found - steps).max() < 0.5 + 1e-4
    wide = view(big, F32, last)
    found = run(sampling.resize(linear, cpu, src, wide), wide, (x, src))
    assert np.abs(found - truth).max() < 1e-5


def test_linear_resizing_knows_ties() -> None:
    """On one grid whose zero point is odd: halves of steps go to an even distance from it."""
    x, src, dst = np.arange(250, dtype=np.uint8)[None], view((1, 250)), view((1, 500))
    program = sampling.resize(Resize("linear", (1, 2), "asymmetric"), CPUS[2], src, dst)
    operands = {**with_scales(x=x[None, None]), "packed_bias": np.tile(np.float32([0.3, 7]), 40)}
    found = execute(program, operands).reshape(-1)
    between = (x[0, :-1].astype(int) - 7 + x[0, 1:].astype(int) - 7) / 2
    assert np.array_equal(found[::2], x[0])
    assert np.array_equal(found[1:-1:2], np.rint(between) + 7)


def test_what_is_refused() -> None:
    a, b, cpu = view((3, 4)), view((3, 4), F32), CPUS[0]
    with pytest.raises(ScheduleError, match="cannot make u8 of f32"):
        movement.copy(cpu, b, a)
    with pytest.raises(ScheduleError, match="cannot make f32 of u8"):
        sampling.gather(Gather(1, (0, 1, 2, 3)), cpu, a, b)
    for value in (0.5, 256.0, -1.0):
        with pytest.raises(ScheduleError, match="is no u8"):
            movement.pad(movement.Pad((0, 1, 0, 1), "constant", value), cpu, a, view((3, 6)))


def test_operators_of_float32_refuse_bytes() -> None:
    square: Ints = (1, 4, 6, 6)
    x, y, cpu = view(square), view(square, F32), CPUS[0]
    place = Placement(NHWC.of(U8), 1, 4, 1, 1)
    for build in (
        lambda: reduce.softmax(reduce.Softmax(1), cpu, x, y),
        lambda: reduce.reduce(reduce.Reduce("sum", (1,)), cpu, y, view((1, 1, 6, 6))),
        lambda: lrn.lrn(lrn.LRN(3, 1e-4, 0.75, 1.0), cpu, x, y),
        lambda: matmul.matmul(matmul.MatMul(), cpu, y, x, y),
        lambda: dense.build(dense.Dense(), cpu, place, Placement(NHWC, 1, 3, 1, 1)),
        lambda: conv_transpose.conv_transpose(
            conv_transpose.ConvTranspose((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), cpu, y, x
        ),
    ):
        with pytest.raises(ScheduleError, match="works on f32, not on u8"):
            build()


def test_other_processors_can_run_them() -> None:
    for cpu in (Cpu.avx2(), Cpu.avx512(), Cpu.neon()):
        x, turned = view((1, 21, 6, 35)), view((1, 6, 35, 21))
        linear = Resize("linear", (1, 1, 2, 2))
        for program in (
            movement.copy(cpu, x.transpose((0, 2, 3, 1)), turned),
            sampling.resize(linear, cpu, x, view((1, 21, 12, 70))),
        ):
            assert compile_assembly(program.ir, cpu)

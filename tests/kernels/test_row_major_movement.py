"""Kernels that move elements of tensors of any shape, against numpy and the reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrun.graph.core import ops
from fastrun.graph.reference import numerics
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import movement, sampling
from fastrun.kernels.ops.sampling import Gather, Resize
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, normal, run


@st.composite
def slices(draw: st.DrawFn) -> tuple[Ints, Ints, Ints, Ints]:
    """A shape with starts, sizes and steps inside it, steps of either sign."""
    shape, starts, sizes, steps = [], [], [], []
    for _ in range(draw(st.integers(1, 5))):
        n, step = draw(st.integers(1, 13)), draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        start = draw(st.integers(0, n - 1))
        room = (n - 1 - start) // step if step > 0 else start // -step
        shape.append(n)
        starts.append(start)
        sizes.append(draw(st.integers(1, room + 1)))
        steps.append(step)
    return tuple(shape), tuple(starts), tuple(sizes), tuple(steps)


@settings(max_examples=25)
@given(slices(), st.sampled_from(CPUS))
def test_slice(given_: tuple[Ints, Ints, Ints, Ints], cpu: Cpu) -> None:
    shape, starts, sizes, steps = given_
    x, dst = normal(*shape), Strided.row_major(sizes)
    program = movement.copy(cpu, Strided.row_major(shape).slice(starts, sizes, steps), dst)
    index = (a + s * np.arange(n) for a, n, s in zip(starts, sizes, steps, strict=True))
    assert np.array_equal(run(program, dst, x), x[np.ix_(*index)])


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([1, 2, 3, 4, 5, 8, 11, 16, 17]), min_size=1, max_size=5).flatmap(
        lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))))
    ),
    st.sampled_from(CPUS),
)
def test_transpose(given_: tuple[Sequence[int], Sequence[int]], cpu: Cpu) -> None:
    shape, order = tuple(given_[0]), tuple(given_[1])
    x, view = normal(*shape), Strided.row_major(shape).transpose(order)
    dst = Strided.row_major(view.shape)
    assert np.array_equal(run(movement.copy(cpu, view, dst), dst, x), x.transpose(order))


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_concat_is_a_copy_into_a_part(axis: int) -> None:
    shape, sizes, whole = (2, 3, 5, 4), (3, 1, 17), 21
    out = Strided.row_major((*shape[:axis], whole, *shape[axis + 1 :]))
    start = 0
    for size in sizes:
        part = (*shape[:axis], size, *shape[axis + 1 :])
        x, dst = normal(*part), out.part(axis, start, size)
        assert np.array_equal(run(movement.copy(CPU, Strided.row_major(part), dst), dst, x), x)
        start += size


def test_expand_and_constants() -> None:
    for src, shape in (((), (3, 5)), ((3, 1), (2, 3, 17)), ((4,), (3, 4)), ((1, 9, 1), (8, 9, 40))):
        x, dst = normal(*src), Strided.row_major(shape)
        view = Strided.row_major(src)
        assert np.array_equal(run(movement.copy(CPU, view, dst), dst, x), np.broadcast_to(x, shape))
        program = movement.copy(CPU, view, dst, constant=True)
        found = run(program, dst, np.zeros(1), weights=x)
        assert np.array_equal(found, np.broadcast_to(x, shape))


@pytest.mark.parametrize("column_first", [False, True])
def test_depth_to_space_is_a_view(column_first: bool) -> None:
    x, src = normal(2, 12, 3, 5), Strided.row_major((2, 12, 3, 5))
    sizes, order = (
        ((3, 2, 2), (0, 1, 4, 2, 5, 3)) if column_first else ((2, 2, 3), (0, 3, 4, 1, 5, 2))
    )
    dst = Strided.row_major((2, 3, 3, 2, 5, 2))
    found = run(movement.copy(CPU, src.split(1, sizes).transpose(order), dst), dst, x)
    assert np.array_equal(found, x.reshape(2, *sizes, 3, 5).transpose(order))


def test_channel_shuffle_is_a_view() -> None:
    x, src = normal(1, 24, 7, 7), Strided.row_major((1, 24, 7, 7))
    view = src.split(1, (3, 8)).transpose((0, 2, 1, 3, 4))
    dst = Strided.row_major(view.shape)
    truth = x.reshape(1, 3, 8, 7, 7).swapaxes(1, 2)
    assert np.array_equal(run(movement.copy(CPU, view, dst), dst, x), truth)


PADS = [
    ((5,), (2, 3)),
    ((2, 3, 4, 7), (0, 0, 1, 2, 0, 0, 3, 1)),
    ((2, 3, 4, 7), (1, 0, -1, 2, 0, 2, -2, -1)),
    ((1, 3, 5, 9), (0, 0, 2, 4, 0, 0, 4, 8)),
    ((2, 3, 3, 2, 3), (0, 1, 1, 1, 2, 1, 0, 2, 1, 1)),
]


@pytest.mark.parametrize(("shape", "padding"), PADS)
@pytest.mark.parametrize("mode", movement.MODES)
def test_pad(shape: Ints, padding: Ints, mode: str) -> None:
    x = normal(*shape)
    if mode == "reflect" and len(shape) != 1 and shape[0] == 2 and min(padding) == 0:
        padding = tuple(min(p, 1) for p in padding)
    truth = numerics.pad(ops.Pad(padding, mode, 1.5), x)
    dst = Strided.row_major(truth.shape)
    spec = movement.Pad(padding, mode, 1.5)
    assert np.array_equal(
        run(movement.pad(spec, CPU, Strided.row_major(shape), dst), dst, x), truth
    )


def test_movement_refuses() -> None:
    a, b = Strided.row_major((2, 3)), Strided.row_major((2, 9))
    with pytest.raises(ScheduleError, match="broadcast"):
        movement.copy(CPU, a, b)
    with pytest.raises(ScheduleError, match="cannot be reflected"):
        movement.pad(movement.Pad((0, 3, 0, 3), "reflect"), CPU, a, b)
    with pytest.raises(ScheduleError, match="is not"):
        movement.pad(movement.Pad((0, 3, 0, 2)), CPU, a, b)
    with pytest.raises(ScheduleError, match="mode 'wrap'"):
        movement.pad(movement.Pad((0, 3, 0, 3), "wrap"), CPU, a, b)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_gather(axis: int, cpu: Cpu) -> None:
    x, src = normal(5, 7, 9), Strided.row_major((5, 7, 9))
    for indices in ((0,), (4, -1, 0, 0, 3, 1, -5), tuple(i % 5 for i in range(37))):
        dst = Strided.row_major((*x.shape[:axis], len(indices), *x.shape[axis + 1 :]))
        found = run(sampling.gather(Gather(axis, indices), cpu, src, dst), dst, x)
        assert np.array_equal(found, x.take(indices, axis))
    with pytest.raises(ScheduleError, match="outside"):
        sampling.gather(Gather(axis, (9,)), cpu, src, src)


RESIZES = [((1, 3, 4, 5), (1.0, 1.0, 2.0, 3.0)), ((2, 1, 5, 7), (1.0, 2.0, 0.6, 0.7)),
           ((1, 1, 9, 1), (1.0, 1.0, 0.12, 5.0)), ((2, 6), (1.0, 1.55)),
           ((1, 2, 3, 3, 4), (1.0, 1.0, 2.0, 1.4, 2.5)), ((2, 40), (1.0, 2.0)),
           ((3, 600), (1.0, 1.1)), ((2, 90), (1.0, 0.2))]  # fmt: skip


@pytest.mark.parametrize(("shape", "scales"), RESIZES)
@pytest.mark.parametrize("coordinates", sampling.COORDINATES)
def test_resize(shape: Ints, scales: tuple[float, ...], coordinates: str) -> None:
    x, src = normal(*shape), Strided.row_major(shape)
    dst = Strided.row_major(tuple(int(n * s) for n, s in zip(shape, scales, strict=True)))
    for mode, rounding in (("linear", ""), *(("nearest", r) for r in sampling.ROUNDINGS)):
        truth = numerics.resize(ops.Resize(mode, scales, coordinates, rounding), dst.shape, x)
        program = sampling.resize(Resize(mode, scales, coordinates, rounding), CPU, src, dst)
        found = run(program, dst, x)
        assert found.shape == truth.shape
        assert np.abs(found - truth).max() <= (1e-6 if mode == "linear" else 0)


def test_resize_refuses() -> None:
    a = Strided.row_major((2, 3))
    for spec in (Resize("cubic", (1, 1)), Resize("linear", (1, 1), "corners"),
                 Resize("nearest", (1, 1), "asymmetric", "up")):  # fmt: skip
        with pytest.raises(ScheduleError, match="unknown"):
            sampling.resize(spec, CPU, a, a)

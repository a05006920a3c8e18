"""Places of the first elements along an axis, and elements at places, against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastrun.graph.reference.numerics import gather_nd
from fastrun.graph.reference.numerics import top_k as truth
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops.lookup import elements, points
from fastrun.kernels.ops.ranks import MOST, TopK, top_k
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, normal, run

SPECIAL = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38], np.float32)


def row_major(*shape: int) -> Strided:
    return Strided.row_major(shape)


def ranked(x: np.ndarray, spec: TopK, cpu: Cpu) -> np.ndarray:
    shape = (*x.shape[: spec.axis], spec.count, *x.shape[spec.axis + 1 :])
    return run(top_k(spec, cpu, row_major(*x.shape), row_major(*shape)), row_major(*shape), x)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 37, 4), (1, 90), (6,)])
def test_every_axis(shape: Ints, cpu: Cpu) -> None:
    """Elements are rounded, so that many are equal."""
    x = np.round(2 * normal(*shape)) / 2
    for axis, largest in itertools.product(range(len(shape)), (True, False)):
        for count in {1, 2, shape[axis]}:
            if count <= shape[axis]:
                found = ranked(x, TopK(axis, count, largest), cpu)
                assert np.array_equal(found, truth(x, axis, count, largest))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_elements_that_are_no_numbers(cpu: Cpu) -> None:
    x = np.random.default_rng(0).choice(SPECIAL, (4, 50))
    for count, largest in itertools.product((1, 20, 50), (True, False)):
        assert np.array_equal(ranked(x, TopK(1, count, largest), cpu), truth(x, 1, count, largest))


@pytest.mark.parametrize("order", ["up", "down", "mixed"])
def test_long_rows(order: str) -> None:
    x = np.sort(normal(2, 5003))
    x = {"up": x, "down": x[:, ::-1], "mixed": normal(2, 5003)}[order]
    assert np.array_equal(ranked(x, TopK(1, 300), CPU), truth(x, 1, 300, True))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize(
    ("shape", "wanted"), [((9, 40), (5, 3)), ((3, 5, 7), (3, 2, 7)), ((8,), (20,))]
)
def test_elements_at_places(shape: Ints, wanted: Ints, cpu: Cpu) -> None:
    """Fewer than the table has along other axes, any number along this one; some from the end."""
    x = normal(*shape)
    for axis, n in enumerate(shape):
        size = tuple(m if i == axis else min(m, shape[i]) for i, m in enumerate(wanted))
        places = np.random.default_rng(1).integers(-n, n, size)
        inside = x[tuple(slice(None) if i == axis else slice(m) for i, m in enumerate(size))]
        program = elements(axis, cpu, row_major(*shape), row_major(*size), row_major(*size))
        found = run(program, row_major(*size), x, places.astype(np.float32))
        assert np.array_equal(found, np.take_along_axis(inside, places, axis))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize(("batch", "depth"), [(0, 1), (0, 3), (1, 2), (2, 1)])
def test_entries_at_points(batch: int, depth: int, cpu: Cpu) -> None:
    x = normal(3, 4, 5, 6)
    sizes = x.shape[batch : batch + depth]
    wanted = (*x.shape[:batch], 7, depth)
    places = np.random.default_rng(2).integers([-n for n in sizes], sizes, wanted)
    expected = gather_nd(x, places, batch)
    dst = row_major(*expected.shape)
    program = points(batch, cpu, row_major(*x.shape), row_major(*places.shape), dst)
    assert np.array_equal(run(program, dst, x, places.astype(np.float32)), expected)


def test_refusals() -> None:
    x = row_major(3, 2000)
    with pytest.raises(ScheduleError, match="no first 4 of 3 are found"):
        top_k(TopK(0, 4), CPU, x, row_major(4, 2000))
    with pytest.raises(ScheduleError, match=f"no first {MOST + 1} of 2000 are found"):
        top_k(TopK(1, MOST + 1), CPU, x, row_major(3, MOST + 1))
    with pytest.raises(ScheduleError, match="are not the first 2"):
        top_k(TopK(1, 2), CPU, x, row_major(3, 3))
    with pytest.raises(ScheduleError, match="indices is not"):
        elements(0, CPU, x, row_major(3, 2001), row_major(3, 2001))

"""Places of extremes, running sums, look-ups and choices, against numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastrun.graph.reference.numerics import arg_reduce as truth_of_places
from fastrun.graph.reference.numerics import cum_sum as truth_of_sums
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import elementwise
from fastrun.kernels.ops.lookup import lookup
from fastrun.kernels.ops.scans import ArgReduce, CumSum, arg_reduce, cum_sum
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, normal, run

SHAPES = [(3, 5, 7), (2, 21, 40), (4, 37), (2, 1, 5), (6,), (33,)]


def row_major(*shape: int) -> Strided:
    return Strided.row_major(shape)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("shape", SHAPES)
def test_places_of_extremes(shape: Ints, cpu: Cpu) -> None:
    x = np.round(normal(*shape))  # with many ties
    holes = np.where(normal(*shape) > 1, np.nan, x).astype(np.float32)
    for values, axis, function, last in itertools.product(
        (x, holes), range(len(shape)), ("max", "min"), (False, True)
    ):
        spec = ArgReduce(function, axis, last)
        dst = row_major(*shape[:axis], *shape[axis + 1 :])
        found = run(arg_reduce(spec, cpu, row_major(*shape), dst), dst, values)
        assert np.array_equal(found, truth_of_places(spec, values))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("shape", SHAPES)
def test_running_sums(shape: Ints, cpu: Cpu) -> None:
    x, view = normal(*shape), row_major(*shape)
    for axis, exclusive, backwards in itertools.product(
        range(len(shape)), (False, True), (False, True)
    ):
        spec = CumSum(axis, exclusive, backwards)
        found = run(cum_sum(spec, cpu, view, view), view, x)
        assert np.abs(found - truth_of_sums(spec, x.astype(np.float64))).max() < 1e-5


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("shape", [(9, 40), (3, 5, 7), (8,)])
@pytest.mark.parametrize("wanted", [(), (4,), (2, 3)])
def test_lookup(shape: Ints, wanted: Ints, cpu: Cpu) -> None:
    x = normal(*shape)
    for axis, n in enumerate(shape):
        places = np.resize(np.arange(-n, n)[::-2], wanted)
        truth = x.take(places, axis)
        dst, indices = row_major(*truth.shape), row_major(*wanted)
        program = lookup(axis, cpu, row_major(*shape), indices, dst)
        assert np.array_equal(run(program, dst, x, places.astype(np.float32)), truth)
        # Nothing outside of the table is read.
        far = np.resize(np.float32([np.nan, np.inf, -1e30, n]), wanted)
        entries = np.resize([0, n - 1, 0, n - 1], wanted)
        assert np.array_equal(run(program, dst, x, far), x.take(entries, axis))


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_choices_broadcast(cpu: Cpu) -> None:
    condition = np.where(normal(5, 1, 7) > 0, 2, 0).astype(np.float32)
    yes, dst = normal(3, 7), row_major(5, 3, 7)
    for no in (np.float32(np.inf), normal(5, 3, 1)):
        operands = [("src", row_major(5, 1, 7)), ("add", row_major(3, 7)),
                    ("weights", row_major(*no.shape))]  # fmt: skip
        choice = elementwise.Chain(((elementwise.Where(), (0, 1, 2)),))
        found = run(elementwise.chain(choice, cpu, operands, dst), dst, condition, yes, no)
        assert np.array_equal(found, np.where(condition != 0, yes, no))


def test_refusals() -> None:
    x = row_major(3, 4)
    with pytest.raises(ScheduleError, match="unknown extreme 'mean'"):
        arg_reduce(ArgReduce("mean", 1), CPU, x, row_major(3))
    with pytest.raises(ScheduleError, match="without axis 1 is not"):
        arg_reduce(ArgReduce("max", 1), CPU, x, row_major(4))
    with pytest.raises(ScheduleError, match="cannot be searched"):
        arg_reduce(ArgReduce("max", 0), CPU, row_major(2**24 + 1, 1), row_major(1))
    with pytest.raises(ScheduleError, match="running sums"):
        cum_sum(CumSum(0), CPU, x, row_major(3, 5))
    with pytest.raises(ScheduleError, match="indices is not"):
        lookup(0, CPU, x, row_major(2), x)

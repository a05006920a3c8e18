"""Sampling at computed points, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from fastrun.graph.reference import points
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops.grid_sample import GridSample, grid_sample
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, normal, run

# Images and the grid's height and width: also of one pixel, and with channels beside vectors.
SHAPES = [((2, 3, 5, 7), (6, 5)), ((3, 1, 1, 4), (1, 1)), ((1, 37, 6, 6), (3, 7))]


def sampled(cpu: Cpu, spec: GridSample, x: np.ndarray, grid: np.ndarray, last: bool) -> np.ndarray:
    """The kernel's result; channels are the `last` axis in memory, or the second."""
    n, c, h, w = x.shape
    src, dst = Strided.row_major(x.shape), Strided.row_major((n, c, *grid.shape[1:3]))
    if last:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        src = Strided.row_major((n, h, w, c)).transpose((0, 3, 1, 2))
        dst = Strided.row_major((n, *grid.shape[1:3], c)).transpose((0, 3, 1, 2))
    return run(grid_sample(spec, cpu, src, Strided.row_major(grid.shape), dst), dst, x, grid)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample(mode: str, padding: str, cpu: Cpu) -> None:
    for shape, size in SHAPES:
        x, grid = normal(*shape), 1.6 * np.tanh(normal(shape[0], *size, 2))
        for corners in (False, True):
            spec = GridSample(mode, padding, corners)
            truth = points.grid_sample(spec, x, grid)
            for last in (False, True):
                assert np.abs(sampled(cpu, spec, x, grid, last) - truth).max() < 2e-5


@pytest.mark.parametrize("last", [False, True])
def test_pixels_beside_the_image_are_zeros_whatever_lies_at_its_border(last: bool) -> None:
    x = np.full((1, 2, 3, 3), np.inf, np.float32)
    grid = np.float32([[-9, -9], [0, 2], [9, 0.5]]).reshape(1, 3, 1, 2)
    assert not sampled(CPU, GridSample("linear", "zeros", True), x, grid, last).any()


@pytest.mark.parametrize("last", [False, True])
def test_points_that_are_no_numbers_are_read_nowhere_else(last: bool) -> None:
    x = normal(1, 2, 3, 3)
    grid = np.float32([[np.nan, 0], [np.inf, 0], [1e30, -1e30], [0, 0]]).reshape(1, 2, 2, 2)
    for padding in ("zeros", "border", "reflection"):
        found = sampled(CPU, GridSample("linear", padding), x, grid, last)
        assert np.isnan(found[..., 0, 0]).all()
        np.testing.assert_array_equal(found[..., 1, 1], x[..., 1, 1])


@pytest.mark.parametrize(
    ("spec", "grid", "reason"),
    [
        (GridSample("quadratic"), (1, 4, 4, 2), "unknown interpolation 'quadratic'"),
        (GridSample(padding="wrap"), (1, 4, 4, 2), "unknown padding 'wrap'"),
        (GridSample(), (2, 4, 4, 2), "cannot give"),
        (GridSample(), (1, 4, 4, 3), "cannot give"),
    ],
)
def test_grid_sample_refuses(spec: GridSample, grid: Ints, reason: str) -> None:
    x = Strided.row_major((1, 3, 4, 4))
    with pytest.raises(ScheduleError, match=reason):
        grid_sample(spec, CPU, x, Strided.row_major(grid), x)

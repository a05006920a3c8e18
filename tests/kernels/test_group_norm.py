"""Group normalisation against numpy in float64: layouts, halos, groups, large means."""

from __future__ import annotations

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Layout, Placement
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import group_norm
from fastrun.kernels.ops.group_norm import GroupNorm
from tests.support.execution import execute, relative_error
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, normal

CASES = [
    # Shape, groups, halo of the input.
    ((2, 6, 5, 7), 6, (0, 0, 0, 0)),
    ((1, 12, 9, 4), 3, (1, 2, 1, 2)),
    ((2, 33, 3, 3), 1, (0, 0, 0, 0)),
    ((1, 160, 60, 41), 2, (0, 0, 0, 0)),
    ((1, 3, 1, 20000), 3, (0, 0, 0, 0)),
    ((1, 1, 1, 1), 1, (0, 0, 0, 0)),
]


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("layout", [NCHW, NHWC, Layout("NCHW8c")], ids=str)
@pytest.mark.parametrize(("shape", "groups", "halo"), CASES)
def test_group_norm(
    shape: tuple[int, int, int, int],
    groups: int,
    halo: tuple[int, int, int, int],
    layout: Layout,
    cpu: Cpu,
) -> None:
    n, c = shape[:2]
    src, dst = Placement(layout, *shape, halo), Placement(layout, *shape)
    # Squares of numbers near 100 have few digits left for deviations of 1.
    x = normal(*shape) + np.float32(100)
    weights = normal(2, c)
    spec = GroupNorm(groups, 1e-3, "silu")
    program = group_norm.build(spec, cpu, src, dst)
    found = execute(program, {"x": x, "weights": weights}, threads=3)
    rows = x.astype(np.float64).reshape(n, groups, -1)
    rows = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-3)
    truth = rows.reshape(shape) * weights[0][:, None, None] + weights[1][:, None, None]
    truth = truth / (1 + np.exp(-truth))
    assert relative_error(found, truth) < 2e-4


def test_refusals() -> None:
    x = Placement(NHWC, 1, 6, 3, 3)
    with pytest.raises(ScheduleError, match="4 groups do not divide 6"):
        group_norm.build(GroupNorm(4, 1e-5), CPU, x, x)
    with pytest.raises(ScheduleError, match="cannot turn"):
        group_norm.build(GroupNorm(2, 1e-5), CPU, x, Placement(NCHW, 1, 6, 3, 3))

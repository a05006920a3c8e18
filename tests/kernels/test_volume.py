"""Depthwise convolution of volumes against numpy in float64: layouts, tails, padding, strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastrun.graph.core.ops import DepthwiseVolume
from fastrun.graph.core.shapes import result_shape, shape4
from fastrun.graph.reference.numerics import depthwise_volume
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Layout, Placement
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import volume
from fastrun.kernels.ops.volume import Volume
from tests.support.execution import execute, relative_error
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, normal

ONES, NO_PADDING = (1, 1, 1), (0,) * 6
CASES: list[tuple[tuple[int, ...], tuple[int, ...], DepthwiseVolume]] = [
    # Shape of the input, kernel, operator.
    ((2, 37, 3, 6, 33), (3, 3, 3), DepthwiseVolume(ONES, (1,) * 6, ONES)),
    ((1, 16, 4, 5, 9), (3, 1, 2), DepthwiseVolume((2, 1, 3), (0, 2, 1, 1, 0, 3), (1, 1, 2))),
    ((1, 8, 9, 2, 70), (5, 1, 1), DepthwiseVolume(ONES, NO_PADDING, (2, 1, 1))),
    ((1, 3, 2, 2, 2), (2, 2, 2), DepthwiseVolume(ONES, (4, 3, 5, 5, 3, 4), ONES)),
    ((1, 21, 1, 40, 3), (1, 3, 3), DepthwiseVolume((1, 2, 2), (0, 1, 1, 0, 1, 1), ONES)),
]


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("layout", [NHWC, Layout("NCHW8c")], ids=str)
@pytest.mark.parametrize(("shape", "kernel", "op"), CASES)
def test_volume(
    shape: tuple[int, ...], kernel: tuple[int, ...], op: DepthwiseVolume, layout: Layout, cpu: Cpu
) -> None:
    c = shape[1]
    x, weights, bias = normal(*shape), normal(c, 1, *kernel), normal(c)
    made = result_shape(op, [shape, weights.shape])
    assert made
    truth = depthwise_volume(op, made, x.astype(np.float64), weights, bias)
    src, dst = Placement(layout, *shape4(shape), (1, 2, 0, 1)), Placement(layout, *shape4(made))
    spec = Volume(shape[2], kernel, op.stride, op.padding, op.dilation, "relu")
    program = volume.build(spec, cpu, src, dst)
    operands: dict[str, Any] = {"x": x.reshape(shape4(shape)), "weights": weights, "bias": bias}
    found = execute(program, operands, threads=3)
    assert relative_error(found, np.maximum(truth, 0).reshape(shape4(made))) < 1e-5


def test_refusals() -> None:
    spec, x = Volume(2, (1, 1, 1), ONES, NO_PADDING, ONES), Placement(NHWC, 1, 6, 4, 3)
    with pytest.raises(ScheduleError, match="NHWC or NCHWc"):
        volume.build(spec, CPU, x, Placement(NCHW, 1, 6, 4, 3))
    with pytest.raises(ScheduleError, match="5 rows are no 2 planes"):
        volume.build(spec, CPU, Placement(NHWC, 1, 6, 5, 3), x)
    with pytest.raises(ScheduleError, match="do not become"):
        volume.build(spec, CPU, x, Placement(NHWC, 1, 6, 2, 3))

"""Rotary positions against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from fastrun.graph.reference.numerics import rotary as truth
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Placement
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops.attention import Heads
from fastrun.kernels.ops.rotary import Rotary, build
from tests.support.execution import execute
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, normal


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("adjacent", [False, True])
@pytest.mark.parametrize("size", [2, 6, 32, 40])
def test_heads_of_several_sizes(size: int, adjacent: bool, cpu: Cpu) -> None:
    """Heads lie apart, the result is a part of another tensor, and there are several rows."""
    spec = Rotary(3, Heads(5, size + 2, size), adjacent)
    x, factors = normal(2, 5 + 3 * (size + 2), 3, 4), normal(2, 12, size)
    src = Placement(NHWC, *x.shape, (0, 1, 1, 0))
    dst = Placement(NHWC, 2, 3 * size, 3, 4, whole=3 * size + 7, first=4)
    program = build(spec, cpu, src, dst)
    found = execute(program, {"x": x, "weights": factors}, threads=2)
    np.testing.assert_allclose(found, truth(spec, x, *factors), rtol=1e-5, atol=1e-5)


def test_refusals() -> None:
    src = Placement(NHWC, 1, 24, 1, 5)
    with pytest.raises(ScheduleError, match="rotations take NHWC, not NCHW"):
        build(Rotary(2, Heads(0, 12, 12)), CPU, Placement(NCHW, 1, 24, 1, 5), src)
    with pytest.raises(ScheduleError, match="2 heads exceed 24"):
        build(Rotary(2, Heads(1, 12, 12)), CPU, src, src)
    with pytest.raises(ScheduleError, match="do not give"):
        build(Rotary(8, Heads(0, 3, 3)), CPU, src, src)

"""Layer normalisation in every layout against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout, Placement
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import layer_norm
from fastrun.kernels.ops.layer_norm import LayerNorm
from tests.support.execution import execute
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, normal


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize(
    "where",
    [
        Placement(Layout("NHWC"), 2, 21, 5, 3, (1, 1, 0, 2)),
        Placement(Layout("NHWC"), 1, 200, 3, 67),
        Placement(Layout("NHWC"), 2, 3, 4, 5, whole=9, first=4),
        Placement(Layout("NCHW16c"), 2, 40, 3, 5, (0, 1, 1, 0)),
        Placement(Layout("NCHW8c"), 1, 64, 2, 3),
        Placement(Layout("NCHW"), 3, 37, 1, 1),
    ],
    ids=str,
)
def test_every_layout(where: Placement, cpu: Cpu) -> None:
    """Values far from zero: squares would cancel."""
    x = 3 * normal(where.n, where.c, where.h, where.w) + 100
    pair = normal(2, where.c)
    program = layer_norm.build(LayerNorm(1e-3), cpu, where, where)
    found = execute(program, {"x": x, "weights": pair}, threads=3)
    wide = x.astype(np.float64)
    scale, shift = pair.reshape(2, -1, 1, 1).astype(np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    truth = centred / np.sqrt(wide.var(1, keepdims=True) + 1e-3) * scale + shift
    # 100 has a last place of 2^-17; deviations of 3 inherit it.
    np.testing.assert_allclose(found, truth, rtol=3e-5, atol=3e-5)


def test_refusals() -> None:
    where = Placement(Layout("NHWC"), 1, 8, 2, 2)
    blocked = Placement(Layout("NCHW8c"), 1, 8, 2, 2)
    planes = Placement(Layout("NCHW"), 1, 8, 2, 2)
    for src, dst in ((where, blocked), (planes, planes)):
        with pytest.raises(ScheduleError):
            layer_norm.build(LayerNorm(1e-5), CPU, src, dst)

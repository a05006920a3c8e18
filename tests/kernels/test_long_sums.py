"""Sums of many terms lose no more figures than short ones: equal terms show it best."""

import math

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Halo, Layout, Placement
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.ops import dense, pool
from fastrun.kernels.ops.matmul import MatMul, matmul
from fastrun.kernels.ops.reduce import Reduce, Softmax, reduce, softmax
from tests.support.execution import execute
from tests.support.lanes import CPUS, cpus
from tests.support.strided import run

EXACT = 3e-6
LAYOUTS = [NCHW, NHWC, Layout("NCHW8c")]


def off(found: np.ndarray, truth: float) -> float:
    return float(np.abs(found / truth - 1).max())


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("axes", [(2,), (0, 2), (0, 1), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("function", ["sum", "l2"])
def test_reductions(function: str, axes: tuple[int, ...], cpu: Cpu) -> None:
    shape = (13, 17, 8200) if axes == (2,) else (130, 17, 90)
    src = Strided.row_major(shape)
    dst = Strided.row_major(tuple(1 if i in axes else n for i, n in enumerate(shape)))
    found = run(reduce(Reduce(function, axes), cpu, src, dst), dst, np.full(shape, 0.1, np.float32))
    terms = math.prod(shape[axis] for axis in axes)
    value = float(np.float32(0.1))
    assert off(found, terms * value if function == "sum" else math.sqrt(terms) * value) < EXACT


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(3, 9000), (9000, 3), (170, 171)], ids=str)
def test_global_average(shape: tuple[int, int], layout: Layout, cpu: Cpu) -> None:
    where: Halo = (1, 1, 0, 0)
    src, dst = Placement(layout, 1, 5, *shape, halo=where), Placement(layout, 1, 5, 1, 1)
    program = pool.build(pool.Pool("average", shape), cpu, src, dst)
    found = execute(program, {"x": np.full((1, 5, *shape), 0.1, np.float32)})
    assert off(found, float(np.float32(0.1))) < EXACT


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_windows_that_an_edge_cuts(cpu: Cpu) -> None:
    src, dst = Placement(NHWC, 1, 5, 90, 200), Placement(NHWC, 1, 5, 3, 3)
    spec = pool.Pool("average", (80, 190), (10, 10), (10, 10, 10, 10))
    found = execute(
        pool.build(spec, cpu, src, dst), {"x": np.full((1, 5, 90, 200), 0.1, np.float32)}
    )
    assert off(found, float(np.float32(0.1))) < EXACT


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax(axis: int, cpu: Cpu) -> None:
    view = Strided.row_major((20_000, 3) if axis == 0 else (3, 20_000))
    found = run(softmax(Softmax(axis), cpu, view, view), view, np.full(view.shape, 0.7, np.float32))
    assert off(found, 1 / 20_000) < EXACT


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_products(cpu: Cpu) -> None:
    depth, value = 20_001, float(np.float32(0.1))
    a, b, dst = (Strided.row_major(shape) for shape in ((3, depth), (depth, 19), (3, 19)))
    tenth = np.full(depth * 19, 0.1, np.float32)
    found = run(matmul(MatMul(), cpu, a, b, dst), dst, tenth[: 3 * depth], tenth)
    assert off(found, depth * value**2) < 10 * EXACT
    src, out = Placement(NHWC, 2, depth, 1, 1), Placement(NHWC, 2, 19, 1, 1)
    weights = np.full((19, depth), 0.1, np.float32)
    program = dense.build(dense.Dense(bias=True), cpu, src, out)
    operands = {"x": tenth[: 2 * depth].reshape(2, depth, 1, 1), "weights": weights}
    found = execute(program, operands | {"bias": np.full(19, 7, np.float32)})
    assert off(found, depth * value**2 + 7) < 10 * EXACT


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays(value: float, cpu: Cpu) -> None:
    x = np.full((2, 5000), 0.1, np.float32)
    x[0, 77] = value
    src, dst = Strided.row_major((2, 5000)), Strided.row_major((2, 1))
    found = run(reduce(Reduce("mean", (1,)), cpu, src, dst), dst, x)
    np.testing.assert_array_equal(found[0], value)
    assert off(found[1], 0.1) < EXACT


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_maximum_of_all_pixels_keeps_every_nan(layout: Layout, cpu: Cpu) -> None:
    """Wherever it is; so do maxima and minima along axes."""
    x = np.random.default_rng(0).standard_normal((1, 40, 5, 8)).astype(np.float32)
    for channel in range(40):
        x[0, channel, channel // 8, channel % 8] = np.nan
    src, dst = Placement(layout, 1, 40, 5, 8), Placement(layout, 1, 40, 1, 1)
    assert np.isnan(execute(pool.build(pool.Pool("max", (5, 8)), cpu, src, dst), {"x": x})).all()
    view = Strided.row_major(x.shape)
    for function, axes in (("max", (2, 3)), ("min", (2, 3)), ("max", (1,)), ("min", (1,))):
        out = Strided.row_major(tuple(1 if i in axes else n for i, n in enumerate(x.shape)))
        assert np.isnan(run(reduce(Reduce(function, axes), cpu, view, out), out, x)).all()

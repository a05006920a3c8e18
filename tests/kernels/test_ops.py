"""Operators besides convolution, in every layout and vector width, against float64."""

import random
from itertools import pairwise

import numpy as np
import pytest

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, NHWC, Halo, Layout, Placement
from fastrun.kernels.core.reference import activate
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import dense, pool, reorder
from fastrun.kernels.ops.dense import Dense
from fastrun.kernels.ops.pool import Pool
from fastrun.kernels.ops.reorder import Reorder
from tests.support.execution import execute, relative_error
from tests.support.lanes import CPUS, cpus
from tests.support.strided import normal

LAYOUTS = [NCHW, NHWC, Layout("NCHW4c"), Layout("NCHW8c"), Layout("NCHW16c")]
HALO: Halo = (2, 1, 0, 3)
NO_HALO: Halo = (0, 0, 0, 0)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("src", LAYOUTS, ids=str)
@pytest.mark.parametrize("dst", LAYOUTS, ids=str)
def test_reorder_moves_every_value(src: Layout, dst: Layout, cpu: Cpu) -> None:
    """Tails in both directions, one and several tasks, with and without gaps between rows."""
    halos = [(NO_HALO, NO_HALO), (HALO, NO_HALO), (NO_HALO, HALO), (HALO, HALO)]
    shapes = [(2, 37, 5, 7), (1, 3, 9, 19), (1, 16, 12, 16), (1, 1, 1, 1)]
    for i, shape in enumerate(shapes):
        x = normal(*shape)
        before, after = halos[i]
        program = reorder.build(
            Reorder(), cpu, Placement(src, *shape, before), Placement(dst, *shape, after)
        )
        assert np.array_equal(execute(program, {"x": x}), x)
        assert np.array_equal(execute(program, {"x": x}, threads=3), x)


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_rows_of_few_channels_end_anywhere(channels: int, cpu: Cpu) -> None:
    """LLVM ended the process over rows of two channels that end 12 pixels behind a vector."""
    for pixels in (11, 12, 13, 15, 28):
        shape = (1, channels, 1, pixels)
        x, program = (
            normal(*shape),
            reorder.build(Reorder(), cpu, Placement(NCHW, *shape), Placement(NHWC, *shape)),
        )
        assert np.array_equal(execute(program, {"x": x}), x)


def test_reorder_refuses_another_size() -> None:
    a, b = Placement(NCHW, 1, 3, 4, 4), Placement(NHWC, 1, 4, 4, 4)
    with pytest.raises(ScheduleError, match="another size"):
        reorder.build(Reorder(), CPUS[0], a, b)


def test_zones_are_those_of_every_window() -> None:
    draw, refused = random.Random(1), 0
    for _ in range(2000):
        kernel, step, apart, pixels = (draw.randint(1, n) for n in (9, 6, 5, 20))
        before, after, padded = draw.randint(0, 8), draw.randint(0, 8), draw.random() < 0.5
        spec = Pool("average", (1, kernel), (1, step), (0, before, 0, after), (1, apart), padded)
        expected = []
        for o in range(draw.randint(1, 12)):
            places = [o * step + t * apart - before for t in range(kernel)]
            taps = [t for t, x in enumerate(places) if 0 <= x < pixels]
            counted = sum(x < pixels + after for x in places) if padded else len(taps)
            expected.append((taps, counted))
        if not all(taps for taps, _ in expected):
            refused += 1
            with pytest.raises(ScheduleError, match="no pixel inside"):
                pool.zones(spec, 1, pixels, len(expected))
            continue
        zones = pool.zones(spec, 1, pixels, len(expected))
        assert [(list(z.taps), z.counted) for z in zones for _ in range(z.count)] == expected, spec
        assert all((a.taps, a.counted) != (b.taps, b.counted) for a, b in pairwise(zones))
    assert 100 < refused < 1800


def test_a_wide_image_has_few_zones() -> None:
    """Their number, and the time to find them, depend on the borders only."""
    spec = Pool("max", (3, 3), (1, 1), (1, 1, 1, 1))
    assert [z.count for z in pool.zones(spec, 1, 1 << 60, 1 << 60)] == [1, (1 << 60) - 2, 1]


POOLS = [
    (Pool("max", (3, 3), (2, 2), (1, 1, 1, 1)), (12, 17), (6, 9)),
    (Pool("max", (2, 2), (2, 2)), (8, 9), (4, 5)),  # a last column that sticks out
    (Pool("max", (5, 5), (1, 1), (2, 2, 2, 2)), (7, 6), (7, 6)),
    (Pool("max", (2, 3), (1, 2), (0, 1, 1, 0), (2, 3)), (9, 11), (8, 3)),
    (Pool("average", (3, 3), (1, 1), (1, 1, 1, 1)), (6, 35), (6, 35)),
    (Pool("average", (3, 3), (2, 2), (1, 1, 1, 1), count_padding=True), (8, 8), (5, 5)),
    (Pool("average", (3, 2), (2, 5), (1, 0, 0, 1), count_padding=True), (7, 16), (3, 4)),
    (Pool("average", (7, 9), (1, 1)), (7, 9), (1, 1)),
    (Pool("average", (20, 21), (1, 1)), (20, 21), (1, 1)),
]


def pooled(spec: Pool, x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """By the definition, one window at a time."""
    top, left, bottom, right = spec.padding
    _, _, h, w = x.shape
    result = np.zeros((*x.shape[:2], rows, columns))
    for oy in range(rows):
        for ox in range(columns):
            ys = [oy * spec.stride[0] - top + t * spec.dilation[0] for t in range(spec.kernel[0])]
            xs = [ox * spec.stride[1] - left + t * spec.dilation[1] for t in range(spec.kernel[1])]
            inside = [x[:, :, iy, ix] for iy in ys for ix in xs if 0 <= iy < h and 0 <= ix < w]
            if spec.function == "max":
                result[:, :, oy, ox] = np.max(inside, axis=0)
            else:
                counted = len([y for y in ys if y < h + bottom]) * len(
                    [x for x in xs if x < w + right]
                )
                total = np.sum(np.asarray(inside, np.float64), axis=0)
                result[:, :, oy, ox] = total / (counted if spec.count_padding else len(inside))
    return result


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("spec", "image", "windows"), POOLS)
def test_pool(
    spec: Pool, image: tuple[int, int], windows: tuple[int, int], layout: Layout, cpu: Cpu
) -> None:
    x = normal(2, 21, *image) - 3  # a zero of the halo would win every maximum
    src = Placement(layout, 2, 21, *image, HALO)
    dst = Placement(layout, 2, 21, *windows, HALO)
    program = pool.build(spec, cpu, src, dst)
    found = execute(program, {"x": x})
    assert relative_error(found, pooled(spec, x, *windows)) < 1e-6
    assert np.array_equal(found, execute(program, {"x": x}, threads=3))


def test_pool_changes_between_layouts_of_channel_vectors() -> None:
    spec = Pool("max", (3, 3), (2, 2), (1, 1, 1, 1))
    src = Placement(NHWC, 1, 24, 9, 9)
    for dst in ("NCHW8c", "NCHW16c", "NHWC"):
        program = pool.build(spec, CPUS[2], src, Placement(Layout(dst), 1, 24, 5, 5))
        x = normal(1, 24, 9, 9)
        assert np.array_equal(execute(program, {"x": x}), pooled(spec, x, 5, 5))


@pytest.mark.parametrize(
    ("spec", "dst", "reason"),
    [
        (Pool("median", (2, 2)), Placement(NHWC, 1, 8, 3, 3), "median"),
        (Pool("max", (2, 2)), Placement(NHWC, 1, 9, 3, 3), "cannot turn"),
        (Pool("max", (2, 2)), Placement(NCHW, 1, 8, 3, 3), "NCHW"),
        (Pool("max", (2, 2)), Placement(NHWC, 1, 8, 5, 3), "no pixel"),
    ],
)
def test_pool_refuses(spec: Pool, dst: Placement, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        pool.build(spec, CPUS[0], Placement(NHWC, 1, 8, 4, 4), dst)


DENSE = [
    (Dense(), (1, 5, 1, 1), 3, NO_HALO),
    (Dense(bias=True, activation="relu"), (1, 70, 1, 1), 100, NO_HALO),
    (Dense(bias=True, add=True), (2, 19, 3, 2), 37, NO_HALO),
    (Dense(bias=True, activation="hardswish"), (7, 10, 2, 2), 65, HALO),
    (Dense(add=True, activation="sigmoid"), (13, 33, 1, 1), 16, NO_HALO),
]


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("spec", "shape", "outputs", "halo"), DENSE)
def test_dense(
    spec: Dense,
    shape: tuple[int, int, int, int],
    outputs: int,
    halo: Halo,
    layout: Layout,
    cpu: Cpu,
) -> None:
    features = shape[1] * shape[2] * shape[3]
    operands = {
        "x": normal(*shape),
        "weights": normal(outputs, features) * np.float32(features**-0.5),
        "bias": normal(outputs),
        "add": normal(shape[0], outputs, 1, 1),
    }
    src, dst = Placement(layout, *shape, halo), Placement(layout, shape[0], outputs, 1, 1)
    truth = operands["x"].reshape(shape[0], -1).astype(np.float64) @ operands["weights"].T
    truth = truth[:, :, None, None]
    truth = truth + operands["bias"][:, None, None] if spec.bias else truth
    truth = activate(truth + operands["add"] if spec.add else truth, spec.activation)
    program = dense.build(spec, cpu, src, dst)
    found = execute(program, operands)
    assert relative_error(found, truth) < 1e-5
    assert np.array_equal(found, execute(program, operands, threads=3))


@pytest.mark.parametrize("layout", [NCHW, NHWC], ids=str)
def test_dense_of_one_channel_of_many_packs_its_own_weights(layout: Layout) -> None:
    """A class token: where tokens are channels in NHWC, its features lie far apart."""
    src = Placement(layout, 2, 197, 24, 1).part(3, 1)
    operands = {"x": normal(2, 1, 24, 1), "weights": normal(40, 24)}
    program = dense.build(Dense(), CPUS[0], src, Placement(NCHW, 2, 40, 1, 1))
    assert program.pack_weights(operands["weights"]).size <= 48 * 24
    truth = operands["x"].reshape(2, 24).astype(np.float64) @ operands["weights"].T
    assert relative_error(execute(program, operands), truth[:, :, None, None]) < 1e-5


def test_dense_refuses_what_is_not_a_vector() -> None:
    src = Placement(NHWC, 2, 8, 1, 1)
    with pytest.raises(ScheduleError, match="one pixel"):
        dense.build(Dense(), CPUS[0], src, Placement(NHWC, 2, 8, 2, 1))
    with pytest.raises(ScheduleError, match="images"):
        dense.build(Dense(), CPUS[0], src, Placement(NHWC, 3, 8, 1, 1))

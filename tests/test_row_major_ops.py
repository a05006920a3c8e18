"""Kernels for tensors of any shape against numpy and the reference of graphs, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph import numerics, ops
from kernels.codegen.jit import compile_object
from kernels.core.cpu import Cpu
from kernels.core.layout import Layout, Placement
from kernels.core.strided import Ints, Strided
from kernels.core.template import Program, ScheduleError
from kernels.ops import conv_transpose, elementwise, lrn, matmul, movement, reduce, sampling
from kernels.ops.conv_transpose import ConvTranspose
from kernels.ops.elementwise import Affine, Binary, Clip, Unary
from kernels.ops.lrn import Lrn
from kernels.ops.matmul import MatMul
from kernels.ops.reduce import Reduce, Softmax
from kernels.ops.sampling import Gather, Resize
from tests.execution import execute

# The vectors of NEON, AVX2 and AVX-512; LLVM makes any of them run on the host.
CPUS = [
    replace(Cpu.host(), lanes=lanes, registers=registers)
    for lanes, registers in ((4, 32), (8, 16), (16, 32))
]
CPU = Cpu.host()
SHAPES: list[Ints] = [(), (1,), (17,), (3, 1), (1, 7, 1, 5), (2, 3, 5, 7), (2, 3, 1, 4, 5), (9001,)]


def cpus(cpu: Cpu) -> str:
    return f"{cpu.lanes} lanes"


def normal(*shape: int) -> np.ndarray:
    values = np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)
    return np.asarray(values, np.float32)


def flat(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).reshape(1, 1, 1, -1)


def run(
    program: Program,
    dst: Strided,
    src: np.ndarray | None = None,
    add: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """The elements of `dst`, written by one thread and by three with the same result."""
    # A view may end before its buffer does.
    operands = {"x": flat(np.zeros(0) if src is None else src)[..., : program.io.src.size]}
    if add is not None:
        operands["add"] = flat(add)[..., : program.io.add.size]
    if weights is not None:
        operands["weights"] = weights
    if bias is not None:
        operands["bias"] = bias.reshape(-1)
    found = execute(program, operands).reshape(-1)
    assert np.array_equal(found, execute(program, operands, threads=3).reshape(-1), equal_nan=True)
    values = dst.view(found).copy()
    dst.view(found)[...] = np.nan
    assert np.isnan(found).all(), "wrote between the elements of dst"
    return values


def assert_close(found: np.ndarray, truth: np.ndarray, ulps: float = 8, least: float = 0) -> None:
    """Equal to within so many units of float32, or `least`; NaN and infinities in place."""
    truth = np.asarray(truth).astype(np.float64)
    infinite = np.abs(truth) > np.finfo(np.float32).max
    assert found.shape == truth.shape
    assert np.array_equal(np.isnan(found), np.isnan(truth))
    assert np.array_equal(found[infinite], np.copysign(np.inf, truth[infinite]))
    finite = np.isfinite(truth) & ~infinite
    error = np.abs(found[finite] - truth[finite])
    allowed = np.maximum(np.abs(truth[finite]) * ulps * 2.0**-23, max(least, 2.0**-148))
    worst = np.argmax(error / allowed) if error.size else 0
    assert (error <= allowed).all(), (found[finite].flat[worst], truth[finite].flat[worst])


SPECIAL = np.array(
    [0, -0.0, 1, -1, 0.5, 1.5, 2.5, -2.5, 1e-30, -1e-30, 1e-40, 1e30, -1e30, 88.5, 89, -87, -100,
     -104, 20, -20, 3.4e38, np.inf, -np.inf, np.nan], np.float32,
)  # fmt: skip
PARAMETERS = {
    "leakyrelu": (0.01, 0.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.5, 0.0),
    "selu": (1.6732632, 1.0507010),
    "celu": (0.7, 0.0),
}
# Absolute errors allowed where the true value is the small difference of larger ones.
LEAST = {"silu": 2e-36, "gelu": 1e-14, "gelu_tanh": 3e-7, "hardswish": 1e-6, "hardsigmoid": 1e-7}


@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
@pytest.mark.parametrize("function", [f for f in elementwise.UNARY if f != "pow"])
def test_unary_is_accurate_and_keeps_special_values(function: str, cpu: Cpu) -> None:
    """All magnitudes, the signs of zero aside."""
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(3000) * 10.0 ** rng.integers(-8, 3, 3000)
    x = np.concatenate([SPECIAL, np.linspace(-12, 12, 3001), wide]).astype(np.float32)
    alpha, beta = PARAMETERS.get(function, (0.0, 0.0))
    view = Strided.row_major(x.shape)
    found = run(elementwise.unary(Unary(function, alpha, beta), cpu, view, view), view, x)
    with np.errstate(all="ignore"):
        truth = numerics.UNARY[function](x.astype(np.float64), alpha, beta)
    assert_close(found, truth, least=LEAST.get(function, 2.0**-126))


def test_every_function_of_graphs_is_there() -> None:
    assert elementwise.UNARY.keys() >= numerics.UNARY.keys()
    assert elementwise.BINARY.keys() == numerics.BINARY.keys()


def test_power() -> None:
    x = np.concatenate([SPECIAL, np.abs(normal(100)) * 9]).astype(np.float32)
    view = Strided.row_major(x.shape)
    for exponent in (2.0, 3.0, 0.5, -0.5, -1.0, -2.0, 1.5, 0.0, 0.3, 1.0):
        found = run(elementwise.unary(Unary("pow", exponent), CPU, view, view), view, x)
        with np.errstate(all="ignore"):
            assert_close(
                found,
                np.power(x.astype(np.float64), np.full(x.shape, np.float32(exponent))),
                least=2.0**-126,
            )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clip(shape: Ints) -> None:
    x, view = normal(*shape), Strided.row_major(shape)
    for low, high in ((-0.5, 0.25), (-math.inf, 0.0), (0.1, 1e40)):
        found = run(elementwise.clip(Clip(low, high), CPU, view, view), view, x)
        assert np.array_equal(found, np.clip(x, np.float32(low), np.float32(min(high, 3e38))))


@st.composite
def broadcast_pairs(draw: st.DrawFn) -> tuple[Ints, Ints]:
    """Two shapes up to rank five that numpy broadcasts."""
    full = draw(st.lists(st.integers(1, 9), max_size=5))
    pair = []
    for _ in range(2):
        kept = draw(st.integers(0, len(full)))
        shape = [n if draw(st.booleans()) else 1 for n in full]
        pair.append(tuple(shape[len(full) - kept :]))
    return pair[0], pair[1]


@settings(max_examples=25, deadline=None)
@given(
    broadcast_pairs(), st.sampled_from(sorted(elementwise.BINARY)), st.sampled_from(CPUS),
    st.sampled_from([("src", "add"), ("weights", "src"), ("src", "weights")]),
)  # fmt: skip
def test_binary_broadcasts(
    shapes: tuple[Ints, Ints], function: str, cpu: Cpu, arguments: tuple[str, str]
) -> None:
    a, b = (normal(*shape) for shape in shapes)
    if function == "pow":
        a = np.abs(a)
    out = Strided.row_major(np.broadcast_shapes(*shapes))
    operands = dict(zip(arguments, (a, b), strict=True))
    views = [Strided.row_major(shape) for shape in shapes]
    program = elementwise.binary(Binary(function), cpu, *views, out, arguments)
    found = run(program, out, **operands)
    assert_close(found, numerics.BINARY[function](a.astype(np.float64), b.astype(np.float64)))


@pytest.mark.parametrize("function", [f for f in elementwise.BINARY if f != "pow"])
def test_binary_keeps_special_values(function: str) -> None:
    a, b = (x.reshape(-1) for x in np.meshgrid(SPECIAL, SPECIAL))
    view = Strided.row_major(a.shape)
    found = run(elementwise.binary(Binary(function), CPU, view, view, view), view, a, b)
    with np.errstate(all="ignore"):
        assert_close(found, numerics.BINARY[function](a, b))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCHW8c"])
def test_elementwise_in_place_of_layouts(layout: str) -> None:
    """Squeeze-and-excite in any layout: a factor per channel, and a halo left alone."""
    where = Placement(Layout(layout), 2, 16, 5, 3, (1, 1, 0, 2))
    factors = Placement(Layout(layout), 2, 16, 1, 1)
    x, y = normal(2, 16, 5, 3), normal(2, 16, 1, 1)
    out = Strided.of(where)
    program = elementwise.binary(Binary("mul"), CPU, Strided.of(where), Strided.of(factors), out)
    program = replace(program, io=replace(program.io, src=where, dst=where, add=factors))
    assert np.array_equal(execute(program, {"x": x, "add": y}, threads=2), x * y)


def test_affine_of_channels_in_blocks() -> None:
    where = Placement(Layout("NCHW8c"), 2, 21, 5, 3, (1, 1, 0, 2))
    x, pairs = normal(2, 21, 5, 3), normal(2, 21)
    padded = np.pad(pairs, [(0, 0), (0, 3)])
    view = Strided.of(where)
    program = elementwise.affine(Affine(axes=(1, 4)), CPU, view, view)
    program = replace(program, io=replace(program.io, src=where, dst=where))
    scale, shift = (p.astype(np.float64).reshape(-1, 1, 1) for p in pairs)
    found = execute(program, {"x": x, "weights": padded}, threads=2)
    assert_close(found, x * scale + shift, least=1e-6)


@pytest.mark.parametrize("shape", [(2, 5), (1, 7, 9), (3, 12, 5, 7), (2, 3, 2, 3, 2)], ids=str)
def test_affine(shape: Ints) -> None:
    x, view, pairs = normal(*shape), Strided.row_major(shape), normal(2, shape[1])
    found = run(elementwise.affine(Affine(), CPU, view, view), view, x, weights=pairs)
    scale, shift = (p.astype(np.float64).reshape(-1, *(1,) * (len(shape) - 2)) for p in pairs)
    assert_close(found, x * scale + shift, least=1e-6)


def test_elementwise_refuses() -> None:
    a, b = Strided.row_major((2, 3)), Strided.row_major((2, 4))
    with pytest.raises(ScheduleError, match="broadcast"):
        elementwise.binary(Binary("add"), CPU, a, b, a)
    with pytest.raises(ScheduleError, match="unknown function 'cosh'"):
        elementwise.unary(Unary("cosh"), CPU, a, a)
    with pytest.raises(ScheduleError, match="unknown function"):
        elementwise.binary(Binary("atan2"), CPU, a, a, a)


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


@settings(max_examples=25, deadline=None)
@given(slices(), st.sampled_from(CPUS))
def test_slice(given_: tuple[Ints, Ints, Ints, Ints], cpu: Cpu) -> None:
    shape, starts, sizes, steps = given_
    x, dst = normal(*shape), Strided.row_major(sizes)
    program = movement.copy(cpu, Strided.row_major(shape).slice(starts, sizes, steps), dst)
    index = (a + s * np.arange(n) for a, n, s in zip(starts, sizes, steps, strict=True))
    assert np.array_equal(run(program, dst, x), x[np.ix_(*index)])


@settings(max_examples=25, deadline=None)
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


REDUCTIONS: list[tuple[Ints, Ints]] = [
    ((17,), (0,)), ((5, 1), (1,)), ((2, 3, 7, 5), (2, 3)), ((2, 3, 7, 5), (1,)), ((4, 37), (0,)),
    ((2, 3, 4, 5), (0, 2)), ((2, 3, 4, 5), (1, 3)), ((2, 3, 4, 5), (0, 1, 2, 3)),
    ((1, 40, 11, 11), (2, 3)), ((2, 2, 3, 3, 9), (3,)), ((3, 70, 130), (1,)), ((2, 1500), (1,)),
    ((2, 3), ()),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "axes"), REDUCTIONS)
@pytest.mark.parametrize("function", ["mean", "sum", "max", "min", "l2"])
@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_reduce(function: str, shape: Ints, axes: Ints, cpu: Cpu) -> None:
    x, src = normal(*shape), Strided.row_major(shape)
    truth = numerics.REDUCTIONS[function](x.astype(np.float64), axes)
    scale = np.mean(np.abs(x)) * (math.prod(shape[a] for a in axes) if function == "sum" else 1)
    for kept in (truth.shape, tuple(1 if a in axes else n for a, n in enumerate(shape))):
        dst = Strided.row_major(kept)
        found = run(reduce.reduce(Reduce(function, axes), cpu, src, dst), dst, x)
        assert_close(found, truth.reshape(kept), least=2e-7 * scale)


@pytest.mark.parametrize("function", ["mean", "sum", "max", "min", "l2"])
def test_reduce_keeps_nan(function: str) -> None:
    src, columns = Strided.row_major((3, 45)), Strided.row_major((45,))
    x = normal(3, 45)
    x[0, 44], x[1, 3], x[2, 17] = np.nan, np.inf, -np.inf
    for axis, dst in ((0, columns), (1, Strided.row_major((3,)))):
        found = run(reduce.reduce(Reduce(function, (axis,)), CPU, src, dst), dst, x)
        assert_close(found, numerics.REDUCTIONS[function](x.astype(np.float64), axis), least=1e-6)


SOFTMAXES: list[tuple[Ints, int]] = [
    ((1, 1000), 1), ((3, 5), 1), ((3, 5), 0), ((2, 21, 6, 7), 1), ((2, 3, 4, 5), 2),
    ((2, 1, 5), 1), ((7,), 0), ((1, 1), 0), ((5, 19, 200), 1), ((2, 3, 2, 3, 33), 4),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "axis"), SOFTMAXES)
@pytest.mark.parametrize("logarithm", [False, True])
@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_softmax(shape: Ints, axis: int, logarithm: bool, cpu: Cpu) -> None:
    view = Strided.row_major(shape)
    program = reduce.softmax(Softmax(axis, logarithm), cpu, view, view)
    for scale in (1, 60):
        x = normal(*shape) * np.float32(scale)
        truth = numerics.softmax(ops.Softmax(axis, logarithm), x.astype(np.float64))
        # Far from the peak the rounding of the distance to it, some 100, counts.
        assert_close(run(program, view, x), truth, ulps=80, least=2e-6 if logarithm else 2.0**-126)


def test_softmax_of_infinities() -> None:
    view = Strided.row_major((3, 20))
    x = normal(3, 20)
    x[0, 3], x[1, 4], x[2] = -np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        truth = numerics.softmax(ops.Softmax(1), x.astype(np.float64))
    assert_close(run(reduce.softmax(Softmax(1), CPU, view, view), view, x), truth)


def test_reduce_refuses() -> None:
    a, b = Strided.row_major((2, 3)), Strided.row_major((3,))
    with pytest.raises(ScheduleError, match="unknown reduction"):
        reduce.reduce(Reduce("median", (0,)), CPU, a, b)
    with pytest.raises(ScheduleError, match="is not"):
        reduce.reduce(Reduce("mean", (1,)), CPU, a, b)
    with pytest.raises(ScheduleError, match="softmax cannot"):
        reduce.softmax(Softmax(1), CPU, a, b)


@pytest.mark.parametrize("shape", [(2, 9, 5, 7), (1, 3, 40), (1, 1, 3, 3), (3, 11), (2, 20, 1, 1)])
@pytest.mark.parametrize(("size", "beta"), [(5, 0.75), (3, 0.5), (4, 1.0), (2, 0.6), (30, 0.75)])
def test_lrn(shape: Ints, size: int, beta: float) -> None:
    x, view = normal(*shape) * 3, Strided.row_major(shape)
    truth = numerics.lrn(ops.LRN(size, 0.3, beta, 1.5), x.astype(np.float64))
    found = run(lrn.lrn(Lrn(size, 0.3, beta, 1.5), CPU, view, view), view, x)
    assert_close(found, truth, ulps=10)


PRODUCTS: list[tuple[Ints, Ints]] = [
    ((1, 1), (1, 1)), ((3, 5), (5, 7)), ((37, 19), (19, 53)), ((64, 200), (200, 96)),
    ((5, 300), (300, 1)), ((1, 70), (70, 33)), ((2, 3, 17, 8), (2, 3, 8, 9)),
    ((3, 1, 4, 5), (2, 5, 6)), ((7, 6), (4, 2, 6, 3)), ((2, 50, 3), (2, 3, 2)), ((40, 9), (9, 16)),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), PRODUCTS)
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_matmul(left: Ints, right: Ints, turned: str, cpu: Cpu) -> None:
    """Matrices as they are and transposed in memory."""
    a, b = normal(*left), normal(*right)
    stored, views = [], []
    for name, x in (("a", a), ("b", b)):
        order = (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2)
        there = np.ascontiguousarray(x.transpose(order)) if name in turned else x
        view = Strided.row_major(there.shape)
        stored.append(there)
        views.append(view.transpose(order) if name in turned else view)
    truth = a.astype(np.float64) @ b.astype(np.float64)
    dst = Strided.row_major(truth.shape)
    found = run(matmul.matmul(MatMul(), cpu, *views, dst), dst, *stored)
    assert_close(found, truth, least=1e-6 + 1e-7 * left[-1])


@pytest.mark.parametrize("c", [(), (7,), (13, 1), (1, 7), (13, 7)], ids=str)
@pytest.mark.parametrize("columns", [7, 1])
def test_gemm(c: Ints, columns: int) -> None:
    """Scaled, with an addend of any shape that can be broadcast."""
    c = tuple(min(n, columns) if n == 7 else n for n in c)
    a, b, added = normal(13, 21), normal(21, columns), normal(*c)
    views = [Strided.row_major(x.shape) for x in (a, b)]
    dst = Strided.row_major((13, columns))
    program = matmul.matmul(MatMul(0.5, -2), CPU, *views, dst, Strided.row_major(c))
    truth = 0.5 * (a.astype(np.float64) @ b) - 2.0 * added
    assert_close(run(program, dst, a, b, bias=added), truth, least=2e-6)


def test_matmul_with_constants() -> None:
    a, b = normal(3, 20, 30), normal(30, 40)
    for arguments, operands in (
        (("src", "weights", "bias"), {"src": a, "weights": b}),
        (("weights", "src", "bias"), {"src": b, "weights": a}),
    ):
        views = [Strided.row_major(x.shape) for x in (a, b)]
        dst = Strided.row_major((3, 20, 40))
        program = matmul.matmul(MatMul(), CPU, *views, dst, None, arguments)
        assert_close(run(program, dst, **operands), a.astype(np.float64) @ b, least=4e-6)


def test_matmul_refuses() -> None:
    a, b, c = (Strided.row_major(shape) for shape in ((2, 3), (4, 5), (3,)))
    with pytest.raises(ScheduleError, match="is not"):
        matmul.matmul(MatMul(), CPU, a, b, a)
    with pytest.raises(ScheduleError, match="two axes"):
        matmul.matmul(MatMul(), CPU, a, c, a)


@pytest.mark.parametrize(
    ("spec", "shape", "oc"),
    [
        (ConvTranspose((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)), (1, 5, 4, 6), 7),
        (ConvTranspose((4, 4), (2, 2), (1, 1, 1, 1), (1, 1), bias=True), (2, 6, 5, 9), 20),
        (ConvTranspose((3, 3), (2, 2), (1, 1, 0, 0), (1, 1), groups=2), (1, 6, 7, 19), 8),
        (ConvTranspose((3, 5), (1, 1), (0, 2, 1, 2), (1, 1), bias=True), (1, 3, 4, 33), 5),
        (ConvTranspose((3, 2), (1, 3), (0, 0, -1, -2), (2, 1)), (1, 3, 4, 5), 2),
        (ConvTranspose((3, 3), (2, 3), (1, 0, 1, 0), (2, 2), bias=True), (1, 2, 5, 6), 3),
        (ConvTranspose((3, 4), (4, 6), (0, 0, 0, 0), (2, 4)), (1, 2, 4, 3), 3),
        (ConvTranspose((16, 16), (8, 8), (4, 4, 4, 4), (1, 1)), (1, 3, 3, 5), 3),
        (ConvTranspose((5, 5), (7, 6), (0, 0, 0, -5), (1, 1), 4, True), (2, 4, 2, 1), 4),
        (ConvTranspose((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)), (1, 1, 1, 1), 1),
        (ConvTranspose((4,), (2,), (1, 1), (1,), bias=True), (2, 9, 21), 6),
        (ConvTranspose((3,), (1,), (0, 1), (3,)), (1, 2, 6), 5),
    ],
)
@pytest.mark.parametrize("cpu", CPUS, ids=cpus)
def test_conv_transpose(spec: ConvTranspose, shape: Ints, oc: int, cpu: Cpu) -> None:
    """Strides above, below and sharing factors with dilations; appended zeros; groups."""
    rank = len(spec.kernel)
    x, bias = normal(*shape), normal(oc)
    weights = normal(shape[1], oc // spec.groups, *spec.kernel)
    begins, ends = spec.padding[:rank], spec.padding[rank:]
    axes = zip(shape[2:], spec.kernel, spec.stride, spec.dilation, begins, ends, strict=True)
    space = ((n - 1) * s + (kernel - 1) * d + 1 - b - e for n, kernel, s, d, b, e in axes)
    dst = Strided.row_major((shape[0], oc, *space))
    op = ops.ConvTranspose(spec.stride, spec.padding, spec.dilation, spec.groups)
    operands = [v.astype(np.float64) for v in (x, weights, bias)]
    truth = numerics.conv_transpose(op, dst.shape, *operands[: 2 + spec.bias])
    program = conv_transpose.conv_transpose(spec, cpu, Strided.row_major(shape), dst)
    assert_close(run(program, dst, x, weights=weights, bias=bias), truth, least=1e-5)


def test_conv_transpose_refuses() -> None:
    spec, a = ConvTranspose((2,) * 3, (1,) * 3, (0,) * 6, (1,) * 3), Strided.row_major((1,) * 5)
    with pytest.raises(ScheduleError, match="one or two spatial axes"):
        conv_transpose.conv_transpose(spec, CPU, a, a)
    spec, b = ConvTranspose((2,), (1,), (0, 0), (1,), groups=2), Strided.row_major((1, 3, 5))
    with pytest.raises(ScheduleError, match="2 groups"):
        conv_transpose.conv_transpose(spec, CPU, b, Strided.row_major((1, 4, 6)))


@pytest.mark.parametrize("cpu", [Cpu.avx2(), Cpu.avx512(), Cpu.neon()], ids=lambda cpu: cpu.name)
def test_builds_for_every_target(cpu: Cpu) -> None:
    """Masked gathers, functions of the C library and transposes among them."""
    view, square = Strided.row_major((3, 70)), Strided.row_major((70, 70))
    programs = [
        elementwise.unary(Unary("gelu"), cpu, view, view),
        elementwise.binary(Binary("pow"), cpu, view, view, view),
        movement.copy(cpu, square.transpose((1, 0)), square),
        sampling.gather(
            Gather(1, tuple(range(69, -1, -1)) * 30), cpu, view, Strided.row_major((3, 2100))
        ),
        reduce.softmax(Softmax(1), cpu, view, view),
        matmul.matmul(MatMul(), cpu, view, square, view),
    ]
    for program in programs:
        assert compile_object(program.ir, cpu).startswith(b"\x7fELF")


def test_tensors_without_elements() -> None:
    dst = Strided.row_major((3, 0, 5))
    for program in (
        movement.copy(CPU, dst, dst),
        elementwise.unary(Unary("exp"), CPU, dst, dst),
        movement.copy(CPU, dst, Strided.row_major((3, 4, 5)).part(1, 2, 0)),
    ):
        assert sum(stage.tasks for stage in program.stages) == 0
        assert compile_object(program.ir, CPU)

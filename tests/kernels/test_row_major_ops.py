"""Reductions and products of tensors of any shape against the reference of graphs, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastrun.graph.core import ops
from fastrun.graph.reference import numerics
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.compile import compile_object
from fastrun.kernels.ops import conv_transpose, elementwise, lrn, matmul, movement, reduce, sampling
from fastrun.kernels.ops.conv_transpose import ConvTranspose
from fastrun.kernels.ops.elementwise import Binary, Unary
from fastrun.kernels.ops.lrn import LRN
from fastrun.kernels.ops.matmul import MatMul
from fastrun.kernels.ops.reduce import Reduce, Softmax
from fastrun.kernels.ops.sampling import Gather
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, assert_close, normal, run

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
    found = run(lrn.lrn(LRN(size, 0.3, beta, 1.5), CPU, view, view), view, x)
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

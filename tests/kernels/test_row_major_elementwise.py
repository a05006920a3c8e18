"""Elementwise kernels for tensors of any shape against numpy in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrun.graph.reference import numerics
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Layout, Placement
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import elementwise
from fastrun.kernels.ops.elementwise import Affine, Binary, Clip, Unary
from tests.support.execution import execute
from tests.support.lanes import CPUS, cpus
from tests.support.strided import CPU, assert_close, normal, run

SHAPES: list[Ints] = [(), (1,), (17,), (3, 1), (1, 7, 1, 5), (2, 3, 5, 7), (2, 3, 1, 4, 5), (9001,)]

WHOLE = ("quotient", "mod")  # functions of whole numbers
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
LEAST = {"silu": 2e-36, "gelu": 3e-7, "gelu_tanh": 3e-7, "hardswish": 1e-6, "hardsigmoid": 1e-7}


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
    if function == "gelu":
        truth[x == -np.inf] = 0  # the limit; the formula gives -inf * 0
    assert_close(found, truth, least=LEAST.get(function, 2.0**-126))


@pytest.mark.parametrize("function", ["sigmoid", "silu", "tanh", "erf"])
def test_nothing_is_divided_where_there_are_estimates_of_reciprocals(function: str) -> None:
    """A division takes as long as 32 multiply-adds on Intel's cores."""
    view = Strided.row_major((64,))

    def divides(cpu: Cpu) -> bool:
        return "fdiv" in elementwise.unary(Unary(function), cpu, view, view).ir

    assert divides(Cpu.avx2())
    assert divides(Cpu.neon())
    assert not divides(Cpu.avx512())


@pytest.mark.parametrize("function", WHOLE)
def test_quotients_and_remainders_of_whole_numbers_are_exact(function: str) -> None:
    draw = np.random.default_rng(0)
    b = np.concatenate([[1, 2, 3, 2**24], draw.integers(1, 2**12, 2000)])
    a = np.concatenate([[2**24, 2**24 - 1, 2**24 - 1, 2**24], draw.integers(-(2**24), 2**24, 2000)])
    a[4::2] = a[4::2] // b[4::2] * b[4::2] - 1  # just below a multiple
    a, view = a.clip(-(2**24), 2**24), Strided.row_major(a.shape)
    x, y = a.astype(np.float32), b.astype(np.float32)
    found = run(elementwise.binary(Binary(function), CPU, view, view, view), view, x, y)
    assert np.array_equal(found, numerics.BINARY[function](a, b))


def test_every_function_of_graphs_is_there() -> None:
    assert elementwise.UNARY.keys() >= numerics.UNARY.keys()
    logic = {"and", "or", "xor"}  # in kernels min, max and unequal of 0 and 1
    assert elementwise.BINARY.keys() == numerics.BINARY.keys() - logic


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


@settings(max_examples=25)
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
    if function in WHOLE:  # which are exact for whole numbers alone
        a, b = np.rint(9 * a), np.copysign(np.ceil(np.abs(9 * b)), b)
    out = Strided.row_major(np.broadcast_shapes(*shapes))
    operands = dict(zip(arguments, (a, b), strict=True))
    views = [Strided.row_major(shape) for shape in shapes]
    program = elementwise.binary(Binary(function), cpu, *views, out, arguments)
    found = run(program, out, **operands)
    assert_close(found, numerics.BINARY[function](a.astype(np.float64), b.astype(np.float64)))


@pytest.mark.parametrize("function", [f for f in elementwise.BINARY if f not in ("pow", *WHOLE)])
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

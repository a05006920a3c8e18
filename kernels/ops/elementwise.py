"""Operators that compute every element of the result from one element of each input.

They work on strided tensors, so broadcasting, transposed inputs and parts of outputs need no copy.
Tensors in the same layout are long rows.

Tensors of u8 have their scales and zero points in an operand (`kernels.core.scales`). They are
computed in float32. A function of one tensor of u8 into u8 is a table, whatever it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Module, Vec, fma
from fastrun.kernels.codegen.elementary import (
    absolute,
    compare,
    copy_sign,
    erf,
    exp,
    expm1_negative,
    gelu,
    gelu_tanh,
    log,
    maximum,
    minimum,
    sigmoid,
    softplus,
    tanh,
)
from fastrun.kernels.codegen.epilogue import activate
from fastrun.kernels.codegen.quantise import (
    elements,
    in_steps,
    looked_up,
    numbers,
    scale_of,
    zero_point,
)
from fastrun.kernels.codegen.strided_loops import (
    Nest,
    aligned,
    fitted,
    load_row,
    operand,
    rows,
    singly,
    store_row,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, U8
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import check, check_f32

UNROLL = 2


@dataclass(frozen=True)
class Unary:
    """A function of one value, one of `UNARY`: ONNX's names in lower case and a few more.

    `alpha` and `beta` are the parameters to which ONNX gives these names; its gamma is `beta`.
    """

    function: str
    alpha: float = 0.0
    beta: float = 0.0


@dataclass(frozen=True)
class Clip:
    """x limited to low..high."""

    low: float
    high: float


@dataclass(frozen=True)
class Binary:
    """One of `BINARY` of two operands, broadcast as in numpy, then `activation` if it is given.

    Activations are those of `ConvProblem`.
    """

    function: str
    activation: str = ""


@dataclass(frozen=True)
class Where:
    """Elements of the second operand where the first is not zero, else of the third; broadcast."""


@dataclass(frozen=True)
class Affine:
    """`activation(x * scale + shift)`; `axes` are those of the channels, the last innermost."""

    axes: Ints = (1,)
    activation: str = ""


Step = Unary | Clip | Binary | Affine | Where


@dataclass(frozen=True)
class Chain:
    """Operators one after another, each with the numbers of the values that it reads.

    Value i is operand i; behind the operands follow the operators' results. The last is written.
    An `Affine` reads scales and shifts as two more values; its `axes` do not matter.
    """

    steps: tuple[tuple[Step, Ints], ...]


Operands = Sequence[tuple[str, Strided]]


@identified
def unary(spec: Unary, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Apply a function to every element of `src`, broadcast to `dst`; see `lookup` for u8.

    Raises:
        ScheduleError: the function is unknown or the shapes do not fit.
    """
    check(spec.function in UNARY, f"unknown function {spec.function!r}: use one of {[*UNARY]}")
    if src.dtype is U8 is dst.dtype:
        return lookup(cpu, src, dst)
    return _real(cpu, "unary", _function(spec), [("src", src)], dst)


@identified
def clip(spec: Clip, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Limit every element of `src`; NaN stays. See `lookup` for u8.

    Raises:
        ScheduleError: the shapes do not fit.
    """
    if src.dtype is U8 is dst.dtype:
        return lookup(cpu, src, dst)
    return _real(cpu, "clip", _function(spec), [("src", src)], dst)


@identified
def lookup(cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Replace every element of `src` by that of a table of 256 bytes, broadcast to `dst`.

    The weights are a table of `kernels.core.scales`: any function, exact to the bit, or the same
    numbers on another grid.

    Raises:
        ScheduleError: the shapes do not fit, or the elements are no u8.
    """
    check(src.dtype is U8 is dst.dtype, "a table has an entry for each number of u8")
    return each_element(cpu, "lookup", looked_up, [("src", src)], dst)


@identified
def binary(
    spec: Binary,
    cpu: Cpu,
    src: Strided,
    add: Strided,
    dst: Strided,
    arguments: tuple[str, str] = ("src", "add"),
) -> Program:
    """Combine two operands, both broadcast to `dst`.

    `arguments` names the kernel's arguments that hold them. A constant is in "weights", row-major.

    Raises:
        ScheduleError: the function is unknown or the shapes do not fit.
    """
    check(spec.function in BINARY, f"unknown function {spec.function!r}: use one of {[*BINARY]}")
    operands = list(zip(arguments, (src, add), strict=True))
    if dst.dtype is U8 and _scales_through(spec):
        return each_element(cpu, "binary", _in_steps(spec, arguments), operands, dst)
    return _real(cpu, "binary", _function(spec), operands, dst)


def _scales_through(spec: Binary) -> bool:
    """Whether the result can be computed in steps of the output, without a division by its scale.

    Then halves of steps are exact where the scales are multiples by powers of two.
    """
    linear = spec.activation in ("", "relu") or spec.activation.startswith("leaky")
    return linear and spec.function in ("add", "sub", "mul")


def _in_steps(spec: Binary, arguments: tuple[str, str]) -> Callable[[Vec, Vec], Vec]:
    """A sum, difference or product of elements as elements of the output."""

    def scaled(x: Vec, tensor: str) -> tuple[Vec, Vec, Vec]:
        """Elements as float32, their scale and zero point; those of constants are 1 and 0."""
        k, lanes = x.k, x.lanes
        if x.dtype is not U8:
            return x.to(F32), k.const(1.0, lanes), k.const(0.0, lanes)
        return x.to(F32), scale_of(k, tensor, lanes), zero_point(k, tensor, lanes)

    def function(x: Vec, y: Vec) -> Vec:
        k, lanes = x.k, x.lanes
        (a, a_scale, a_zero), (b, b_scale, b_zero) = map(scaled, (x, y), arguments)
        step = scale_of(k, "dst", lanes)
        if spec.function == "mul":
            value = (a - a_zero) * (b - b_zero) * (a_scale * b_scale / step)
        else:
            a_scale, b_scale = a_scale / step, b_scale / step
            if spec.function == "sub":
                b_scale = b_scale * -1.0
            shift = (a_zero * a_scale + b_zero * b_scale) * -1.0
            value = fma(a, a_scale, fma(b, b_scale, shift))
        return in_steps(activate(value, spec.activation), zero_point(k, "dst", lanes))

    return function


@identified
def affine(spec: Affine, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Scale and shift every channel of `src`. Weights are (2, channels): scale, then shift.

    Raises:
        ScheduleError: the shapes do not fit.
    """
    channels = Strided.row_major(tuple(dst.shape[axis] for axis in spec.axes))
    steps = dict(zip(spec.axes, channels.strides, strict=True))
    scale = Strided(dst.shape, tuple(steps.get(axis, 0) for axis in range(len(dst.shape))))
    shift = replace(scale, offset=channels.size)
    operands = [("src", src), ("weights", scale), ("weights", shift)]
    return _real(cpu, "affine", _function(spec), operands, dst)


@identified
def chain(spec: Chain, cpu: Cpu, operands: Operands, dst: Strided) -> Program:
    """Compute several operators in one loop, without memory for what lies between them.

    `operands` are broadcast to `dst`, each with the name of the kernel's argument that holds it.
    Computed ones are in "src", "add" and "third", of which the last lies where the table of one
    entry in front of the weights says (see `Io`). Constants are in "weights", row-major.

    Raises:
        ScheduleError: a function is unknown, the shapes do not fit, or a tensor is not of f32.
    """
    check_f32("a chain of operators", dst, *(view for _, view in operands))

    def function(*values: Vec) -> Vec:
        known = [*values]
        for step, reads in spec.steps:
            known.append(_function(step)(*(known[i] for i in reads)))
        return known[-1]

    return each_element(cpu, "chain", function, operands, dst)


def _function(spec: Step) -> Callable[..., Vec]:
    """What an operator computes of vectors of its operands."""
    match spec:
        case Unary(name, alpha, beta):
            return lambda x: UNARY[name](x, alpha, beta)
        case Clip():
            with np.errstate(over="ignore"):  # a limit beyond float32 has no effect
                low, high = np.array([spec.low, spec.high]).astype(np.float32).tolist()
            return lambda x: x.max(low).min(high)
        case Binary(name, activation):
            return lambda x, y: activate(BINARY[name](x, y), activation)
        case Affine(activation=activation):
            return lambda x, scale, shift: activate(fma(x, scale, shift), activation)
        case Where():
            return lambda x, yes, no: x.k.blend(compare("une", x, 0.0), yes, no)


def _real(
    cpu: Cpu, name: str, function: Callable[..., Vec], operands: Operands, dst: Strided
) -> Program:
    """`function` of what the elements of all operands stand for, computed in float32."""

    def typed(*elements_: Vec) -> Vec:
        known = [numbers(x, argument) for (argument, _), x in zip(operands, elements_, strict=True)]
        return elements(function(*known), dst.dtype)

    return each_element(cpu, name, typed, operands, dst)


def each_element(
    cpu: Cpu, name: str, function: Callable[..., Vec], operands: Operands, dst: Strided
) -> Program:
    """`function` of vectors of all operands, element by element."""
    out, *views = aligned(dst, *(fitted(view, dst.shape) for _, view in operands))
    *outer, length = out.shape
    # One register of the smallest elements, unless they lie apart and are loaded one by one.
    near = all(view.strides[-1] in (0, 1) for view in (out, *views))
    wide = max(cpu.wide(view.dtype) for view in (out, *views)) if near else cpu.lanes
    tiles = [*singly(tuple(outer)), rows(length, wide, UNROLL if wide == cpu.lanes else 1)]
    module, nest, written = Module(cpu), Nest(tiles), out.strides[-1]

    @nest.stage(module, name)
    def write(k: Kernel, *places: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                lanes = min(wide, 1 << (run.size - 1).bit_length())
                sources = [
                    (_argument(k, argument, view).at(*places, x), view.strides[-1])
                    for (argument, _), view in zip(operands, views, strict=True)
                ]
                target = operand(k, "dst", out).at(*places, x).strided(written)
                for start in range(0, run.size, lanes):
                    count = min(lanes, run.size - start)
                    row = [
                        load_row(at.strided(step).at(start), step, count, lanes)
                        for at, step in sources
                    ]
                    store_row(target.at(start), written, count, function(*row))

    # A program's placements only say how large the operands' buffers are.
    buffers = {argument: view.buffer for argument, view in operands}
    return module.program(Io.named(buffers, dst.buffer))


def _argument(k: Kernel, name: str, view: Strided) -> Buffer:
    """An operand; a third computed one lies where the table in the weights says."""
    if name != "third":
        return operand(k, name, view)
    base = operand(k, "src", Strided((1,), (1,))).at(k.argument("weights").index(0))
    return base.at(view.offset).strided(*view.strides)


def _elu(x: Vec, alpha: float, scale: float = 1.0, slope: float = 1.0) -> Vec:
    """scale * x, but scale * alpha * (e^(slope x) - 1) where x is negative."""
    bent = expm1_negative(x * slope) * (alpha * scale)
    return x.k.blend(compare("olt", x, 0.0), bent, x * scale)


def _truth(x: Vec, predicate: str, y: Vec) -> Vec:
    """1 where a comparison holds, else 0."""
    k = x.k
    return k.blend(compare(predicate, x, y), k.const(1.0, x.lanes), k.const(0.0, x.lanes))


def _mish(x: Vec) -> Vec:
    # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2), which becomes 1 before e overflows.
    e = exp(x.min(20.0))
    y = e * (e + 2.0)
    return x * (y / (y + 2.0))


def _sign(x: Vec) -> Vec:
    one = copy_sign(x.k.const(1.0, x.lanes), x)
    return x.k.blend(compare("one", x, 0.0), one, x)


def _bipolar(x: Vec) -> Vec:
    one = x.k.const(1.0, x.lanes)
    return x.k.blend(compare("olt", x, 0.0), one * -1.0, one)


def _power(x: Vec, exponent: float) -> Vec:
    """x to a constant power: by products and roots if the exponent is a small multiple of 1/2."""
    k = x.k
    if not (exponent * 2).is_integer() or abs(exponent) > 4 or exponent == 0:
        return k.intrinsic("pow", x, k.const(exponent, x.lanes))
    # Half powers of -0 and -inf are those of 0 and inf, but sqrt keeps the sign.
    value = None
    factor, left = x if exponent.is_integer() else absolute(x), int(abs(exponent))
    while left:
        if left & 1:
            value = factor if value is None else value * factor
        factor, left = factor * factor, left >> 1
    if not exponent.is_integer():
        endless = compare("oeq", x, -math.inf)
        root = k.intrinsic("sqrt", k.blend(endless, absolute(x), x + 0.0))
        value = root if value is None else value * root
    assert value is not None
    return k.const(1.0, x.lanes) / value if exponent < 0 else value


UNARY: dict[str, Callable[[Vec, float, float], Vec]] = {
    "relu": lambda x, a, b: x.max(0.0),
    "relu6": lambda x, a, b: activate(x, "relu6"),
    "hardswish": lambda x, a, b: activate(x, "hardswish"),
    "sigmoid": lambda x, a, b: sigmoid(x),
    "silu": lambda x, a, b: activate(x, "silu"),
    "leakyrelu": lambda x, a, b: x.k.blend(compare("olt", x, 0.0), x * a, x),
    "hardsigmoid": lambda x, a, b: fma(
        x, x.k.const(a, x.lanes), x.k.const(b, x.lanes)
    ).max(0.0).min(1.0),
    "tanh": lambda x, a, b: tanh(x),
    "erf": lambda x, a, b: erf(x),
    "gelu": lambda x, a, b: gelu(x),
    "gelu_tanh": lambda x, a, b: gelu_tanh(x),
    "elu": lambda x, a, b: _elu(x, a),
    "selu": lambda x, a, b: _elu(x, a, b),
    "celu": lambda x, a, b: _elu(x, a, 1.0, 1 / a),
    "softplus": lambda x, a, b: softplus(x),
    "softsign": lambda x, a, b: x / (absolute(x) + 1.0),
    "mish": lambda x, a, b: _mish(x),
    "exp": lambda x, a, b: exp(x),
    "log": lambda x, a, b: log(x),
    "sqrt": lambda x, a, b: x.k.intrinsic("sqrt", x),
    "pow": lambda x, a, b: _power(x, a),
    "reciprocal": lambda x, a, b: x.k.const(1.0, x.lanes) / x,
    "neg": lambda x, a, b: x * -1.0,
    "abs": lambda x, a, b: absolute(x),
    "sign": lambda x, a, b: _sign(x),
    "bipolar": lambda x, a, b: _bipolar(x),
    "floor": lambda x, a, b: x.k.intrinsic("floor", x),
    "ceil": lambda x, a, b: x.k.intrinsic("ceil", x),
    "round": lambda x, a, b: x.k.intrinsic("roundeven", x),
    "trunc": lambda x, a, b: x.k.intrinsic("trunc", x),
    "not": lambda x, a, b: _truth(x, "oeq", x.k.const(0.0, x.lanes)),
    "isnan": lambda x, a, b: _truth(x, "uno", x),
    "sin": lambda x, a, b: x.k.intrinsic("sin", x),
    "cos": lambda x, a, b: x.k.intrinsic("cos", x),
}  # fmt: skip
"""Functions of one value by their names in graphs, with parameters a and b.

`pow` is x to the constant power a; `sin` and `cos` are the C library's. `bipolar` is -1 below zero,
else 1.
"""

BINARY: dict[str, Callable[[Vec, Vec], Vec]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "pow": lambda x, y: x.k.intrinsic("pow", x, y),
    "max": maximum,
    "min": minimum,
    "prelu": lambda x, slope: x.k.blend(compare("olt", x, 0.0), slope * x, x),
    "equal": lambda x, y: _truth(x, "oeq", y),
    "unequal": lambda x, y: _truth(x, "une", y),
    "greater": lambda x, y: _truth(x, "ogt", y),
    "greaterorequal": lambda x, y: _truth(x, "oge", y),
    "less": lambda x, y: _truth(x, "olt", y),
    "lessorequal": lambda x, y: _truth(x, "ole", y),
    "quotient": lambda x, y: x.k.intrinsic("floor", x / y),
    "mod": lambda x, y: x - y * x.k.intrinsic("floor", x / y),
}
"""Functions of two values; `pow` is the C library's. Truth is 1 and 0.

`quotient` and `mod` are those of whole numbers, rounded down."""

"""Lowers operators that calculate: elementwise functions, matrix products, reductions."""

from __future__ import annotations

import math

import numpy as np

from fastrun.graph.core.ops import (
    ArgReduce,
    Binary,
    Clip,
    CumSum,
    GatherElements,
    Gemm,
    GroupNorm,
    Identity,
    LayerNorm,
    MatMul,
    Reduce,
    Reshape,
    Softmax,
    TopK,
    Transpose,
    Unary,
)
from fastrun.graph.core.shapes import CHANNELS_FIRST, CHANNELS_LAST
from fastrun.graph.frontend.lowering.site import Site, Unsupported, lowers
from fastrun.kernels.ops.ranks import MOST

# Functions of one value by ONNX's names; ours are the same in lower case.
_FUNCTIONS = """
Relu HardSwish Sigmoid LeakyRelu HardSigmoid Tanh Erf Elu Celu Softplus Softsign Mish Exp Log Sqrt
Reciprocal Neg Abs Sign Floor Ceil Round Sin Cos
"""
# Defaults of alpha and beta; other operators have neither.
_DEFAULTS = {
    "LeakyRelu": (0.01, 0.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, 0.0),
    "Celu": (1.0, 0.0),
}
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum")


@lowers(*_FUNCTIONS.split())
def _unary(site: Site) -> None:
    alpha, beta = _DEFAULTS.get(site.operator, (0.0, 0.0))
    alpha, beta = site.attribute("alpha", alpha), site.attribute("beta", beta)
    site.finish(Unary(site.operator.lower(), float(alpha), float(beta)), site.inputs[0])


@lowers("Selu")
def _selu(site: Site) -> None:
    alpha = site.attribute("alpha", 1.6732632423543772)
    gamma = site.attribute("gamma", 1.0507009873554805)
    site.finish(Unary("selu", float(alpha), float(gamma)), site.inputs[0])


@lowers("Gelu")
def _gelu(site: Site) -> None:
    tanh = site.attribute("approximate", "none") == "tanh"
    site.finish(Unary("gelu_tanh" if tanh else "gelu"), site.inputs[0])


@lowers("Clip")
def _clip(site: Site) -> None:
    if site.tensor(0).dtype.kind != "f":
        _clip_integers(site)
        return
    low, high = site.scalar("min", 1, -math.inf), site.scalar("max", 2, math.inf)
    if (low, high) == (0, 6):
        site.finish(Unary("relu6"), site.inputs[0])
    elif (low, high) == (0, math.inf):
        site.finish(Unary("relu"), site.inputs[0])
    else:
        site.finish(Clip(low, high), site.inputs[0])


def _clip_integers(site: Site) -> None:
    """Clip integers exactly: a float cannot hold all limits."""
    x = site.inputs[0]
    for function, limit in (("max", 1), ("min", 2)):
        if site.has(limit):
            x = site.emit(Binary(function), x, site.inputs[limit], shape=site.shape(0))
    site.finish(Identity(), x)


@lowers(*_BINARY)
def _binary(site: Site) -> None:
    """Sum, Max and Min take any number of inputs; a chain of pairs does the same."""
    op = Binary("add" if site.operator == "Sum" else site.operator.lower())
    first, *rest = site.inputs
    if site.operator == "Pow" and site.is_constant(1) and site.tensor(0).dtype == np.float32:
        exponent = site.constant(1, "exponent")
        if exponent.size == 1 and site.result.shape == site.shape(0):
            site.finish(Unary("pow", float(exponent.reshape(()))), first)
            return
    if not rest:
        site.finish(Identity(), first)
        return
    for name in rest[:-1]:
        first = site.emit(op, first, name)
    site.finish(op, first, rest[-1])


@lowers("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor")
def _comparison(site: Site) -> None:
    _check_numbers(site)
    site.finish(Binary(site.operator.lower()), *site.inputs)


@lowers("Not", "IsNaN")
def _test(site: Site) -> None:
    _check_numbers(site)
    site.finish(Unary(site.operator.lower()), site.inputs[0])


@lowers("Mod")
def _mod(site: Site) -> None:
    if site.attribute("fmod", 0) or site.tensor(0).dtype.kind not in "iu":
        raise Unsupported("remainders of integers with the sign of the divisor")
    site.finish(Binary("mod"), *site.inputs)


def _check_numbers(site: Site) -> None:
    kinds = [site.tensor(i).dtype for i in range(len(site.inputs))]
    if any(kind.isbuiltin != 1 or kind.kind not in "biuf" for kind in kinds):
        raise Unsupported("elements that are numbers of 8 bits or more")


@lowers("ArgMax", "ArgMin")
def _arg_reduce(site: Site) -> None:
    _check_numbers(site)
    last = bool(site.attribute("select_last_index", 0))
    op = ArgReduce(site.operator.removeprefix("Arg").lower(), site.axis(0), last)
    site.finish(op, site.inputs[0], shape=site.result.shape)


@lowers("TopK")
def _top_k(site: Site) -> None:
    """Places, and the elements there. The order of elements is free if they need not be sorted."""
    _check_numbers(site)
    axis, shape = site.axis(-1), site.shape(0)
    (count,) = site.ints("k", 1, "number of elements") or (0,)
    if not 0 <= count <= shape[axis]:
        raise site.impossible(f"the first {count} of {shape[axis]}")
    largest, x = bool(site.attribute("largest", 1)), site.inputs[0]
    if not 0 < count <= MOST:
        raise Unsupported(f"1 to {MOST} elements")
    values, indices = (*site.outputs, "")[:2]
    op: ArgReduce | TopK = TopK(axis, count, largest)
    if count == 1 and largest:
        op = ArgReduce("max", axis)
    found = (*shape[:axis], count, *shape[axis + 1 :])
    places = site.emit(op, x, output=indices, shape=found, dtype=np.dtype(np.int64))
    if values:
        site.emit(GatherElements(axis), x, places, output=values)


@lowers("GatherElements")
def _gather_elements(site: Site) -> None:
    _check_numbers(site)
    axis, shape, indices = site.axis(0), site.shape(0), site.shape(1)
    fits = len(shape) == len(indices) and all(
        a <= b for i, (a, b) in enumerate(zip(indices, shape, strict=True)) if i != axis
    )
    if not fits:
        raise site.impossible(f"{indices} indices of {shape} along axis {axis}")
    if site.is_constant(1):
        known, size = site.constant(1, "indices"), shape[axis]
        if known.size and not -size <= known.min() <= known.max() < size:
            raise site.impossible(f"an index is outside an axis of {size}")
    site.finish(GatherElements(axis), *site.inputs)


@lowers("CumSum")
def _cum_sum(site: Site) -> None:
    axis = site.constant(1, "axis")
    if axis.size != 1:
        raise site.impossible(f"axis {axis.tolist()}")
    _check_numbers(site)
    exclusive, backwards = (bool(site.attribute(x, 0)) for x in ("exclusive", "reverse"))
    at = site.from_front(int(axis.reshape(())))
    site.finish(CumSum(at, exclusive, backwards), site.inputs[0])


@lowers("PRelu")
def _prelu(site: Site) -> None:
    shape, slope = site.shape(0), site.shape(1)
    name = site.inputs[1]
    per_channel = len(slope) == 1 < len(shape) and slope[0] == shape[1] != 1
    if per_channel and shape[-1] not in (1, slope[0]):
        # Before opset 7 a vector meant one slope per channel.
        name = site.emit(Reshape(), name, shape=(*slope, *(1,) * (len(shape) - 2)))
    if site.is_constant(1) and math.prod(slope) == 1 and len(slope) <= len(shape):
        # The convolution in front of it applies one slope in its epilogue.
        known = float(site.constant(1, "slope").reshape(()))
        site.finish(Unary("leakyrelu", known), site.inputs[0])
    else:
        site.finish(Binary("prelu"), site.inputs[0], name)


@lowers("Softmax", "LogSoftmax")
def _softmax(site: Site) -> None:
    log, shape = site.operator == "LogSoftmax", site.shape(0)
    axis = site.axis(-1 if site.opset >= 13 else 1)
    if site.opset >= 13 or axis == len(shape) - 1:
        site.finish(Softmax(axis, log), site.inputs[0])
        return
    # Before opset 13 all axes from `axis` on counted as one.
    rows = (math.prod(shape[:axis]), math.prod(shape[axis:]))
    x = site.emit(Reshape(), site.inputs[0], shape=rows)
    site.finish(Reshape(), site.emit(Softmax(1, log), x), shape=shape)


@lowers("Gemm")
def _gemm(site: Site) -> None:
    beta = float(site.attribute("beta", 1.0))
    op = Gemm(
        float(site.attribute("alpha", 1.0)),
        beta,
        bool(site.attribute("transA", 0)),
        bool(site.attribute("transB", 0)),
    )
    if beta == 1 and site.has(2) and not site.is_constant(2):
        product = site.emit(op, *site.inputs[:2])
        site.finish(Binary("add"), product, site.inputs[2])
    else:
        site.finish(op, *site.inputs)


@lowers("MatMul")
def _matmul(site: Site) -> None:
    """A vector is read as a matrix of one row or one column; the result lacks that axis."""
    (a, b), shapes = site.inputs, (site.shape(0), site.shape(1))
    if 1 not in map(len, shapes):
        site.finish(MatMul(), a, b)
        return
    if len(shapes[0]) == 1:
        a = site.emit(Reshape(), a, shape=(1, *shapes[0]))
    if len(shapes[1]) == 1:
        b = site.emit(Reshape(), b, shape=(*shapes[1], 1))
    product = site.emit(MatMul(), a, b)
    *batch, m, n = site.shape_of(product)
    rows, columns = [m] * (len(shapes[0]) > 1), [n] * (len(shapes[1]) > 1)
    site.finish(Reshape(), product, shape=(*batch, *rows, *columns))


@lowers("Einsum")
def _einsum(site: Site) -> None:
    """One matrix product of two tensors: axes are summed, reordered and joined before and after."""
    text = site.attribute("equation", "").replace(" ", "")
    given, _, result = text.partition("->")
    terms = given.split(",")
    plain = "->" in text and "." not in text and len(terms) == len(site.inputs) <= 2
    if not plain or any(len({*term}) < len(term) for term in (*terms, result)):
        raise Unsupported("a sum of products of one or two tensors, each axis named once")
    shapes = [site.shape(i) for i in range(len(terms))]
    if any(len(term) != len(shape) for term, shape in zip(terms, shapes, strict=True)):
        raise site.impossible(f"{text} of tensors of shapes {shapes}")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for x, n in zip(term, shape, strict=True):
            if sizes.setdefault(x, n) != n:
                raise Unsupported("tensors of equal sizes, not broadcast ones")
    operands = []
    for i, (term, name) in enumerate(zip(terms, site.inputs, strict=True)):
        others = {*result, *(terms[1 - i] if len(terms) == 2 else "")}
        summed = tuple(axis for axis, x in enumerate(term) if x not in others)
        term = "".join(x for x in term if x in others)
        if summed:
            shape = tuple(sizes[x] for x in term)
            name = site.emit(Reduce("sum", summed), name, shape=shape)
        operands.append((name, term))
    if len(operands) == 1:
        ((name, term),) = operands
        site.finish(Transpose(tuple(map(term.index, result))), name)
        return
    (a, left), (b, right) = operands
    both = [x for x in left if x in right]
    batch, inner = [x for x in both if x in result], [x for x in both if x not in result]
    rows = [x for x in result if x in left and x not in right]
    columns = [x for x in result if x in right and x not in left]

    def arranged(name: str, term: str, *groups: list[str]) -> str:
        order = tuple(term.index(x) for group in (batch, *groups) for x in group)
        name = site.emit(Transpose(order), name)
        ends = tuple(math.prod(sizes[x] for x in group) for group in groups)
        return site.emit(Reshape(), name, shape=(*(sizes[x] for x in batch), *ends))

    product = site.emit(
        MatMul(), arranged(a, left, rows, inner), arranged(b, right, inner, columns)
    )
    made = [*batch, *rows, *columns]
    apart = site.emit(Reshape(), product, shape=tuple(sizes[x] for x in made))
    site.finish(Transpose(tuple(map(made.index, result))), apart)


@lowers(
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"
)  # fmt: skip
def _reduce(site: Site) -> None:
    shape = site.shape(0)
    axes = site.ints("axes", 1, "axes")
    if not axes:
        axes = () if site.attribute("noop_with_empty_axes", 0) == 1 else tuple(range(len(shape)))
    axes = tuple(sorted({site.from_front(axis) for axis in axes}))
    keep = site.attribute("keepdims", 1) == 1
    sizes = [1 if i in axes else n for i, n in enumerate(shape) if keep or i not in axes]
    x, function = site.inputs[0], site.operator.removeprefix("Reduce").lower()
    if function == "l1":
        x, function = site.emit(Unary("abs"), x), "sum"
    if function == "sumsquare":
        x, function = site.emit(Binary("mul"), x, x), "sum"
    site.finish(Reduce(function, axes), x, shape=tuple(sizes))


@lowers("InstanceNormalization", "GroupNormalization")
def _group_normalization(site: Site) -> None:
    """More than two axes of pixels become one first. Scales of groups become those of channels."""
    shape = site.shape(0)
    given = [site.constant(i, "scale and shift") for i in (1, 2)]
    if len(shape) < 3 or any(values.dtype != np.float32 for values in given):
        raise Unsupported("pixels, and a scale and a shift in float32")
    groups = int(site.attribute("num_groups", shape[1]))
    if shape[1] % groups or any(shape[1] % max(1, values.size) for values in given):
        raise Unsupported("groups that divide the channels")
    names = [site.put(np.repeat(values, shape[1] // values.size)) for values in given]
    op, x = GroupNorm(groups, float(site.attribute("epsilon", 1e-5))), site.inputs[0]
    if len(shape) <= 4:
        site.finish(op, x, *names)
        return
    flat = site.emit(Reshape(), x, shape=(*shape[:2], math.prod(shape[2:])))
    site.finish(Reshape(), site.emit(op, flat, *names), shape=shape)


@lowers("LayerNormalization")
def _layer_normalization(site: Site) -> None:
    """The last axis becomes that of the channels; several last axes become one first."""
    shape, axis = site.shape(0), site.axis(-1)
    outer, size = shape[:axis], math.prod(shape[axis:])
    given = [site.constant(i, "scale and shift") for i in (1, 2) if site.has(i)]
    if any(values.size != size or values.dtype != np.float32 for values in given):
        raise Unsupported("a scale and a shift for every value")
    op, names = LayerNorm(float(site.attribute("epsilon", 1e-5))), site.inputs[1:]
    if axis == len(shape) - 1 and len(shape) in CHANNELS_LAST:
        x = site.emit(Transpose(CHANNELS_FIRST[len(shape)]), site.inputs[0])
        site.finish(Transpose(CHANNELS_LAST[len(shape)]), site.emit(op, x, *names))
        return
    x = site.emit(Reshape(), site.inputs[0], shape=(math.prod(outer), size))
    site.finish(Reshape(), site.emit(op, x, *names), shape=shape)

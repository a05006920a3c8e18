"""Evaluates a graph in float64, in plain numpy: the truth to which faster runs are compared.

Integers stay integers. Tensors of a quantised network are rounded to their grids.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastrun.graph.core.errors import GraphError, UnsupportedError
from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Array, Graph, Node, Tensor
from fastrun.graph.core.ops import (
    LRN,
    Activating,
    Affine,
    ArgReduce,
    Attention,
    BatchNorm,
    Binary,
    ByteFunction,
    Cast,
    ChannelShuffle,
    Clip,
    Concat,
    Conv,
    ConvTranspose,
    CumSum,
    DepthToSpace,
    DepthwiseVolume,
    Expand,
    Foreign,
    Gather,
    GatherElements,
    GatherND,
    Gemm,
    GridSample,
    GroupNorm,
    Identity,
    LayerNorm,
    MatMul,
    Numpy,
    Onnx,
    Pad,
    Pool,
    Recurrent,
    Reduce,
    Reshape,
    Resize,
    Rotary,
    Slice,
    Softmax,
    TopK,
    Transpose,
    Unary,
    Where,
)
from fastrun.graph.core.shapes import interleaved
from fastrun.graph.reference.by_onnx import compute
from fastrun.graph.reference.numerics import (
    BINARY,
    REDUCTIONS,
    UNARY,
    along_channels,
    arg_reduce,
    attention,
    conv,
    conv_transpose,
    cum_sum,
    depthwise_volume,
    gather_nd,
    gemm,
    lrn,
    pad,
    pool,
    resize,
    rotary,
    softmax,
    top_k,
)
from fastrun.graph.reference.points import grid_sample
from fastrun.graph.reference.recurrence import recurrence
from fastrun.kernels.core.dtype import U8
from fastrun.kernels.core.forks import matmul
from fastrun.kernels.core.reference import activate


def run(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a graph by name; floating-point outputs are float64.

    Raises:
        GraphError: an input is missing or has another shape.
        UnsupportedError: the graph contains a foreign operator.
    """
    values = _values(graph, inputs, {*graph.outputs})
    values |= {name: graph.constants[name] for name in graph.outputs if name in graph.constants}
    for name in graph.outside.keys() & values.keys():
        values[name] = values[name].astype(graph.outside[name])
    return {name: _widen(values[name]) for name in graph.outputs}


def every_value(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The values of all tensors of a graph by name, in float64; raises as `run` does."""
    return _values(graph, inputs, graph.tensors.keys())


def rounded_results(graph: Graph, node: Node, operands: Sequence[Any]) -> dict[str, Array]:
    """What a node of a graph computes of these operands in float64, by name; raises as `run`."""
    found = results(node, operands, graph.tensors)
    return {name: _rounded(graph, name, _widen(value)) for name, value in found.items()}


def _values(graph: Graph, inputs: Mapping[str, Array], kept: Container[str]) -> dict[str, Array]:
    """The values of the tensors to be `kept`; the others go after their last use."""
    values: dict[str, Array] = {}
    last_use = {x: i for i, node in enumerate(graph.nodes) for x in node.inputs}
    for name in graph.inputs:
        if name not in inputs or inputs[name].shape != graph.shape(name):
            raise GraphError(f"input {name!r} must be given, of shape {graph.shape(name)}")
        values[name] = _widen(inputs[name])
        if name in graph.outside:
            values[name] = values[name].astype(np.float64)
        values[name] = _rounded(graph, name, values[name])
    for index, node in enumerate(graph.nodes):
        operands = [
            _widen(graph.constants[x]) if x in graph.constants else values.get(x)
            for x in node.inputs
        ]
        values |= rounded_results(graph, node, operands)
        for name in {*node.inputs}:
            if last_use[name] == index and name not in kept:
                values.pop(name, None)
    return values


def _rounded(graph: Graph, name: str, value: Array) -> Array:
    """The value on the grid that its tensor must be rounded to, if there is one."""
    grid = graph.grids.get(name)
    return grid.rounded(value) if grid and grid.exact else value


def results(node: Node, operands: Sequence[Any], tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """The outputs of a node by name; absent operands are None, `tensors` describes the outputs.

    ONNX's operators compute in the types of their operands, others in float64.

    Raises:
        GraphError: the operator does not fit its operands.
        UnsupportedError: the operator is foreign.
    """
    op = node.op.op if isinstance(node.op, Numpy) else node.op
    if not isinstance(op, Onnx):
        return {node.output: evaluate(node, operands, tensors[node.output])}
    try:
        found = dict(zip(node.outputs, compute(op, operands), strict=True))
    except GraphError as error:
        raise GraphError(f"node {node.label}: {error}") from error
    for name, value in found.items():
        known = tensors.get(name)
        if known and isinstance(value, np.ndarray) and value.shape != known.shape:
            raise GraphError(f"node {node.label} gives {value.shape} instead of {known.shape}")
    return found


def evaluate(node: Node, inputs: Sequence[Array | None], result: Tensor) -> Array:
    """The result of one node of one output, in float64; absent inputs are None.

    Raises:
        UnsupportedError: the operator is foreign.
    """
    if isinstance(node.op, Numpy):
        node = replace(node, op=node.op.op)
    x, *rest = [None if a is None else _widen(a) for a in inputs]
    assert x is not None
    value: Array = _value(node, x, rest, result)
    if isinstance(node.op, Activating) and not isinstance(node.op, Conv):
        value = activate(value, node.op.activation)
    if result.dtype.kind == "f" and value.dtype.kind != "f":  # numbers as kernels have them
        value = value.astype(np.float64)
    if value.shape != result.shape:
        raise GraphError(f"node {node.label} gives {value.shape} instead of {result.shape}")
    return value


def _value(node: Node, x: Array, rest: Sequence[Any], result: Tensor) -> Any:
    op = node.op
    match op:
        case Conv():
            return conv(op, x, *rest)
        case DepthwiseVolume():
            return depthwise_volume(op, result.shape, x, *rest)
        case ConvTranspose():
            return conv_transpose(op, result.shape, x, *rest)
        case Pool():
            return pool(op, result.shape, x)
        case BatchNorm():
            scale, shift, mean, variance = (along_channels(p, x) for p in rest)
            return (x - mean) / np.sqrt(variance + op.epsilon) * scale + shift
        case Affine():
            scale, shift = (along_channels(p, x) for p in rest)
            return x * scale + shift
        case LRN():
            return lrn(op, x)
        case Attention():
            return attention(op, x, *(*rest, None, None)[:2])
        case Rotary():
            return rotary(op, x, *rest)
        case Recurrent():
            return recurrence(op, x, *(*rest, None, None)[:3])
        case LayerNorm(epsilon=epsilon):
            scale, shift = (along_channels(p.reshape(-1), x) for p in (*rest, np.zeros(1))[:2])
            deviation = np.sqrt(x.var(1, keepdims=True) + epsilon)
            return (x - x.mean(1, keepdims=True)) / deviation * scale + shift
        case GroupNorm(groups=groups, epsilon=epsilon):
            scale, shift = (along_channels(p.reshape(-1), x) for p in rest)
            rows = x.reshape(len(x), groups, -1)
            deviation = np.sqrt(rows.var(2, keepdims=True) + epsilon)
            normal = (rows - rows.mean(2, keepdims=True)) / deviation
            return normal.reshape(x.shape) * scale + shift
        case Unary():
            return UNARY[op.function](x, op.alpha, op.beta)
        case ByteFunction():
            return _linked(op, x)
        case Clip():
            return np.minimum(np.maximum(x, op.low), op.high)
        case Binary():
            return BINARY[op.function](x, rest[0])
        case Where():
            return np.where(x != 0, *rest)
        case ArgReduce():
            return arg_reduce(op, x).reshape(result.shape)
        case TopK():
            return top_k(x, op.axis, op.count, op.largest)
        case CumSum():
            return cum_sum(op, x)
        case Softmax():
            return softmax(op, x)
        case Gemm():
            return gemm(op, x, *rest)
        case MatMul():
            return matmul(x, rest[0]) + (rest[1] if len(rest) > 1 else 0)
        case Reduce():
            return REDUCTIONS[op.function](x, op.axes).reshape(result.shape)
        case Concat():
            return np.concatenate([x, *rest], op.axis)
        case Slice():
            steps = zip(op.starts, op.sizes, op.steps, strict=True)
            return x[np.ix_(*(start + step * np.arange(size) for start, size, step in steps))]
        case Pad():
            return pad(op, x)
        case Transpose():
            return x.transpose(op.order)
        case ChannelShuffle():
            grouped = x.reshape(x.shape[0], op.groups, -1, *x.shape[2:])
            return grouped.swapaxes(1, 2).reshape(x.shape)
        case DepthToSpace(size, crop):
            blocks = x.reshape(x.shape[0], *size, -1, *x.shape[2:])
            space = tuple(n + 2 * cut for n, cut in zip(result.shape[2:], crop, strict=True))
            whole = blocks.transpose(interleaved(len(size))).reshape(*result.shape[:2], *space)
            kept = (slice(cut, cut + n) for n, cut in zip(result.shape[2:], crop, strict=True))
            return whole[:, :, *kept]
        case Reshape():
            return x.reshape(result.shape)
        case Expand():
            return np.broadcast_to(x, result.shape)
        case Gather():
            return _taken(node, lambda at: x.take(at, op.axis), rest[0])
        case GatherElements():
            return _taken(node, lambda at: _elements(x, at, op.axis), rest[0])
        case GatherND():
            return _taken(node, lambda at: gather_nd(x, at, op.batch), rest[0])
        case Resize():
            return resize(op, result.shape, x)
        case GridSample():
            return grid_sample(op, x, rest[0])
        case Cast():
            return _widen(x.astype(result.dtype))
        case Identity():
            return x
        case Foreign(need=need):
            raise UnsupportedError(f"node {node.label} needs {need}")
    raise UnsupportedError(f"node {node.label} has several results")


def _linked(function: ByteFunction, x: Array) -> Array:
    values = [x]
    for link in function.links:
        given = [values[a] if isinstance(a, int) else np.array(a) for a in link.operands]
        found = evaluate(Node("link", link.op, (), ()), given, Tensor(x.shape, x.dtype))
        if link.rounding:
            found = Grid(*link.rounding, U8).rounded(found)
        values.append(found)
    return values[-1]


def _taken(node: Node, take: Callable[[Array], Array], indices: Array) -> Array:
    try:
        return take(indices.astype(np.int64))
    except IndexError as error:
        raise GraphError(f"node {node.label} cannot be computed: {error}") from error


def _elements(x: Array, indices: Array, axis: int) -> Array:
    places: list[Array] = [*np.indices(indices.shape, sparse=True)]
    places[axis] = indices
    found: Array = x[tuple(places)]
    return found


def _widen(values: Any) -> Any:
    """Floating-point values in float64; others, sequences of arrays too, as they are."""
    is_float = isinstance(values, np.ndarray) and values.dtype.name.startswith(("float", "bfloat"))
    return values.astype(np.float64) if is_float else values

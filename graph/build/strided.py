"""Builds the kernels of operators that work on axes, such as softmax, transpose and matrix product.

They see a tensor in NCHW or NHWC with the axes that it has in the graph, as strides in memory.
Operators on rows and columns alone also run on blocks of channels: the places in a block are then
one more axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastrun.graph.build.built import Built, constant
from fastrun.graph.build.moves import stored_as
from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Array, Graph, Node, Shape
from fastrun.graph.core.ops import (
    LRN,
    ArgReduce,
    ChannelShuffle,
    ConvTranspose,
    CumSum,
    DepthToSpace,
    Expand,
    Gather,
    GatherElements,
    GatherND,
    Gemm,
    GridSample,
    MatMul,
    Op,
    Pad,
    Recurrent,
    Reduce,
    Resize,
    Slice,
    Softmax,
    TopK,
    Transpose,
)
from fastrun.graph.plan.kinds import is_lookup
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.program import Program, channel_table
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check
from fastrun.kernels.ops import (
    conv_transpose,
    grid_sample,
    lookup,
    lrn,
    matmul,
    movement,
    ranks,
    recurrent,
    reduce,
    sampling,
    scans,
)


def view(where: Placement, shape: Shape) -> Strided:
    """A tensor in NCHW or NHWC with the axes of `shape`, its shape in the graph.

    Raises:
        ScheduleError: the layout has blocks of channels, which are no axis of the graph.
    """
    check(not where.layout.blocked, f"{where.layout} does not keep the axes of {shape} apart")
    channel = where.block_stride if where.layout.name == "NCHW" else 1
    strides = (where.n_stride, channel, where.y_stride, where.x_stride)
    sizes = (where.n, where.c, where.h, where.w)
    if len(shape) > 4:
        return Strided(sizes, strides, where.origin, where.dtype).split(2, shape[2:-1])
    axes = {0: (), 1: (1,), 2: (0, 1), 3: (0, 1, 3), 4: (0, 1, 2, 3)}[len(shape)]
    return Strided(shape, tuple(strides[i] for i in axes), where.origin, where.dtype)


def build(graph: Graph, task: Task, cpu: Cpu, reads: list[Placement], dst: Placement) -> Built:
    """The kernel of a task that reads tensors placed as `reads` and writes one placed as `dst`.

    Raises:
        ScheduleError: the kernel refuses these operands.
        UnsupportedError: there is no kernel for this use of the operator.
    """
    op = task.node.op
    if dst.layout.blocked:
        check(
            reads[0].layout.order == dst.layout.order, f"{reads[0].layout} cannot be read by blocks"
        )
        if isinstance(op, Pad):
            op = _stored(graph, task, op, dst.dtype)
        return Built(_in_blocks(op, cpu, Strided.of(reads[0]), Strided.of(dst)), "strided")
    out = view(dst, graph.shape(task.output))
    views = [view(x, graph.shape(name)) for x, name in zip(reads, task.reads, strict=True)]
    if isinstance(op, ConvTranspose):
        return _conv_transpose(graph, task, cpu, views[0], out)
    if isinstance(op, GridSample):
        (x, grid), places, fixed = two_operands(graph, task, views)
        program = grid_sample.grid_sample(op, cpu, x, grid, out, (places[0], places[1]))
        return Built(program, "strided", fixed)
    if is_lookup(graph, task):
        (x, indices), places, fixed = two_operands(graph, task, views)
        program = _lookup(op, cpu, x, indices, out, (places[0], places[1]))
        return Built(program, "strided", fixed)
    if isinstance(op, MatMul | Gemm):
        return _product(graph, task, cpu, views, out)
    return Built(_of_one_tensor(graph, task, cpu, views[0], out), "strided")


def recurrent_layer(
    graph: Graph, task: Task, op: Recurrent, cpu: Cpu, reads: list[Placement], dst: Placement,
    weights: DType,
) -> Built:  # fmt: skip
    """The kernel of a recurrent layer with recurrence weights of this type.

    Raises:
        ScheduleError: the kernel refuses these operands.
    """
    x, *others = (view(r, graph.shape(name)) for r, name in zip(reads, task.reads, strict=True))
    out, initial = view(dst, graph.shape(task.output)), next(iter(others), None)
    program = recurrent.recurrent(op, cpu, x, out, initial, weights)
    bias = constant(graph, task, 2).reshape(-1) if task.node.input(2) else None
    return Built(program, "strided", constant(graph, task, 1), bias)


def _lookup(
    op: Op, cpu: Cpu, x: Strided, indices: Strided, out: Strided, arguments: tuple[str, str]
) -> Program:
    match op:
        case Gather(axis):
            return lookup.lookup(axis, cpu, x, indices, out, arguments)
        case GatherElements(axis):
            return lookup.elements(axis, cpu, x, indices, out, arguments)
    assert isinstance(op, GatherND)
    return lookup.points(op.batch, cpu, x, indices, out, arguments)


def _of_one_tensor(graph: Graph, task: Task, cpu: Cpu, x: Strided, out: Strided) -> Program:
    node = task.node
    match node.op:
        case Softmax() as op:
            return reduce.softmax(op, cpu, x, out)
        case Reduce() as op:
            return reduce.reduce(op, cpu, x, out)
        case ArgReduce() as op:
            return scans.arg_reduce(op, cpu, x, out)
        case TopK() as op:
            return ranks.top_k(op, cpu, x, out)
        case CumSum() as op:
            return scans.cum_sum(op, cpu, x, out)
        case LRN() as op:
            return lrn.lrn(op, cpu, x, out)
        case Pad() as op:
            return movement.pad(_stored(graph, task, op, out.dtype), cpu, x, out)
        case Resize() as op:
            return sampling.resize(op, cpu, x, out)
        case Transpose(order=order):
            return movement.copy(cpu, x.transpose(order), out)
        case Slice(starts=starts, sizes=sizes, steps=steps):
            return movement.copy(cpu, x.slice(starts, sizes, steps), out)
        case Expand():
            return movement.copy(cpu, x, out)
        case ChannelShuffle(groups=groups):
            each = out.shape[1] // groups
            order = (0, 2, 1, *range(3, len(out.shape) + 1))
            turned = x.split(1, (groups, each)).transpose(order)
            return movement.copy(cpu, turned, out.split(1, (each, groups)))
        case DepthToSpace() as op:
            return movement.copy(cpu, *_interleaved(op, x, out))
        case Gather(axis=axis):
            indices = graph.constants[node.inputs[1]]
            if indices.ndim != 1:
                raise UnsupportedError(f"node {node.label} needs a list of indices")
            listed = sampling.Gather(axis, tuple(indices.tolist()))
            return sampling.gather(listed, cpu, x, out)
    raise UnsupportedError(f"node {node.label} cannot be run: there is no kernel for it")


def _interleaved(op: DepthToSpace, x: Strided, out: Strided) -> tuple[Strided, Strided]:
    """Views of input and output, in the same order, with two axes for the places of a block.

    Where half a block is cut off, its second half is read first and the first half of the next
    block is read behind it.
    """
    rank = len(op.size)
    halves = [(2, n // 2) if cut else (1, n) for n, cut in zip(op.size, op.crop, strict=True)]
    for axis, places in reversed([*enumerate(halves, 2)]):
        out = out.split(axis, (out.shape[axis] // math.prod(places), *places))
    x = x.split(1, (*(n for places in halves for n in places), out.shape[1]))
    shape, strides, offset = [*x.shape], [*x.strides], x.offset
    order = [0, 2 * rank + 1]
    for axis, cut in enumerate(op.crop):
        half, pixel = 2 * axis + 1, 2 * rank + 2 + axis
        order += [pixel, half, half + 1]
        if cut:
            offset += strides[half]
            strides[half] = strides[pixel] - strides[half]
            shape[pixel] -= 1
    x = replace(x, shape=tuple(shape), strides=tuple(strides), offset=offset)
    return x.transpose(tuple(order)), out


def _stored(graph: Graph, task: Task, op: Pad, dtype: DType) -> Pad:
    """The operator with the number as which its value is stored."""
    if dtype is F32:
        return op
    return replace(op, value=float(stored_as(graph, task.output, dtype).stored(np.array(op.value))))


def _in_blocks(op: Op, cpu: Cpu, x: Strided, out: Strided) -> Program:
    match op:
        case Resize(scales=scales):
            return sampling.resize(replace(op, scales=(*scales, 1.0)), cpu, x, out)
        case Pad(padding=padding):
            padding = (*padding[:4], 0, *padding[4:], 0)
            return movement.pad(replace(op, padding=padding), cpu, x, out)
    raise UnsupportedError(f"{type(op).__name__} cannot be run on blocks of channels")


def two_operands(
    graph: Graph,
    task: Task,
    views: list[Strided],
    packed: Callable[[Array], Array] = lambda values: values,
) -> tuple[list[Strided], list[str], Array | None]:
    """The first two inputs of a node, the kernel's argument for each, and the constant one.

    `packed` turns a constant into the array that the kernel reads.
    """
    operands, arguments, weights = [], list[str](), None
    for name in task.node.inputs[:2]:
        if name in graph.constants:
            weights = packed(graph.constants[name])
            operands.append(Strided.row_major(weights.shape))
            arguments.append("weights")
        else:
            arguments.append("add" if "src" in arguments else "src")
            operands.append(views[task.reads.index(name)])
    return operands, arguments, weights


def operands(
    graph: Graph, task: Task, views: list[Strided], packed: Callable[[Node, Array], Array]
) -> tuple[dict[str, tuple[str, Strided]], Array | None]:
    """All that the nodes of a task read, each with the kernel's argument that holds it; constants.

    Constants lie one after another in the weights, behind the table that says where a third
    computed tensor lies. `packed` turns one that a node reads into the array that the kernel reads.
    """
    arguments = zip(("src", "add", "third"), views, strict=False)
    found = dict(zip(task.reads, arguments, strict=True))
    constants, at = list[Array](), channel_table(1) if len(views) > 2 else 0
    for node in task.nodes:
        for name in node.inputs:
            if name in found or name not in graph.constants:
                continue
            values = packed(node, graph.constants[name].astype(np.float32))
            found[name] = "weights", replace(Strided.row_major(values.shape), offset=at)
            constants.append(values.reshape(-1))
            at += values.size
    return found, np.concatenate(constants) if constants else None


def _conv_transpose(graph: Graph, task: Task, cpu: Cpu, x: Strided, out: Strided) -> Built:
    op = task.node.op
    assert isinstance(op, ConvTranspose)
    weights = constant(graph, task, 1)
    bias = constant(graph, task, 2) if task.node.input(2) else None
    spec = conv_transpose.ConvTranspose(
        weights.shape[2:], op.stride, op.padding, op.dilation, op.groups, bias is not None,
        op.activation,
    )  # fmt: skip
    return Built(conv_transpose.conv_transpose(spec, cpu, x, out), "strided", weights, bias)


def _product(graph: Graph, task: Task, cpu: Cpu, views: list[Strided], out: Strided) -> Built:
    """A matrix product. One operand may be constant; a summand must be."""
    node, op = task.node, task.node.op
    assert isinstance(op, MatMul | Gemm)
    (a, b), arguments, weights = two_operands(graph, task, views)
    spec, summand, bias = matmul.MatMul(activation=op.activation), None, None
    if isinstance(op, Gemm):
        spec = matmul.MatMul(op.alpha, op.beta, op.activation)
        a = a.transpose((1, 0)) if op.transpose_a else a
        b = b.transpose((1, 0)) if op.transpose_b else b
    if node.input(2):
        bias = constant(graph, task, 2)
        summand = Strided.row_major(bias.shape)
    places = (arguments[0], arguments[1], "bias")
    program = matmul.matmul(spec, cpu, a, b, out, summand, places)
    return Built(program, "strided", weights, None if bias is None else bias.reshape(-1))

"""Kernels for operators that care about axes rather than channels, on tensors in NCHW or NHWC.

Each tensor is seen with the axes it has in the graph, wherever these lie in memory. What happens
on rows and columns only may see blocks of channels too, of which the places are one more axis.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Array, Graph, Shape
from fastrun.graph.core.ops import (
    LRN,
    ChannelShuffle,
    ConvTranspose,
    Expand,
    Gather,
    Gemm,
    MatMul,
    Op,
    Pad,
    Reduce,
    Resize,
    Slice,
    Softmax,
    Transpose,
)
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.program import Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check
from fastrun.kernels.ops import conv_transpose, lrn, matmul, movement, reduce, sampling

# A program and the constants it reads, weights and bias.
Built = tuple[Program, Array | None, Array | None]


def view(where: Placement, shape: Shape) -> Strided:
    """A tensor in NCHW or NHWC with the axes that `shape` has in the graph.

    Raises:
        ScheduleError: it lies in blocks of channels, which are no axis of the graph's.
    """
    check(not where.layout.blocked, f"axes of {shape} cannot be told apart in {where.layout}")
    channel = where.block_stride if where.layout.name == "NCHW" else 1
    strides = (where.n_stride, channel, where.y_stride, where.x_stride)
    sizes = (where.n, where.c, where.h, where.w)
    if len(shape) > 4:
        return Strided(sizes, strides, where.origin).split(2, shape[2:-1])
    axes = {0: (), 1: (1,), 2: (0, 1), 3: (0, 1, 3), 4: (0, 1, 2, 3)}[len(shape)]
    return Strided(shape, tuple(strides[i] for i in axes), where.origin)


def build(graph: Graph, task: Task, cpu: Cpu, reads: list[Placement], dst: Placement) -> Built:
    """The program, its weights and its bias.

    Raises:
        ScheduleError: the kernel cannot do this.
        UnsupportedError: there is no kernel for this use of the operator.
    """
    node = task.node
    if dst.layout.blocked:
        check(reads[0].layout == dst.layout, f"{reads[0].layout} cannot be read by blocks")
        return _in_blocks(node.op, cpu, Strided.of(reads[0]), Strided.of(dst)), None, None
    out = view(dst, graph.shape(task.output))
    views = [view(x, graph.shape(name)) for x, name in zip(reads, task.reads, strict=True)]
    x = views[0]
    match node.op:
        case Softmax(axis=axis, log=log):
            return reduce.softmax(reduce.Softmax(axis, log), cpu, x, out), None, None
        case Reduce(function=function, axes=axes):
            return reduce.reduce(reduce.Reduce(function, axes), cpu, x, out), None, None
        case LRN() as op:
            spec = lrn.Lrn(op.size, op.alpha, op.beta, op.bias)
            return lrn.lrn(spec, cpu, x, out), None, None
        case Pad() as op:
            return _pad(op, op.padding, cpu, x, out), None, None
        case Transpose(order=order):
            return movement.copy(cpu, x.transpose(order), out), None, None
        case Slice(starts=starts, sizes=sizes, steps=steps):
            return movement.copy(cpu, x.slice(starts, sizes, steps), out), None, None
        case Expand():
            return movement.copy(cpu, x, out), None, None
        case ChannelShuffle(groups=groups):
            each = out.shape[1] // groups
            order = (0, 2, 1, *range(3, len(out.shape) + 1))
            turned = x.split(1, (groups, each)).transpose(order)
            return movement.copy(cpu, turned, out.split(1, (each, groups))), None, None
        case Gather(axis=axis):
            indices = graph.constants[node.inputs[1]]
            if indices.ndim != 1:
                raise UnsupportedError(f"node {node.label} needs a list of indices")
            listed = sampling.Gather(axis, tuple(indices.tolist()))
            return sampling.gather(listed, cpu, x, out), None, None
        case Resize() as op:
            return _resize(op, op.scales, cpu, x, out), None, None
        case ConvTranspose():
            return _conv_transpose(graph, task, cpu, x, out)
        case MatMul() | Gemm():
            return _product(graph, task, cpu, views, out)
    raise UnsupportedError(f"node {node.label} cannot be run: there is no kernel for it")


def _in_blocks(op: Op, cpu: Cpu, x: Strided, out: Strided) -> Program:
    match op:
        case Resize():
            return _resize(op, (*op.scales, 1.0), cpu, x, out)
        case Pad(padding=padding):
            return _pad(op, (*padding[:4], 0, *padding[4:], 0), cpu, x, out)
    raise UnsupportedError(f"{type(op).__name__} cannot be run on blocks of channels")


def _resize(op: Resize, scales: Sequence[float], cpu: Cpu, x: Strided, out: Strided) -> Program:
    spec = sampling.Resize(op.mode, tuple(scales), op.coordinates, op.rounding)
    return sampling.resize(spec, cpu, x, out)


def _pad(op: Pad, padding: Sequence[int], cpu: Cpu, x: Strided, out: Strided) -> Program:
    return movement.pad(movement.Pad(tuple(padding), op.mode, op.value), cpu, x, out)


def constant(graph: Graph, task: Task, index: int) -> Array:
    """The value of an input that must not be computed.

    Raises:
        UnsupportedError: it is.
    """
    name = task.node.input(index)
    if name not in graph.constants:
        raise UnsupportedError(
            f"node {task.node.label}: {name!r} is computed or an input; "
            "export the model with constant weights"
        )
    return graph.constants[name]


def _conv_transpose(graph: Graph, task: Task, cpu: Cpu, x: Strided, out: Strided) -> Built:
    op = task.node.op
    assert isinstance(op, ConvTranspose)
    weights = constant(graph, task, 1)
    bias = constant(graph, task, 2) if task.node.input(2) else None
    spec = conv_transpose.ConvTranspose(
        weights.shape[2:], op.stride, op.padding, op.dilation, op.groups, bias is not None,
        op.activation,
    )  # fmt: skip
    return conv_transpose.conv_transpose(spec, cpu, x, out), weights, bias


def _product(graph: Graph, task: Task, cpu: Cpu, views: list[Strided], out: Strided) -> Built:
    """A matrix product one operand of which may be constant, and an optional constant summand."""
    node, op = task.node, task.node.op
    assert isinstance(op, MatMul | Gemm)
    operands, arguments = [], []
    weights = None
    for name in node.inputs[:2]:
        if name in graph.constants:
            weights = graph.constants[name]
            operands.append(Strided.row_major(weights.shape))
            arguments.append("weights")
        else:
            arguments.append("add" if "src" in arguments else "src")
            operands.append(views[task.reads.index(name)])
    a, b = operands
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
    return program, weights, None if bias is None else bias.reshape(-1)

"""The kernel that runs a task where its tensors lie, and the constants it reads."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from graph.errors import UnsupportedError
from graph.model import Array, Graph
from graph.ops import (
    Affine,
    Binary,
    ChannelShuffle,
    Clip,
    Conv,
    Gemm,
    Ints,
    Pool,
    Reduce,
    Softmax,
    Unary,
)
from graph.problems import conv_problem
from graph.tasks import Task, shape4
from kernels.core.cpu import Cpu
from kernels.core.layout import NCHW, Io, Placement
from kernels.core.problem import ConvProblem
from kernels.core.strided import Strided
from kernels.core.template import Program, ScheduleError, applicable, parse_schedule
from kernels.ops import dense, elementwise, pool, shuffle, softmax
from kernels.ops.dense import Dense


@dataclass(frozen=True)
class Kernel:
    """A program, what it is called, and its weights and bias as the graph has them.

    `weights` are still to be packed by the program; None stands for none.
    """

    program: Program
    algorithm: str
    weights: Array | None = None
    bias: Array | None = None


def build(
    graph: Graph,
    task: Task,
    schedules: Iterable[str],
    cpu: Cpu,
    reads: list[Placement],
    dst: Placement,
) -> Kernel:
    """The kernel of a task that computes; `schedules` are for a convolution, the best first.

    Raises:
        UnsupportedError: there is none for this use of the operator.
    """
    op, node = task.node.op, task.node
    src = reads[0]
    try:
        match op:
            case Conv():
                problem = conv_problem(graph, node)
                io = Io(src, dst, reads[1] if problem.add else dst)
                program, text = _convolution(problem, schedules, cpu, io)
                weights = graph.constants[node.inputs[1]].reshape(problem.weight_shape)
                bias = _constant(graph, task, 2) if problem.bias else np.zeros(problem.oc)
                return Kernel(program, text, weights, bias.reshape(-1))
            case Gemm():
                weights, bias = _dense(graph, task, op)
                return Kernel(dense.build(Dense(bias=True), cpu, src, dst), "dense", weights, bias)
            case Pool():
                return Kernel(pool.build(pool_spec(op), cpu, src, dst), "pool")
            case Reduce():
                whole = pool.Pool({"mean": "average", "max": "max"}[op.function], (src.h, src.w))
                return Kernel(pool.build(whole, cpu, src, dst), "pool")
            case ChannelShuffle():
                second = reads[1] if len(reads) > 1 else None
                program = shuffle.build(shuffle.Shuffle(op.groups), cpu, src, dst, second)
                return Kernel(program, "shuffle")
            case Unary() | Clip() | Affine() | Binary():
                return _elementwise(graph, task, cpu, reads, dst)
            case Softmax():
                return Kernel(softmax.build(softmax.Softmax(), cpu, src, dst), "softmax")
    except ScheduleError as error:
        raise UnsupportedError(f"node {node.label} cannot be run: {error}") from error
    raise UnsupportedError(f"node {node.label} cannot be run: there is no kernel for it")


def _convolution(p: ConvProblem, schedules: Iterable[str], cpu: Cpu, io: Io) -> tuple[Program, str]:
    """The first schedule that can be built for this placement, else any algorithm's heuristic."""
    refusal = ScheduleError(f"no algorithm reads {io.src.layout} and writes {io.dst.layout}")
    unmeasured = (
        template.text(template.heuristic(p, cpu))
        for template in sorted(applicable(p, cpu), key=lambda t: -t.rank(p, cpu))
        if not template.baseline
    )
    for text in chain(schedules, unmeasured):
        try:
            return _program(p, text, cpu, io), text
        except ScheduleError as error:
            refusal = error
    raise refusal


@functools.lru_cache(512)
def _program(p: ConvProblem, text: str, cpu: Cpu, io: Io) -> Program:
    """Networks repeat themselves, and writing a kernel takes longer than running it."""
    template, schedule = parse_schedule(text)
    return template.build(p, schedule, cpu, io)


def _elementwise(
    graph: Graph, task: Task, cpu: Cpu, reads: list[Placement], dst: Placement
) -> Kernel:
    """A function of the values at each place; constants are brought into the layout."""
    op, node = task.node.op, task.node
    views, out = [Strided.of(x) for x in reads], Strided.of(dst)
    match op:
        case Unary():
            spec = elementwise.Unary(op.function, op.alpha, op.beta)
            return Kernel(elementwise.unary(spec, cpu, views[0], out), "elementwise")
        case Clip():
            limits = elementwise.Clip(op.low, op.high)
            return Kernel(elementwise.clip(limits, cpu, views[0], out), "elementwise")
        case Affine():
            channels = elementwise.Affine(axis=1 if dst.layout == NCHW else 4)
            program = elementwise.affine(channels, cpu, views[0], out)
            both = np.stack([_constant(graph, task, i) for i in (1, 2)])
            return Kernel(program, "elementwise", both)
    assert isinstance(op, Binary)
    operands, arguments = [], []
    weights = None
    for name in node.inputs:
        if name in graph.constants:
            value = graph.constants[name]
            rank = len(graph.shape(task.output))
            value = value.reshape((1,) * (rank - value.ndim) + value.shape)
            weights = _blocks(value.reshape(shape4(value.shape)), dst)
            operands.append(Strided.row_major(weights.shape))
            arguments.append("weights")
        else:
            arguments.append("add" if "src" in arguments else "src")
            operands.append(views[task.reads.index(name)])
    program = elementwise.binary(
        elementwise.Binary(op.function), cpu, operands[0], operands[1], out,
        (arguments[0], arguments[1]),
    )  # fmt: skip
    return Kernel(program, "elementwise", weights)


def _blocks(values: Array, where: Placement) -> Array:
    """Values of shape (n, c, h, w), some of these 1, as (n, block, h, w, channel)."""
    n, c, h, w = shape4(values.shape)
    if c == 1:
        return values.reshape(n, 1, h, w, 1)
    padded = np.zeros((n, where.blocks * where.block, h, w), np.float32)
    padded[:, :c] = values
    return padded.reshape(n, where.blocks, where.block, h, w).transpose(0, 1, 3, 4, 2)


def pool_spec(op: Pool) -> pool.Pool:
    """A pool over one axis is one of height 1."""
    rank = len(op.kernel)

    def pair(values: Ints, filler: int) -> tuple[int, int]:
        return (filler, values[0]) if rank == 1 else (values[0], values[1])

    return pool.Pool(
        op.function,
        pair(op.kernel, 1),
        pair(op.stride, 1),
        pair(op.padding[:rank], 0) + pair(op.padding[rank:], 0),
        pair(op.dilation, 1),
        op.count_padding,
    )


def _constant(graph: Graph, task: Task, index: int) -> Array:
    name = task.node.input(index)
    if name not in graph.constants:
        raise UnsupportedError(
            f"node {task.node.label}: {name!r} is computed or an input; "
            "export the model with constant weights"
        )
    return graph.constants[name]


def _dense(graph: Graph, task: Task, op: Gemm) -> tuple[Array, Array]:
    """Weights (outputs, features) and a bias per output, factors multiplied in."""
    b = _constant(graph, task, 1)
    weights = b if op.transpose_b else b.T
    if op.alpha != 1:
        weights = weights * np.float32(op.alpha)
    bias: Array = np.zeros(len(weights), np.float32)
    if task.node.input(2):
        bias = bias + op.beta * _constant(graph, task, 2)
    if bias.shape not in (weights.shape[:1], (1, len(weights))):
        raise UnsupportedError(f"node {task.node.label} needs one bias per column")
    return weights, bias.reshape(-1)

"""The kernel that runs a task where its tensors lie, and the constants it reads."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from fastrun.graph.build import strided
from fastrun.graph.build.strided import constant
from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.ops import (
    Affine,
    Binary,
    ChannelShuffle,
    Clip,
    Conv,
    Gemm,
    Pool,
    Reduce,
    Unary,
)
from fastrun.graph.core.problems import conv_problem
from fastrun.graph.core.shapes import shape4
from fastrun.graph.plan.kinds import is_dense, is_global_pool, pool_spec
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Placement, layout_text
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import ScheduleError, check
from fastrun.kernels.ops import dense, elementwise, pool, shuffle
from fastrun.kernels.ops.dense import Dense
from fastrun.kernels.registry import applicable, parse_schedule


@dataclass(frozen=True)
class Kernel:
    """A program, what it is called, and its weights and bias as the graph has them.

    `weights` are still to be packed by the program; None stands for none.
    """

    program: Program
    weights: Array | None
    bias: Array | None
    algorithm: str


def build(
    graph: Graph,
    task: Task,
    schedules: Iterable[str],
    cpu: Cpu,
    reads: list[Placement],
    dst: Placement,
    picked: bool = False,
) -> Kernel:
    """The kernel of a task that computes.

    `schedules` are for a convolution, the best first, and so is whether its input is `picked`.

    Raises:
        UnsupportedError: there is none for this use of the operator.
    """
    op, node = task.node.op, task.node
    src = reads[0]
    try:
        match op:
            case Conv():
                problem = conv_problem(graph, node)
                io = Io(src, dst, reads[1] if problem.add else dst, picked)
                program, text = _convolution(problem, schedules, cpu, io)
                filters = graph.constants[node.inputs[1]].reshape(problem.weight_shape)
                bias = constant(graph, task, 2) if problem.bias else np.zeros(problem.oc)
                return Kernel(program, filters, bias.reshape(-1), text)
            case Gemm() if is_dense(graph, task):
                weights, bias = _dense(graph, task, op)
                program = dense.build(Dense(True, activation=op.activation), cpu, src, dst)
                return Kernel(program, weights, bias, "dense")
            case Pool():
                return Kernel(pool.build(pool_spec(op), cpu, src, dst), None, None, "pool")
            case Reduce() if is_global_pool(graph, task):
                whole = pool.Pool({"mean": "average", "max": "max"}[op.function], (src.h, src.w))
                return Kernel(pool.build(whole, cpu, src, dst), None, None, "pool")
            case ChannelShuffle() if len(reads) > 1:
                program = shuffle.build(shuffle.Shuffle(op.groups), cpu, src, dst, reads[1])
                return Kernel(program, None, None, "shuffle")
            case Unary() | Clip() | Affine() | Binary():
                return _elementwise(graph, task, cpu, reads, dst)
            case _:
                return Kernel(*strided.build(graph, task, cpu, reads, dst), "strided")
    except ScheduleError as error:
        raise UnsupportedError(f"node {node.label} cannot be run: {error}") from error


def _convolution(p: ConvProblem, schedules: Iterable[str], cpu: Cpu, io: Io) -> tuple[Program, str]:
    """The first schedule that can be built for this placement, else any algorithm's heuristic."""
    refusal = ScheduleError(f"no algorithm reads {io.src.layout} and writes {io.dst.layout}")
    layout = layout_text(io.src.layout, io.dst.layout)
    unmeasured = (
        template.text(replace(template.heuristic(p, cpu), layout=layout))
        for template in sorted(applicable(p, cpu), key=lambda t: -t.rank(p, cpu))
        if not template.baseline
    )
    for text in chain(schedules, unmeasured):
        try:
            return _program(p, text, cpu, io), text
        except ScheduleError as error:
            refusal = error
    raise refusal


@functools.lru_cache(128)
def _program(p: ConvProblem, text: str, cpu: Cpu, io: Io) -> Program:
    """Networks repeat themselves, and writing a kernel takes longer than running it."""
    template, schedule = parse_schedule(text)
    check(template.picks or not io.picked, f"{template.name} cannot pick channels")
    return template.build(p, schedule, cpu, io)


def _elementwise(
    graph: Graph, task: Task, cpu: Cpu, reads: list[Placement], dst: Placement
) -> Kernel:
    """A function of the values at each place; constants are brought into the layout."""
    op, node = task.node.op, task.node
    if dst.layout.blocked:
        for x in reads:
            alike = (x.layout, x.c) == (dst.layout, dst.c)
            check(alike, f"{x.c} channels in {x.layout} cannot become {dst.c} in {dst.layout}")
        views, out = [Strided.of(x) for x in reads], Strided.of(dst)
    else:
        shapes = [graph.shape(x) for x in task.reads]
        views = [strided.view(x, shape) for x, shape in zip(reads, shapes, strict=True)]
        out = strided.view(dst, graph.shape(task.output))
    match op:
        case Unary():
            spec = elementwise.Unary(op.function, op.alpha, op.beta)
            program = elementwise.unary(spec, cpu, views[0], out)
            return Kernel(program, None, None, "elementwise")
        case Clip():
            limits = elementwise.Clip(op.low, op.high)
            program = elementwise.clip(limits, cpu, views[0], out)
            return Kernel(program, None, None, "elementwise")
        case Affine():
            axes = (1, 4) if dst.layout.blocked else (1,)
            program = elementwise.affine(
                elementwise.Affine(axes, op.activation), cpu, views[0], out
            )
            both = np.zeros((2, dst.blocks * dst.block), np.float32)
            both[:, : dst.c] = [constant(graph, task, i) for i in (1, 2)]
            return Kernel(program, both, None, "elementwise")
    assert isinstance(op, Binary)
    operands, arguments = [], []
    weights = None
    for name in node.inputs:
        if name in graph.constants:
            weights = graph.constants[name]
            if dst.layout.blocked:
                missing = len(graph.shape(task.output)) - weights.ndim
                weights = _blocks(weights.reshape((1,) * missing + weights.shape), dst)
            operands.append(Strided.row_major(weights.shape))
            arguments.append("weights")
        else:
            arguments.append("add" if "src" in arguments else "src")
            operands.append(views[task.reads.index(name)])
    places = (arguments[0], arguments[1])
    function = elementwise.Binary(op.function, op.activation)
    program = elementwise.binary(function, cpu, operands[0], operands[1], out, places)
    return Kernel(program, weights, None, "elementwise")


def _blocks(values: Array, where: Placement) -> Array:
    """Values of shape (n, c, h, w), some of these 1, as (n, block, h, w, channel)."""
    n, c, h, w = shape4(values.shape)
    values = values.reshape(n, c, h, w)
    if c == 1:
        return values[..., None]
    padded = np.zeros((n, where.blocks * where.block, h, w), np.float32)
    padded[:, :c] = values
    return padded.reshape(n, where.blocks, where.block, h, w).transpose(0, 1, 3, 4, 2)


def _dense(graph: Graph, task: Task, op: Gemm) -> tuple[Array, Array]:
    """Weights (outputs, features) and a bias per output, factors multiplied in."""
    b = constant(graph, task, 1)
    weights = b if op.transpose_b else b.T
    if op.alpha != 1:
        weights = weights * np.float32(op.alpha)
    bias: Array = np.zeros(len(weights), np.float32)
    if task.node.input(2):
        bias = bias + op.beta * constant(graph, task, 2)
    return weights, bias.reshape(-1)

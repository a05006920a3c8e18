"""Builds the kernels of elementwise operators, one at a time or several in one loop."""

from __future__ import annotations

import numpy as np

from fastrun.graph.build import strided
from fastrun.graph.build.built import Built, constant
from fastrun.graph.core.model import Array, Graph, Node
from fastrun.graph.core.ops import Affine, Binary, ByteFunction, Clip, Unary, Where
from fastrun.graph.core.shapes import shape4
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check
from fastrun.kernels.ops import elementwise


def build(graph: Graph, task: Task, cpu: Cpu, reads: list[Placement], dst: Placement) -> Built:
    """The kernel of a task that computes each value from the operands' values at the same place.

    Raises:
        ScheduleError: the kernel refuses these operands.
    """
    op = task.node.op
    if dst.layout.blocked:
        for x in reads:
            alike = (x.layout.order, x.c) == (dst.layout.order, dst.c)
            check(alike, f"{x.c} channels in {x.layout} cannot become {dst.c} in {dst.layout}")
        views, out = [Strided.of(x) for x in reads], Strided.of(dst)
    else:
        shapes = [graph.shape(x) for x in task.reads]
        views = [strided.view(x, shape) for x, shape in zip(reads, shapes, strict=True)]
        out = strided.view(dst, graph.shape(task.output))
    if task.before or isinstance(op, Where):
        return _chain(graph, task, cpu, views, out, dst)
    match op:
        case Unary():
            return Built(elementwise.unary(op, cpu, views[0], out), "elementwise")
        case ByteFunction():
            return Built(elementwise.lookup(cpu, views[0], out), "elementwise")
        case Clip():
            return Built(elementwise.clip(op, cpu, views[0], out), "elementwise")
        case Affine():
            spec = elementwise.Affine((1, 4) if dst.layout.blocked else (1,), op.activation)
            both = np.zeros((2, dst.blocks * dst.block), np.float32)
            both[:, : dst.c] = [constant(graph, task, i) for i in (1, 2)]
            return Built(elementwise.affine(spec, cpu, views[0], out), "elementwise", both)
    assert isinstance(op, Binary)
    rank = len(graph.shape(task.output))

    def packed(values: Array) -> Array:
        return _blocks(values, rank, dst) if dst.layout.blocked else values

    (a, b), arguments, weights = strided.two_operands(graph, task, views, packed)
    program = elementwise.binary(op, cpu, a, b, out, (arguments[0], arguments[1]))
    return Built(program, "elementwise", weights)


def _chain(
    graph: Graph, task: Task, cpu: Cpu, views: list[Strided], out: Strided, dst: Placement
) -> Built:
    """All operators of a task in one loop."""
    rank = len(graph.shape(task.output))

    def packed(node: Node, values: Array) -> Array:
        if isinstance(node.op, Affine):  # one number for each channel
            values = values.reshape(-1, *(1,) * (rank - 2))
        return _blocks(values, rank, dst) if dst.layout.blocked else values

    operands, weights = strided.operands(graph, task, views, packed)
    known = [*operands, *(node.output for node in task.nodes)]
    numbers = {name: i for i, name in enumerate(known)}
    steps = ((_kernel(node), tuple(numbers[x] for x in node.inputs)) for node in task.nodes)
    spec = elementwise.Chain(tuple(steps))
    program = elementwise.chain(spec, cpu, [*operands.values()], out)
    return Built(program, "elementwise", weights)


def _kernel(node: Node) -> elementwise.Step:
    """The operator as the kernels know it."""
    op = node.op
    if isinstance(op, Affine):
        return elementwise.Affine(activation=op.activation)
    assert isinstance(op, Unary | Clip | Binary | Where)
    return op


def _blocks(values: Array, rank: int, where: Placement) -> Array:
    """Values that broadcast to a tensor of `rank` axes, as (n, block, h, w, place in the block)."""
    n, c, h, w = shape4((1,) * (rank - values.ndim) + values.shape)
    values = values.reshape(n, c, h, w)
    if c == 1:
        return values[..., None]
    padded = np.zeros((n, where.blocks * where.block, h, w), np.float32)
    padded[:, :c] = values
    return padded.reshape(n, where.blocks, where.block, h, w).transpose(0, 1, 3, 4, 2)

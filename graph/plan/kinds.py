"""Decides which kind of kernel an operator needs: dense layer, pool, blocks of channels."""

from __future__ import annotations

import math

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import (
    Concat,
    Gather,
    GatherElements,
    GatherND,
    Gemm,
    Identity,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
)
from fastrun.graph.core.shapes import is_range, pair
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.ops import pool


def is_dense(graph: Graph, task: Task) -> bool:
    """Whether a Gemm is a dense layer: one tensor, constant weights, a constant bias per output."""
    node = task.node
    assert isinstance(node.op, Gemm)
    if node.op.transpose_a or node.inputs[1] not in graph.constants or len(task.reads) != 1:
        return False
    outputs = graph.shape(task.output)[1]
    bias = node.input(2)
    return not bias or graph.shape(bias) in ((outputs,), (1, outputs))


def is_view(graph: Graph, task: Task) -> bool:
    """Whether a task gives memory another name, or puts tensors together, and computes nothing."""
    match task.node.op:
        case Concat(axis=1):
            return len(task.reads) == len(task.node.inputs)
        case Slice():
            return is_range(graph, task.node)
        case Identity() | Reshape():
            return True
    return False


def is_lookup(graph: Graph, task: Task) -> bool:
    """Whether a task takes entries or elements at indices that are data of its kernel."""
    op = task.node.op
    return isinstance(op, GatherElements | GatherND) or (
        isinstance(op, Gather) and task.node.inputs[1] not in graph.constants
    )


def is_global_pool(graph: Graph, task: Task) -> bool:
    """Whether a reduction is a pool over all pixels."""
    op, rank = task.node.op, len(graph.shape(task.reads[0]))
    assert isinstance(op, Reduce)
    return op.function in ("mean", "max") and rank in (3, 4) and op.axes == tuple(range(2, rank))


def pool_spec(op: Pool) -> pool.Pool:
    """The pool as its kernel knows it; a pool over one axis becomes one of height 1."""
    rank = len(op.kernel)
    return pool.Pool(
        op.function,
        pair(op.kernel, 1),
        pair(op.stride, 1),
        pair(op.padding[:rank], 0) + pair(op.padding[rank:], 0),
        pair(op.dilation, 1),
        op.count_padding,
    )


def is_spatial(op: Resize | Pad) -> bool:
    """Whether an operator on images changes rows and columns only, not images or channels."""
    if isinstance(op, Resize):
        return len(op.scales) == 4 and op.scales[:2] == (1, 1)
    # A block may have places of no channel. Kernels need finite values there.
    whole = math.isfinite(op.value) and len(op.padding) == 8
    return whole and not any((*op.padding[:2], *op.padding[4:6]))

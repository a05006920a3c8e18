"""Which kind of kernel an operator needs: dense, global pool, spatial."""

from __future__ import annotations

import math

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Gemm, Ints, Pad, Pool, Reduce, Resize
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.ops import pool


def is_dense(graph: Graph, task: Task) -> bool:
    """Whether a Gemm is a layer: of rows of one tensor, with constant weights and bias."""
    node = task.node
    assert isinstance(node.op, Gemm)
    if node.op.transpose_a or node.inputs[1] not in graph.constants or len(task.reads) != 1:
        return False
    outputs = graph.shape(task.output)[1]
    bias = node.input(2)
    return not bias or graph.shape(bias) in ((outputs,), (1, outputs))


def is_global_pool(graph: Graph, task: Task) -> bool:
    """Whether a reduction is over all pixels, in a way that pooling can do."""
    op, rank = task.node.op, len(graph.shape(task.reads[0]))
    assert isinstance(op, Reduce)
    return op.function in ("mean", "max") and rank in (3, 4) and op.axes == tuple(range(2, rank))


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


def is_spatial(op: Resize | Pad) -> bool:
    """Whether an operator on images leaves images and channels alone."""
    if isinstance(op, Resize):
        return len(op.scales) == 4 and op.scales[:2] == (1, 1)
    # What lies in the places of no channel must be finite.
    whole = math.isfinite(op.value) and len(op.padding) == 8
    return whole and not any((*op.padding[:2], *op.padding[4:6]))

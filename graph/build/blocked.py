"""Products with constant weights of four bits in blocks, which stay packed in memory."""

from __future__ import annotations

import numpy as np

from fastrun.graph.build.built import Built, constant
from fastrun.graph.core.grid import Grid, weight_axis
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Gemm, MatMul
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import NCHW, Placement
from fastrun.kernels.ops import nibbles
from fastrun.kernels.ops.nibbles import CENTRE, WORD, Nibbles

# Rows up to which reading fewer bytes outweighs unpacking weights again for some rows each.
ROWS = 16


def blocked(
    graph: Graph, task: Task, cpu: Cpu, reads: list[Placement], dst: Placement
) -> Built | None:
    """The kernel of a product that keeps its weights packed; None if there is none for it.

    Its weights are a constant with a grid in blocks of four bits, and rows of the computed tensor
    follow one another in memory.
    """
    op, node = task.node.op, task.node
    grid = graph.grids.get(node.input(1))
    if not isinstance(op, Gemm | MatMul) or not grid or len(reads) != 1 or not _packs(grid):
        return None
    w, axis = graph.constants.get(node.inputs[1]), weight_axis(op)
    if w is None or w.ndim != 2 or axis is None or (isinstance(op, Gemm) and op.transpose_a):
        return None
    stored = grid.stored(w, axis) if axis == 0 else grid.stored(w, axis).T
    outputs, depth = stored.shape
    rows = reads[0].size // depth
    if stored.max(initial=0) > 15 or rows > ROWS or not (_flat(reads[0]) and _flat(dst)):
        return None
    scale, zero = np.asarray(grid.scale), np.asarray(grid.zero)
    bias = None
    if isinstance(op, Gemm):
        scale = scale * np.float32(op.alpha)
        bias = constant(graph, task, 2).reshape(-1) * op.beta if node.input(2) else None
    spec = Nibbles(grid.block, bool((zero != CENTRE).any()), bias is not None, op.activation)
    src = Placement(NCHW, rows, depth, 1, 1)
    program = nibbles.build(spec, cpu, src, Placement(NCHW, rows, outputs, 1, 1))
    return Built(program, "nibbles", nibbles.operands(stored, scale, zero), bias)


def _packs(grid: Grid) -> bool:
    return grid.block > 0 and grid.block % WORD == 0


def _flat(where: Placement) -> bool:
    """Whether a tensor lies in memory in the order of its axes, without gaps."""
    ordered = where.layout.name == "NCHW" or (where.h, where.w) == (1, 1)
    alone = (where.halo, where.first, where.buffer_c) == ((0, 0, 0, 0), 0, where.c)
    return ordered and alone and not where.layout.blocked and where.dtype is F32

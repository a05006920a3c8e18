"""Products with constant weights of few bits in blocks, which stay packed in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastrun.graph.build.built import Built, constant
from fastrun.graph.core.grid import Grid, weight_axis
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.ops import Gemm, MatMul
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import NCHW, Placement
from fastrun.kernels.core.program import Program
from fastrun.kernels.ops import blocks, nibbles
from fastrun.kernels.ops.blocks import Blocks
from fastrun.kernels.ops.nibbles import CENTRE, WORD, Nibbles

# Rows up to which reading fewer bytes outweighs unpacking weights to float32 for some rows each.
ROWS = 16


@dataclass(frozen=True)
class _Weights:
    """Weights (outputs, features) as stored, scales and zero points (outputs, blocks)."""

    stored: Array
    scale: Array
    zero: Array
    bits: int

    @classmethod
    def of(cls, grid: Grid, values: Array, axis: int, factor: float) -> _Weights:
        """Those of a constant, times a factor."""
        stored = grid.stored(values, axis) if axis == 0 else grid.stored(values, axis).T
        zero = np.asarray(grid.zero)
        largest = max(int(stored.max(initial=0)), int(zero.max(initial=0)))
        bits = next(b for b in blocks.BITS if largest < 1 << b)
        return cls(stored, np.asarray(grid.scale) * np.float32(factor), zero, bits)

    @property
    def operands(self) -> Array:
        """What the program of either kernel packs."""
        return blocks.operands(self.stored, self.scale, self.zero)


def blocked(
    graph: Graph, task: Task, cpu: Cpu, reads: list[Placement], dst: Placement
) -> Built | None:
    """The kernel of a product that keeps its weights packed; None if there is none for it.

    Its weights are a constant with a grid in blocks, and rows of the computed tensor follow one
    another in memory. If the model allows it, rows are rounded to bytes; else there are kernels
    for a few rows and four bits.
    """
    op, node = task.node.op, task.node
    grid = graph.grids.get(node.input(1))
    if not isinstance(op, Gemm | MatMul) or not grid or not grid.block or len(reads) != 1:
        return None
    w, axis = graph.constants.get(node.inputs[1]), weight_axis(op)
    if w is None or w.ndim != 2 or axis is None or (isinstance(op, Gemm) and op.transpose_a):
        return None
    alpha, beta = (op.alpha, op.beta) if isinstance(op, Gemm) else (1.0, 1.0)
    depth, outputs = (w.shape[1], w.shape[0]) if axis == 0 else w.shape
    rows = reads[0].size // depth
    bias = None
    if node.input(2):
        bias = constant(graph, task, 2).reshape(-1) * beta
    fits = _flat(reads[0]) and _flat(dst) and (bias is None or bias.size == outputs)
    if not fits or not (grid.rounds or rows <= ROWS):
        return None
    weights = _Weights.of(grid, w, axis, alpha)
    src, to = (Placement(NCHW, rows, c, 1, 1) for c in (depth, outputs))
    found = _program(grid, weights, bias is not None, op.activation, cpu, src, to)
    return found and Built(found[1], found[0], weights.operands, bias)


def _program(
    grid: Grid, weights: _Weights, bias: bool, activation: str, cpu: Cpu, src: Placement,
    dst: Placement,
) -> tuple[str, Program] | None:  # fmt: skip
    """The name and the program of the kernel, if there is one."""
    if grid.rounds:
        usual = Blocks(weights.bits, grid.block).usual_zero
        zeros = bool((weights.zero != usual).any())
        spec = Blocks(weights.bits, grid.block, zeros, bias, activation)
        if not blocks.why_not(spec, cpu):
            return "blocks", blocks.build(spec, cpu, src, dst)
    if src.n > ROWS or weights.bits > 4 or grid.block % WORD:
        return None
    plain = Nibbles(grid.block, bool((weights.zero != CENTRE).any()), bias, activation)
    return "nibbles", nibbles.build(plain, cpu, src, dst)


def _flat(where: Placement) -> bool:
    """Whether a tensor lies in memory in the order of its axes, without gaps."""
    ordered = where.layout.name == "NCHW" or (where.h, where.w) == (1, 1)
    alone = (where.halo, where.first, where.buffer_c) == ((0, 0, 0, 0), 0, where.c)
    return ordered and alone and not where.layout.blocked and where.dtype is F32

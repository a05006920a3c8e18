"""Decides which kernels of bytes an operator has beside that of float32.

A kernel of bytes reads tensors that are quantised, and computes in integers or in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import (
    Affine,
    Binary,
    ByteFunction,
    ChannelShuffle,
    Clip,
    Concat,
    Conv,
    DepthToSpace,
    Expand,
    Gather,
    Pad,
    Pool,
    Reduce,
    Resize,
    Slice,
    Transpose,
    Unary,
)
from fastrun.graph.core.precision import byte_grid, exact_grid, float_reason
from fastrun.graph.plan.kinds import is_global_pool, is_view
from fastrun.graph.plan.tasks import Task, tasks
from fastrun.kernels.core.dtype import F32, U8, DType


@dataclass(frozen=True)
class ByteKernel:
    """The element types that a kernel reads and writes; `types` is their name in a `Form`."""

    reads: tuple[DType, ...]
    writes: DType

    @property
    def types(self) -> str:
        """`u8`, `u8>f32`, `f32>u8`."""
        before = U8 if U8 in self.reads else F32
        return "u8" if before is self.writes else f"{before.name}>{self.writes.name}"


def byte_kernels(graph: Graph, task: Task) -> Iterator[ByteKernel]:
    """The kernels of a task that read or write bytes. A tensor that must be u8 is written as such.

    Tensors that are quantised are all read as bytes, or none of them.
    """
    op = task.node.op
    grids, grid = [byte_grid(graph, x) for x in task.reads], byte_grid(graph, task.output)
    exact = exact_grid(graph, task.output) is not None
    floats = (F32,) * len(grids)
    mixed = tuple(U8 if known else F32 for known in grids)
    match op:
        case Pool() | Reduce() if isinstance(op, Pool) or is_global_pool(graph, task):
            if op.function == "max":
                if grid and grids == [grid]:
                    yield ByteKernel((U8,), U8)
            elif grids[0]:
                yield from _outputs(mixed, grid is not None, exact)
        case Unary() | Clip():
            if grids[0]:
                yield from _outputs(mixed, grid is not None, exact)
            elif grid:
                yield ByteKernel(floats, U8)
        case ByteFunction():
            yield ByteKernel((U8,), U8)
        case Binary() | Affine():
            if any(grids):
                yield from _outputs(mixed, grid is not None, exact)
            elif grid:
                yield ByteKernel(floats, U8)
        case Resize(mode=mode) if mode != "nearest":
            if grids[0]:
                yield from _outputs(mixed, grid == grids[0], exact)
        case Concat():
            if grid and all(grids):
                yield ByteKernel(mixed, U8)
        case (
            ChannelShuffle() | DepthToSpace() | Gather() | Resize() | Pad() | Transpose() | Slice()
            | Expand()
        ):  # fmt: skip
            if grid and all(known == grid for known in grids):
                yield ByteKernel(mixed, U8)


def _outputs(reads: tuple[DType, ...], to_bytes: bool, exact: bool) -> Iterator[ByteKernel]:
    if to_bytes:
        yield ByteKernel(reads, U8)
    if not exact:
        yield ByteKernel(reads, F32)


def float_notes(graph: Graph) -> Iterator[tuple[str, str]]:
    """The nodes of a quantised network that run in float32 although they touch quantised tensors.

    Each comes with the reason.
    """
    for task in tasks(graph):
        node = task.node
        if not any(byte_grid(graph, x) for x in (*task.reads, task.output)):
            continue
        if isinstance(node.op, Conv):
            reason = float_reason(graph, node)
        elif is_view(graph, task) or next(byte_kernels(graph, task), None):
            continue
        else:
            reason = "it has no kernel of bytes, or its tensors lie on different grids"
        if reason:
            yield node.label, reason

"""Builds the kernels that copy a tensor into another layout, element type or grid."""

from __future__ import annotations

from fastrun.graph.build.built import Built
from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Graph
from fastrun.graph.core.precision import byte_grid
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import U8, DType
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.scales import Quantisation, scales, table
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.ops import elementwise, movement, reorder


def moving(
    cpu: Cpu, src: Placement, dst: Placement, before: Grid | None, after: Grid | None
) -> Built:
    """The kernel that copies a tensor from one placement and grid to another."""
    if before and after and before != after:
        program = reorder.build(reorder.Reorder(lookup=True), cpu, src, dst)
        return Built(program, "requantise", table(quantisation(before), quantisation(after)))
    program = reorder.build(reorder.Reorder(), cpu, src, dst)
    if src.dtype is dst.dtype:
        return Built(program, "reorder")
    name = "quantise" if after else "dequantise"
    return Built(program, name, None, scales(quantisation(before), quantisation(after)))


def piece(cpu: Cpu, src: Strided, dst: Strided, before: Grid | None, after: Grid | None) -> Built:
    """The kernel that copies a computed part of a tensor into it."""
    if before and after and before != after:
        found = table(quantisation(before), quantisation(after))
        return Built(elementwise.lookup(cpu, src, dst), "copy", found)
    return Built(movement.copy(cpu, src, dst), "copy")


def quantisation(grid: Grid | None) -> Quantisation:
    """Scale and zero point of a tensor that is stored on a grid; those of floats without one."""
    return Quantisation(float(grid.scale), int(grid.zero)) if grid else Quantisation()


def stored_as(graph: Graph, name: str, dtype: DType) -> Quantisation:
    """Scale and zero point of a tensor that is stored in this element type."""
    return quantisation(byte_grid(graph, name) if dtype is U8 else None)

"""Set the halo of a tensor to the number that stands for zero; its pixels do not change."""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Buffer, Index, Kernel, Module
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check


@dataclass(frozen=True)
class ZeroHalo:
    """Nothing is computed, but a convolution then reads zeros as its padding."""


@identified
def build(spec: ZeroHalo, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Set the halo of `dst`, which is `src`, to `dst.zero`.

    Raises:
        ScheduleError: the tensor is a part of a larger one, which owns the halo, or has no halo;
            or its elements have several bytes and another zero than 0.
    """
    check(src == dst and not dst.whole, "the halo of a whole tensor is zeroed in place")
    check(any(dst.halo), "there is no halo")
    check(dst.zero == 0 or dst.dtype.bits == 8, f"a halo of {dst.dtype.name} is filled with 0")
    top, left, bottom, right = dst.halo
    row = dst.w * dst.x_stride
    before = top * dst.y_stride + left * dst.x_stride
    # The halo right of a row and the halo left of the next row are neighbours.
    between = (left + right) * dst.x_stride
    after = right * dst.x_stride + bottom * dst.y_stride

    module = Module(cpu)

    @module.stage("zero_halo", dst.n * dst.n_stride // dst.block_stride)
    def write_zero_halo(k: Kernel, task: Index) -> None:
        plane = k.argument("dst", dst.block_stride, dst.y_stride, 1, dtype=dst.dtype)[task]
        _fill(plane, before, dst.zero)
        if between and dst.h > 1:
            with k.loop(dst.h - 1) as y:
                _fill(plane.at(y, before + row), between, dst.zero)
        _fill(plane.at(dst.h - 1, before + row), after, dst.zero)

    return module.program(Io(src, dst, dst))


def _fill(start: Buffer, size: int, byte: int) -> None:
    if size:
        start.k.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        count, align = start.dtype.bytes(size), start.dtype.bytes()
        arguments = f"ptr align {align} {start.base}, i8 {byte}, i64 {count}, i1 false"
        start.k.emit_void(f"call void @llvm.memset.p0.i64({arguments})")

"""Set the halo of a tensor to zero; its pixels do not change."""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Buffer, Module
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check


@dataclass(frozen=True)
class ZeroHalo:
    """Nothing is computed, but a convolution then reads zeros as its padding."""


def build(spec: ZeroHalo, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Zero the halo of `dst`, which is `src`.

    Raises:
        ScheduleError: the tensor is a part of a larger one, which owns the halo; or has no halo.
    """
    check(src == dst and not dst.whole, "the halo of a whole tensor is zeroed in place")
    check(any(dst.halo), "there is no halo")
    top, left, bottom, right = dst.halo
    row = dst.w * dst.x_stride
    before = top * dst.y_stride + left * dst.x_stride
    # The halo right of a row and the halo left of the next row are neighbours.
    between = (left + right) * dst.x_stride
    after = right * dst.x_stride + bottom * dst.y_stride

    module = Module(cpu)
    with module.stage("zero_halo", dst.n * dst.n_stride // dst.block_stride) as (k, task):
        plane = k.argument("dst", dst.block_stride, dst.y_stride, 1)[task]
        _zero(plane, before)
        if between and dst.h > 1:
            with k.loop(dst.h - 1) as y:
                _zero(plane.at(y, before + row), between)
        _zero(plane.at(dst.h - 1, before + row), after)
    return module.program(Io(src, dst, dst))


def _zero(start: Buffer, size: int) -> None:
    if size:
        start.k.declare("declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)")
        arguments = f"ptr align 4 {start.base}, i8 0, i64 {start.dtype.bytes(size)}, i1 false"
        start.k.emit_void(f"call void @llvm.memset.p0.i64({arguments})")

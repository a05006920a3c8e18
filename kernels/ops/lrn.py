"""Local response normalisation across neighbouring channels."""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Int, Kernel, Module, Vec, fma, least, most
from fastrun.kernels.codegen.elementary import exp, log
from fastrun.kernels.codegen.strided_loops import (
    Nest,
    aligned,
    load_row,
    marked,
    operand,
    rows,
    singly,
    store_row,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check, check_f32

UNROLL = 2


@dataclass(frozen=True)
class LRN:
    """`x / (bias + alpha / size * (sum of squares over size channels)) ** beta`; axis 1.

    If `size` is even, there is one more channel behind than before.
    """

    size: int
    alpha: float
    beta: float
    bias: float


@identified
def lrn(spec: LRN, cpu: Cpu, src: Strided, dst: Strided) -> Program:
    """Normalise `src`.

    Raises:
        ScheduleError: the shapes differ or have no channels, or a tensor is not of f32.
    """
    check_f32("LRN", src, dst)
    check(src.shape == dst.shape, f"LRN cannot turn {src.shape} into {dst.shape}")
    check(len(src.shape) > 1, f"LRN needs channels, and {src.shape} has none")
    out, view, mark = aligned(dst, src, marked(dst, 1))
    along = next((axis for axis, step in enumerate(mark.strides) if step), None)
    channels = src.shape[1]
    before = (spec.size - 1) // 2
    # Vectors are neighbouring pixels; if channels lie closest, they are single values.
    lanes = 1 if along == len(out.shape) - 1 else cpu.lanes
    tiles = [*singly(out.shape[:-1]), rows(out.shape[-1], lanes, UNROLL)]
    read, written = view.strides[-1], out.strides[-1]
    stride = 0 if along is None else view.strides[along]
    module, nest = Module(cpu), Nest(tiles, work=spec.size)

    @nest.stage(module, "lrn")
    def write_lrn(k: Kernel, *outer: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                places = (*outer, x)
                source = operand(k, "src", view).at(*places).strided(1)
                target = operand(k, "dst", out).at(*places).strided(1)
                wide = min(lanes, cpu.lanes_for(run.size))
                for first in range(0, run.size, wide):
                    channel = 0 if along is None else places[along] + (first if lanes == 1 else 0)
                    count = min(wide, run.size - first)
                    at = source.at(first * read)
                    acc = k.tile(1, 1, wide)
                    acc.fill(k.const(0.0, wide))
                    begin = most(channel - before, 0)
                    end = least(channel + (spec.size - before), channels)
                    with k.loop(begin, end) as other:
                        term = load_row(at.at((other - channel) * stride), read, count, wide)
                        acc[0, 0] = fma(term, term, acc[0, 0])
                    scale = k.const(spec.alpha / spec.size, wide)
                    norm = fma(acc[0, 0], scale, k.const(spec.bias, wide))
                    value = load_row(at, read, count, wide) / _power(norm, spec.beta)
                    store_row(target.at(first * written), written, count, value)

    return module.program(Io(src.buffer, dst.buffer, dst.buffer))


def _power(x: Vec, exponent: float) -> Vec:
    """x, which is positive, to a power: by roots for the usual exponents."""
    if exponent == 1:
        return x
    root = x.k.intrinsic("sqrt", x)
    if exponent == 0.5:
        return root
    if exponent == 0.75:
        return root * x.k.intrinsic("sqrt", root)
    return exp(log(x) * exponent)

"""Rotary positions: pairs of a head's numbers as points of a plane, turned by angles of the pixel.

Su et al., RoFormer, 2021. Heads are ranges of channels in NHWC, as attention reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import Vec, fma
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import NHWC, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check, check_f32
from fastrun.kernels.ops.attention import Heads
from fastrun.kernels.ops.elementwise import each_element


@dataclass(frozen=True)
class Rotary:
    """`x[j] * cos[i, j] + x[pair of j] * sin[i, j]` of pixel i and number j of each head.

    The first input (n, c, ...) has `heads` of them as ranges of its channels; the result has the
    heads one after another as its channels. The factors (pixels, numbers of a head) are the other
    two, with their signs. Pairs are neighbours if they are `adjacent`, else half a head apart.
    """

    heads: int
    of: Heads
    adjacent: bool = False

    @property
    def pairs(self) -> list[int]:
        """The other number of each one's pair."""
        size = self.of.size
        return [j ^ 1 if self.adjacent else (j + size // 2) % size for j in range(size)]


@identified
def build(spec: Rotary, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Turn the heads of `src`. The weights are (2, pixels, numbers of a head): cos, then sin.

    Raises:
        ScheduleError: a tensor is not of f32 in NHWC, the heads exceed the channels or have an odd
            size, or the sizes do not fit.
    """
    check_f32("a rotation", src, dst)
    of, heads = spec.of, spec.heads
    check(src.layout == dst.layout == NHWC, f"rotations take NHWC, not {src.layout}, {dst.layout}")
    check(of.start + (heads - 1) * of.step + of.size <= src.c, f"{heads} heads exceed {src.c}")
    fits = (dst.n, dst.h, dst.w, dst.c) == (src.n, src.h, src.w, heads * of.size)
    check(fits and of.size % 2 == 0, f"{heads} heads of {of} of {src} do not give {dst}")

    def view(where: Placement, first: int, step: int) -> Strided:
        shape = (src.n, src.h, src.w, heads, of.size)
        strides = (where.n_stride, where.y_stride, where.x_stride, step, 1)
        return Strided(shape, strides, where.origin + first)

    x, out = view(src, of.start, of.step), view(dst, 0, of.size)
    cos = replace(out, strides=(0, src.w * of.size, of.size, 0, 1), offset=0)
    sin = replace(cos, offset=src.h * src.w * of.size)
    factors = [("weights", cos), ("weights", sin)]
    if spec.adjacent:

        def turned(a: Vec, c: Vec, s: Vec) -> Vec:
            return fma(a, c, a.k.shuffle(a, a, [i ^ 1 for i in range(a.lanes)]) * s)

        program = each_element(cpu, "rotary", turned, [("src", x), *factors], out)
        return replace(program, io=Io(src, dst, dst))
    half = (2, of.size // 2)
    x, out, *constants = (v.split(4, half) for v in (x, out, cos, sin))
    strides = (*x.strides[:4], -half[1], 1)
    pair = replace(x, strides=strides, offset=x.offset + half[1])
    operands = [("src", x), ("src", pair), *(("weights", v) for v in constants)]

    def mixed(a: Vec, b: Vec, c: Vec, s: Vec) -> Vec:
        return fma(a, c, b * s)

    return replace(each_element(cpu, "rotary", mixed, operands, out), io=Io(src, dst, dst))

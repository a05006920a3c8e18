"""Convolution of one bit: input and weights count by their signs, products are counted bits.

Tensors are float32 (types `b1`, see `kernels.core.signs`). A first stage takes the signs of the
input, 32 channels to a word. A product of two words is their exclusive or, whose set bits count the
products that are -1. Bits are counted in bytes, which hold those of 31 words; then the bytes of a
word are added to int32. All of it is exact: only the scale and the bias of a channel round, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Tile, Vec, fma
from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.half import joined
from fastrun.kernels.codegen.micro_kernel import check_tile, outer_product
from fastrun.kernels.codegen.tile_choice import best_tile, tiles_per_task
from fastrun.kernels.codegen.tiling import channel_panels, cover, cut, task_order, tile_count
from fastrun.kernels.core.cpu import Cpu, whole_lines
from fastrun.kernels.core.dtype import F32, I16, I32, U8
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.signs import magnitudes
from fastrun.kernels.core.template import KernelTemplate, check_layouts, check_sizes

WORD = 32  # channels whose signs lie in a word
RUN = 31  # words whose bits a byte can count: 8 of each


@dataclass(frozen=True)
class Schedule:
    layout: str
    tile_w: int  # output columns of a register tile
    cols: int  # vectors of output channels of a register tile
    unroll: int  # words in the loop body
    rows: int  # output rows of a task
    oc_outer: bool  # tasks run through the image for each panel of weights, else the reverse


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    return None


# Registers that the heuristic leaves where there are 32: a tile of 8x2 is the fastest (Zen 4).
SPARE = 12


def further_registers(cpu: Cpu) -> int:
    """Registers that counting bits takes beside the tile: more where no instruction counts them."""
    return 3 if cpu.registers == 32 else 6


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    vectors = -(-p.oc // cpu.lanes)
    depth = words_of(p) * p.kernel[0] * p.kernel[1]
    further = SPARE if cpu.registers == 32 else further_registers(cpu)
    _, tile_w, cols = best_tile(1, p.ow, vectors, cpu, depth, further=further)
    rows = tiles_per_task(p.oh, p.oh // (2 * cpu.cores), cpu)
    return Schedule("NHWC", tile_w, cols, unroll=2, rows=rows, oc_outer=False)


def words_of(p: ConvProblem) -> int:
    """Words of the channels of a pixel."""
    return -(-p.c // WORD)


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s)
    check_layouts(io, "NHWC")
    panels = channel_panels(p.oc, cpu.lanes, s.cols, split_tail=True)
    x_tiles, rows = cover(p.ow, s.tile_w), cover(p.oh, 1)[0]
    for x in x_tiles:
        further = further_registers(cpu)
        check_tile(cpu, x.size, panels[0].size, min(s.unroll, words_of(p)), further)
    row_tasks, panel_tasks = -(-p.oh // s.rows), tile_count(panels)
    form = _Form(p, s, io, panels[-1].end * cpu.lanes)

    module = Module(cpu)

    @module.stage("signs", p.n * p.h)
    def write_signs(k: Kernel, task: Index) -> None:
        form.take_signs(k, task // p.h, task % p.h)

    @module.stage("binary", p.n * row_tasks * panel_tasks)
    def write_binary(k: Kernel, task: Index) -> None:
        row, panel, image = task_order(task, row_tasks, panel_tasks, s.oc_outer)
        for v in panels:
            with v.when(k, panel) as vector:
                tail = p.oc % cpu.lanes if v is panels[-1] else 0
                with rows.loop(k, row * s.rows, row * s.rows + s.rows) as top:
                    for x in x_tiles:
                        with x.loop(k) as left:
                            acc = k.tile(x.size, v.size, cpu.lanes, I32)
                            acc.fill(k.const(0, cpu.lanes, I32))
                            form.count(k, acc, image, vector, top, left)
                            form.finish(k, acc, image, vector, top, left, tail)

    size = I32.bytes(p.n * p.h * p.w * words_of(p) + READ_SLACK)
    return module.program(io, lambda w: pack(w, p, panels, cpu.lanes), size)


@dataclass(frozen=True)
class _Form:
    """How words of signs lie in the workspace and in the packed weights, and how they multiply."""

    p: ConvProblem
    s: Schedule
    io: Io
    width: int  # packed output channels

    def take_signs(self, k: Kernel, image: Int, y: Int) -> None:
        """Write the signs of a row of pixels, a set bit for a number below zero."""
        p, lanes = self.p, k.lanes
        words = words_of(p)
        src, out = k.tensor("src", self.io.src).at(image, 0, y), self._signs(k).at(image, y)
        with k.times(p.w) as x:
            pixel = src.at(0, 0, 0, x).strided(1)
            for some in cut(p.c, WORD):
                with some.loop(k) as channel:
                    bits = None
                    for at in range(0, some.size, lanes):
                        value = pixel.load_first(some.size - at, channel + at, lanes=lanes)
                        found = _below_zero(k, value, at)
                        bits = found if bits is None else k.emit(f"or i32 {bits}, {found}")
                    assert bits is not None
                    number = words - 1 if some.size < WORD else channel // WORD
                    out.store(Vec(k, bits, 1, I32), 0, 0, x, number)

    def _signs(self, k: Kernel) -> Buffer:
        p, words = self.p, words_of(self.p)
        strides = p.h * p.w * words, p.w * words, words, 1
        return k.argument("shared", *strides, dtype=I32)

    def count(self, k: Kernel, acc: Tile, image: Int, vector: Int, top: Int, left: Int) -> None:
        """Count the products that are -1 of a tile's pixels and a panel's channels."""
        p, words = self.p, words_of(self.p)
        (kh, kw), (sy, sx), (dy, dx) = p.kernel, p.stride, p.dilation
        across = acc.cols * acc.lanes
        start = F32.bytes(whole_lines(self.width)) // I32.bytes()
        panel = k.argument("weights", acc.lanes * kh * kw * words, offset=start, dtype=I32)
        weights = panel.at(vector).strided(across, 1)
        corner = self._signs(k).at(image, top * sy, left * sx)
        # All taps of a row in one run of bytes, if these can count them.
        together = kw * words <= RUN
        bytes_ = k.tile(acc.rows, acc.cols, 4 * acc.lanes, U8)
        with k.times(kh) as ky, k.times(1 if together else kw) as tap:
            taps = range(kw) if together else [tap]
            for run in cut(words, RUN):
                with run.loop(k) as first:
                    bytes_.fill(k.const(0, bytes_.lanes, U8))
                    for kx in taps:
                        row = corner.at(0, ky * dy, kx * dx)
                        position = (ky * kw + kx) * words
                        for steps in cut(run.size, min(self.s.unroll, run.size)):
                            with steps.unrolled(k) as some:
                                for word in some:
                                    self._step(k, bytes_, row, weights, first + word, position, sx)
                    for cell in acc:
                        acc[cell] = acc[cell] + _in_words(bytes_[cell])

    def _step(
        self, k: Kernel, bytes_: Tile, row: Buffer, weights: Buffer, word: Int, position: Int,
        apart: int,
    ) -> None:  # fmt: skip
        lanes = k.lanes
        outer_product(
            bytes_,
            (row.splat(0, 0, i * apart, word, lanes=lanes) for i in range(bytes_.rows)),
            (weights.load(position + word, j * lanes, lanes=lanes) for j in range(bytes_.cols)),
            _count,
        )

    def finish(
        self, k: Kernel, acc: Tile, image: Int, vector: Int, top: Int, left: Int, tail: int
    ) -> None:
        """Scale the sums, add bias and residual, apply the activation, store."""
        p, lanes = self.p, acc.lanes
        bias, scales = k.argument("bias", lanes), k.argument("weights", lanes)
        dst = k.tensor("dst", self.io.dst).at(image, 0, top, left)
        add = k.tensor("add", self.io.add).at(image, 0, top, left) if p.add else None
        for j in range(acc.cols):
            channel, scale = (vector + j) * lanes, scales.load(vector + j, lanes=lanes)
            kept = tail if tail and j == acc.cols - 1 else lanes
            for i in range(acc.rows):
                count = acc[i, j]
                total = (k.const(p.depth, lanes, I32) - (count + count)).to(F32)
                value = fma(total, scale, bias.load(vector + j, lanes=lanes))
                place = (0, 0, 0, i, channel)
                residual = add.load_some(kept, *place, lanes=lanes) if add else None
                dst.store_first(finish(p, value, residual), kept, *place)


def _below_zero(k: Kernel, value: Vec, place: int) -> str:
    """The lanes below zero as bits of an i32, from bit `place` on."""
    mask = k.emit(f"fcmp olt {value.type} {value.ssa}, {k.const(0.0, value.lanes).ssa}")
    bits = k.emit(f"bitcast {vector_type(value.lanes, 'i1')} {mask} to i{value.lanes}")
    wide = k.emit(f"zext i{value.lanes} {bits} to i32")
    return k.emit(f"shl i32 {wide}, {place}") if place else wide


def _count(total: Vec, x: Vec, w: Vec) -> Vec:
    """Add the bits in which two words differ, byte by byte."""
    k = total.k
    unequal = Vec(k, k.emit(f"xor {x.type} {x.ssa}, {w.ssa}"), x.lanes, I32)
    return total + k.intrinsic("ctpop", unequal.bits_as(U8))


def _in_words(counts: Vec) -> Vec:
    """The sums of the four bytes of each word, as int32."""
    for dtype in (I16, I32):
        wide = counts.bits_as(dtype)
        half = dtype.bits // 2
        mask = wide.k.const((1 << half) - 1, wide.lanes, dtype)
        low = Vec(wide.k, wide.k.emit(f"and {wide.type} {wide.ssa}, {mask.ssa}"), wide.lanes, dtype)
        counts = low + wide.k.shifted(wide, "lshr", half)
    return counts


def pack(weights: NDArray[Any], p: ConvProblem, panels: Any, lanes: int) -> NDArray[Any]:
    """Weights (oc, c, kh, kw) -> scales, then words (panel, tap, word, output channel).

    Missing channels are 1 in the input as well, so they count nothing.
    """
    width, words = panels[-1].end * lanes, words_of(p)
    scales = np.zeros(whole_lines(width), np.float32)
    scales[: p.oc] = magnitudes(weights)
    bits = np.zeros((width, *p.kernel, words * WORD), bool)
    bits[: p.oc, ..., : p.c] = (weights < 0).transpose(0, 2, 3, 1)
    packed = np.packbits(bits, axis=-1, bitorder="little").view("<i4")
    terms = packed.reshape(width, -1).T  # (tap and word, output channel)
    pieces = [
        terms[:, first * lanes : (first + run.size) * lanes].reshape(-1)
        for run in panels
        for first in range(run.start, run.end, run.size)
    ]
    return joined(scales, np.concatenate(pieces))


template = KernelTemplate(
    "binary",
    Schedule,
    why_not,
    heuristic,
    build,
    takes=lambda types, cpu: types.signs,
)

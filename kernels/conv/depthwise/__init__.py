"""Depthwise and thinly grouped convolution: a vector of channels spans several groups.

In a depthwise convolution, output lane i needs only input lane i. With a few channels per group,
lane i needs each channel of its own group: step j permutes the loaded vector to x[first of i's
group + j]. In both cases every lane works, for any size of groups.

A register tile of tile_h x tile_w outputs reads each of its input pixels once, and adds the pixel
to all outputs that need it. Bytes are widened to float32, whose sums are exact up to 2^24, or
multiplied by dot products of four rows (`words`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import (
    Buffer,
    Index,
    Int,
    Kernel,
    Module,
    Tile,
    Vec,
    at_channel,
    fma,
)
from fastrun.kernels.codegen.dot import Dot, dots
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.reduction import met_taps, share_met
from fastrun.kernels.codegen.tiling import Tiles, channel_panels, consecutive, cover, tile_count
from fastrun.kernels.conv.depthwise.words import (
    ROWS,
    WordVector,
    channels_of,
    pack_words,
    pairs_at,
    patterns,
    word_registers,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, I32
from fastrun.kernels.core.layout import Array, Layout, Placement, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate, check, check_sizes
from fastrun.kernels.core.types import Types

# Multiply-adds of a tile up to which all rows of the filter are straight code.
STRAIGHT = 640
# Where less than this share of the filter meets the image, skipping the rest pays for a loop over
# the filter's rows, and for code of its own for every tile of a row.
MET = 0.85
APART = 8  # tiles of a row that have code of their own, at most
# Tasks that the heuristic aims at: enough to divide evenly among any number of threads.
TASKS = 32


@dataclass(frozen=True)
class Schedule:
    layout: str
    tile_h: int  # output rows of a register tile
    tile_w: int  # output columns of a register tile
    vectors: int  # vectors of channels of a task, the innermost loop
    rows: int  # register tiles, one below the other, of a task
    hold: bool  # weights stay in registers; else they are read again for each row
    dot: str = ""  # of integers: a kind of dot product, or fma for float32 sums


@dataclass(frozen=True)
class Span:
    """What one vector covers: `groups` groups, that is, `inputs` -> `outputs` channels.

    `fits` says whether they fit into a vector and begin where channel blocks allow it.
    """

    lanes: int
    groups: int
    inputs: int
    outputs: int
    fits: bool

    @classmethod
    def of(cls, p: ConvProblem, src: Layout, dst: Layout, cpu: Cpu) -> Span:
        """As many whole groups as vectors and blocks of channels hold."""
        lanes = min(cpu.lanes, src.blocked or cpu.lanes, dst.blocked or cpu.lanes)
        groups = max(1, lanes // max(p.group_c, p.group_oc))
        inputs, outputs = groups * p.group_c, groups * p.group_oc
        aligned = src.blocked % inputs == 0 and dst.blocked % outputs == 0
        return cls(lanes, groups, inputs, outputs, aligned and max(inputs, outputs) <= lanes)


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.groups == 1:
        return "one group: there are no channels to keep apart"
    if max(p.group_c, p.group_oc) > cpu.lanes:
        return f"more than {cpu.lanes} channels per group do not fit into a vector"
    if p.precision.integer and p.depth * 255 * p.precision.bound >= 1 << 24:
        return "sums of so many products are not exact in float32"
    return None


def kinds(p: ConvProblem, cpu: Cpu) -> dict[str, Dot | None]:
    """The values of a schedule's `dot`, the best first; none of `dots` is behind float32 sums."""
    if not p.precision.integer:
        return {"": None}
    plain = p.group_c == p.group_oc == 1
    words = [d for d in dots(p.precision, cpu) if d.group == ROWS and d.plain] if plain else []
    return {**{d.name: d for d in words}, "fma": None}


def registers(p: ConvProblem, s: Schedule, cpu: Cpu) -> int:
    """Vector registers that a tile keeps alive."""
    if dot := kinds(p, cpu).get(s.dot):
        return word_registers(p, min(s.tile_h, p.oh), cpu, s.hold, dot)
    (kh, kw), tile_h, tile_w = p.kernel, min(s.tile_h, p.oh), min(s.tile_w, p.ow)
    # A weight that is read again is needed from the first to the last column of the tile.
    passing = min(tile_h, kh) * min(kw, (tile_w - 1) * p.stride[1] + 1)
    return tile_h * tile_w + (kh * kw * p.group_c if s.hold else passing) + 2


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    blocked = f"NCHW{cpu.block}c"
    layout = blocked if Span.of(p, Layout(blocked), Layout(blocked), cpu).fits else "NHWC"
    vectors = -(-p.oc // Span.of(p, *layout_pair(layout), cpu).outputs)
    # Blocks of channels lie apart, so each is a task; in NHWC a task does all channels.
    together = 1 if layout == blocked else vectors
    tiles = [Schedule(layout, 2, 4, together, rows=1, hold=True)]
    tiles += [Schedule(layout, 1, w, together, rows=1, hold=False) for w in range(8, 0, -1)]
    if p.precision.integer:
        tiles = [*_word_tiles(p, cpu), *(replace(s, layout="NHWC", dot="fma") for s in tiles)]
    schedule = next(s for s in tiles if registers(p, s, cpu) <= cpu.registers)
    tasks = -(-vectors // schedule.vectors) if p.types else vectors // together
    count = p.n * tile_count(cover(p.oh, schedule.tile_h)) * tasks
    return replace(schedule, rows=max(1, count // TASKS))


def _word_tiles(p: ConvProblem, cpu: Cpu) -> list[Schedule]:
    """Tiles of the best kind of dot product, the best first."""
    name, dot = next(iter(kinds(p, cpu).items()))
    heights = [2, 1] if p.stride[0] == 1 and p.oh > 1 else [1]
    return [
        Schedule("NHWC", h, min(p.ow, 14), _vectors(p, h, cpu, False, dot), 1, False, name)
        for h in heights
        if dot
    ]


def _vectors(p: ConvProblem, height: int, cpu: Cpu, hold: bool, dot: Dot) -> int:
    return -(-p.c // channels_of(p, height, cpu, hold, dot))


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s)
    src_layout, dst_layout = io.src.layout, io.dst.layout
    check("NCHW" not in (src_layout.name, dst_layout.name), "depthwise needs NHWC or NCHWc")
    known = kinds(p, cpu)
    check(s.dot in known, f"dot={s.dot}: for {p.types or 'f32'} there is {', '.join(known)}")
    check(registers(p, s, cpu) <= cpu.registers, "tile needs too many registers")
    if dot := known[s.dot]:
        return _build_words(p, s, cpu, io, dot)
    span = Span.of(p, src_layout, dst_layout, cpu)
    check(span.fits, f"whole groups do not fill blocks of {src_layout} and {dst_layout}")
    plain = not dst_layout.blocked
    panels = channel_panels(p.oc, span.outputs, s.vectors, split_tail=plain)
    y_tiles, x_tiles = cover(p.oh, s.tile_h), cover(p.ow, s.tile_w)
    row_tasks = -(-tile_count(y_tiles) // s.rows)
    panel_tasks = tile_count(panels)
    skips = tile_count(x_tiles) <= APART and share_met(p, 1, x_tiles[0].size) < MET

    module = Module(cpu)

    @module.stage("depthwise", p.n * panel_tasks * row_tasks)
    def write_depthwise(k: Kernel, task: Index) -> None:
        row, rest = task % row_tasks, task // row_tasks
        panel, image = rest % panel_tasks, rest // panel_tasks
        for v in panels:
            with v.when(k, panel) as first:
                # In NHWC the last vector of all may be cut short; a block is stored whole.
                tail = p.oc % span.outputs if plain and v is panels[-1] else 0
                vectors = consecutive((1, v.size - (tail > 0)), (1, int(tail > 0)))
                begin, end = row * s.rows, row * s.rows + s.rows
                for y in y_tiles:
                    with y.loop(k, begin, end) as top:
                        for x, left in _places(k, x_tiles, skips):
                            for some in vectors:
                                with some.loop(k) as i:
                                    kept = (some is vectors[-1] and tail) or span.outputs
                                    vector = _Vector(k, p, s, io, span, image, i + first, kept)
                                    vector.tile(y.size, x.size, top, left)

    return module.program(io, lambda w: pack(w, p, span))


def _places(k: Kernel, tiles: Sequence[Tiles], straight: bool) -> Iterator[tuple[Tiles, Int]]:
    """Every tile and where it begins: known numbers, if `straight`, or those of loops."""
    for some in tiles:
        with k.each(0, some.count, straight or some.count == 1) as numbers:
            for number in numbers:
                yield some, number * some.size + some.start


def _build_words(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io, dot: Dot) -> Program:
    """The kernel of bytes whose products are `dot`."""
    channels = channels_of(p, min(s.tile_h, p.oh), cpu, s.hold, dot)
    for where in (io.src, io.dst):
        block = where.layout.blocked
        check(block % channels == 0, f"{channels} channels are more than a block of {where.layout}")
    plain = not io.dst.layout.blocked
    panels = channel_panels(p.oc, channels, s.vectors, split_tail=plain)
    y_tiles, x_tiles = cover(p.oh, s.tile_h), cover(p.ow, s.tile_w)
    heights = [y.size for y in y_tiles]
    used = max(len(patterns(p, h)) for h in heights) * p.kernel[1] * x_tiles[0].size
    check(used * channels // cpu.lanes <= STRAIGHT, "the code of a tile is too long")
    row_tasks = -(-tile_count(y_tiles) // s.rows)
    panel_tasks = tile_count(panels)

    module = Module(cpu)

    @module.stage("depthwise", p.n * panel_tasks * row_tasks)
    def write_depthwise(k: Kernel, task: Index) -> None:
        row, rest = task % row_tasks, task // row_tasks
        panel, image = rest % panel_tasks, rest // panel_tasks
        for v in panels:
            with v.when(k, panel) as first:
                tail = p.oc % channels if plain and v is panels[-1] else 0
                vectors = consecutive((1, v.size - (tail > 0)), (1, int(tail > 0)))
                for some in vectors:
                    kept = (some is vectors[-1] and tail) or channels
                    with some.loop(k) as i:
                        number = i + first
                        vector = WordVector(
                            k, p, io, dot, s.hold, heights, image, number, channels, kept
                        )
                        for y in y_tiles:
                            with y.loop(k, row * s.rows, row * s.rows + s.rows) as top:
                                for x in x_tiles:
                                    with x.loop(k) as left:
                                        vector.tile(y.size, x.size, top, left)

    return module.program(io, lambda w: pack_words(w, p, channels, cpu.lanes, heights, dot))


@dataclass(frozen=True)
class _Vector:
    """One vector of channels of an image: how its register tiles are computed."""

    k: Kernel
    p: ConvProblem
    s: Schedule
    io: Io
    span: Span
    image: Int
    number: Int
    kept: int  # output channels that there are

    def tile(self, height: int, width: int, top: Int, left: Int) -> None:
        """Compute height x width outputs from row `top` and column `left` on."""
        k, p, io, span, number = self.k, self.p, self.io, self.span, self.number
        needed = self.kept // p.group_oc * max(p.group_c, p.group_oc)
        lanes = min(span.lanes, k.cpu.lanes_for(needed))
        acc = k.tile(height, width, lanes)
        types = p.precision
        bias = k.argument("bias", span.outputs, dtype=types.sums).load(number, lanes=lanes)
        acc.fill(k.const(0.0, lanes) if types.integer else bias)
        src = k.tensor("src", io.src, y=-p.padding[0], x=-p.padding[1]).at(self.image)
        window = at_channel(src, io.src, number, span.inputs)
        corner = window.at(0, 0, top * p.stride[0], left * p.stride[1])
        self._add_products(acc, corner, top, left)
        dst = self._outputs("dst", io.dst, top, left)
        add = self._outputs("add", io.add, top, left) if p.add else None
        for i, j in acc:
            residual = add.load(0, 0, i, j, lanes=lanes) if add else None
            total = acc[i, j].to(I32) + bias if types.integer else acc[i, j]
            channel = number * span.outputs if types.integer else 0
            dst.store_first(finish(p, total, residual, channel), self.kept, 0, 0, i, j)

    def _add_products(self, acc: Tile, corner: Buffer, top: Int, left: Int) -> None:
        """Add the whole filter window's products; `corner` is the tile's first input pixel."""
        k, p, span, kw, lanes = self.k, self.p, self.span, self.p.kernel[1], acc.lanes
        weights = k.argument("weights", span.lanes * p.depth).at(self.number)
        weights = weights.strided(span.lanes * p.group_c * kw, span.lanes * kw, span.lanes)
        columns = (acc.cols - 1) * p.stride[1] + (kw - 1) * p.dilation[1] + 1
        # Where a tile's place is known, columns of padding are left out.
        inside = range(columns)
        if isinstance(left, int) and not p.precision.integer:
            before = p.padding[1] - left * p.stride[1]
            inside = range(max(before, 0), min(before + p.w, columns))
        with self._input_rows(acc, top) as rows:
            for iy, uses in rows:
                taps = weights if self.s.hold else weights.opaque()
                for channel in range(p.group_c):
                    w: dict[tuple[int, int], Vec] = {}
                    for ix in inside:
                        found = pairs_at(ix, acc.cols, kw, p.stride[1], p.dilation[1])
                        if not found:
                            continue
                        pixel = corner.load(0, 0, iy, ix, lanes=lanes)
                        x = _spread(k, pixel.to(F32), p, channel)
                        for (ox, kx), (oy, ky) in product(found, uses):
                            if (oy, kx) not in w:
                                w[oy, kx] = taps.load(ky, channel, kx, lanes=lanes)
                            acc[oy, ox] = fma(x, w[oy, kx], acc[oy, ox])

    @contextmanager
    def _input_rows(
        self, acc: Tile, top: Int
    ) -> Iterator[Iterable[tuple[Int, Sequence[tuple[int, Int]]]]]:
        """Rows of input with the tile's rows that use each, as (row, its row of the filter).

        They are all in straight code, or those of one row of the filter in a loop, which leaves
        out rows of padding.
        """
        p, (kh, step, apart) = self.p, (self.p.kernel[0], self.p.stride[0], self.p.dilation[0])
        short = acc.rows * acc.cols * p.depth <= STRAIGHT
        if short and (self.s.hold or share_met(p, 0, acc.rows) >= MET):
            rows = range((acc.rows - 1) * step + (kh - 1) * apart + 1)
            used = ((iy, pairs_at(iy, acc.rows, kh, step, apart)) for iy in rows)
            yield ((iy, uses) for iy, uses in used if uses)
        else:
            first, end = met_taps(p, 0, top, acc.rows) or (0, kh)
            with self.k.loop(first, self.k.index(end)) as ky:
                yield ((ky * apart + oy * step, [(oy, ky)]) for oy in range(acc.rows))

    def _outputs(self, name: str, where: Placement, top: Int, left: Int) -> Buffer:
        tensor = self.k.tensor(name, where).at(self.image)
        return at_channel(tensor, where, self.number, self.span.outputs).at(0, 0, top, left)


def pack(weights: NDArray[Any], p: ConvProblem, span: Span) -> Array:
    """Weights (oc, c/groups, kh, kw) -> float32 (vector, kh, c/groups, kw, lane).

    Idle lanes are zero.
    """
    vectors = -(-p.oc // span.outputs)
    filled = np.zeros((vectors * span.outputs, *weights.shape[1:]), np.float32)
    filled[: p.oc] = weights
    packed = np.zeros((vectors, p.kernel[0], p.group_c, p.kernel[1], span.lanes), np.float32)
    packed[..., : span.outputs] = filled.reshape(
        vectors, span.outputs, *weights.shape[1:]
    ).transpose(0, 3, 2, 4, 1)
    return packed.reshape(-1)


def _spread(k: Kernel, x: Vec, p: ConvProblem, channel: int) -> Vec:
    """Input channel `channel` of every group in all the lanes of the group's outputs."""
    order = [min(i // p.group_oc * p.group_c + channel, x.lanes - 1) for i in range(x.lanes)]
    return x if order == list(range(x.lanes)) else k.shuffle(x, x, order)


template = KernelTemplate(
    "depthwise",
    Schedule,
    why_not,
    heuristic,
    build,
    rank=lambda p, cpu: 4,
    takes=lambda types, cpu: types == Types() or types.integer,
    grain=lambda p, s: int(s.tile_h),
)

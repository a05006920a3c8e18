"""Direct convolution on a register tile of pixels x output channels.

Pixels are broadcast from the activations where they lie. Weights stream from packed panels. Every
output is accumulated over all of K in registers and stored once. The input may have any layout (a
first layer's is NCHW); the output is NHWC or NCHWc, so that a vector holds neighbouring channels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from numpy.typing import NDArray

from fastrun.kernels.codegen.blocking import block_of_k, input_span, strip
from fastrun.kernels.codegen.builder import (
    Buffer,
    Index,
    Int,
    Kernel,
    Module,
    Tile,
    Vec,
    at_channel,
    outcomes,
)
from fastrun.kernels.codegen.chunks import Chunk, chunk_loop
from fastrun.kernels.codegen.dot import Dot, dot_of, dots, reads_less, table_room, usual_dot
from fastrun.kernels.codegen.epilogue import finish_run, longest_run
from fastrun.kernels.codegen.half import unscale, weights_at
from fastrun.kernels.codegen.micro_kernel import check_tile, outer_product, registers
from fastrun.kernels.codegen.packing import pack_panels
from fastrun.kernels.codegen.reduction import Taps, met_taps, reduction, share_met
from fastrun.kernels.codegen.tile_choice import best_tile, tiles_per_task
from fastrun.kernels.codegen.tiling import (
    channel_lanes,
    channel_panels,
    check_groups,
    cover,
    cut,
    task_order,
    tile_count,
)
from fastrun.kernels.core.cpu import CACHE_LINE, Cpu, whole_lines
from fastrun.kernels.core.dtype import F32, I32, S8
from fastrun.kernels.core.layout import READ_SLACK, Placement, layout_pair
from fastrun.kernels.core.levels import Block, register_tile
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program, channel_table
from fastrun.kernels.core.template import LARGEST, KernelTemplate, check, check_sizes

# The share of the filter's columns from which on skipping the others takes longer than it saves.
MET = 0.95

# Columns of output below which a first layer's tiles may have several rows.
FEW_COLUMNS = 8

# Numbers that a task rounds, if the input must be rounded first.
ROUNDED = 1 << 13
# Pixels of which a task sums the input under the filter.
SUMMED = 64


@dataclass(frozen=True)
class Schedule:
    layout: str
    tile_h: int  # output rows of a register tile
    tile_w: int  # output columns of a register tile
    cols: int  # vectors of output channels of a register tile
    unroll: int  # steps of K in the loop body
    rows: int  # register tiles of a task: one below the other, side by side in a single row
    oc_outer: bool  # tasks run through the image for each panel of weights, else the reverse
    columns: str = ""  # register tiles, side by side, of a task; "": whole rows
    kc: str = ""  # input channels of a block of K; "": all
    prefetch: int = 0  # steps of K by which weights are fetched ahead into L2; 0: no prefetch
    dot: str = ""  # the kind of dot product, of those for the types and the processor


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    return None


def usual_layout(p: ConvProblem, cpu: Cpu) -> str:
    """The layouts of the heuristic's schedule. A first layer reads NCHW."""
    block = cpu.block
    grouped = p.groups > 1 and (p.group_c % block or p.group_oc % block)
    layout = "NHWC" if grouped or p.precision.src is not F32 else f"NCHW{block}c"
    return f"NCHW>{layout}" if _first(p, cpu) else layout


def _first(p: ConvProblem, cpu: Cpu) -> bool:
    return p.c < cpu.block and p.groups == 1 and not p.types


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    layout, first = usual_layout(p, cpu), _first(p, cpu)
    lanes = channel_lanes(p.group_oc, layout_pair(layout)[1], cpu, p.precision)
    # A first layer has few terms for each output, so writing along rows matters most.
    height = 1 if first and p.ow >= FEW_COLUMNS else p.oh
    shape = height, p.ow, -(-p.group_oc // lanes)
    kind = usual_dot(p, cpu)
    depth = kind.groups(p.group_c) * p.kernel[0] * p.kernel[1]
    share = functools.cache(functools.partial(share_met, p, 0))
    tile_h, tile_w, cols = best_tile(*shape, cpu, depth, share, kind.spare, kind.widens)
    width = cols * lanes
    kc = p.group_c if first else block_of_k(p, tile_h * tile_w, width, cpu.block, 0, cpu)
    panel = p.precision.weights.bytes(kc * p.kernel[0] * p.kernel[1] * width)
    rows, across = strip(p, tile_h, tile_w, -(-shape[2] // cols), panel, cpu)
    if _single_row(p):
        # The input of a task fits half of L2, while the panels stream through.
        fit = cpu.l2 // 2 // p.precision.src.bytes(p.group_c * p.stride[1] * tile_w)
        rows, across = tiles_per_task(-(-p.ow // tile_w), fit, cpu), -(-p.ow // tile_w)
    return Schedule(
        layout,
        tile_h,
        tile_w,
        cols,
        usual_unroll(p, cpu),
        rows=rows,
        oc_outer=first,
        dot=kind.name,
        columns="" if across == -(-p.ow // tile_w) else str(across),
        kc="" if kc == p.group_c else str(kc),
    )


def usual_unroll(p: ConvProblem, cpu: Cpu) -> int:
    """Steps of K in a loop body: groups of channels of more would spill where registers are few."""
    return 2 if p.precision.integer and cpu.registers == 16 else 8


def _single_row(p: ConvProblem) -> bool:
    """Whether the image is one row, as sound and text are, so that it can be one column as well."""
    one = p.h == p.kernel[0] == 1 and p.padding[0] == p.padding[2] == 0
    return one and not p.precision.integer


def levels(p: ConvProblem, s: Schedule, cpu: Cpu) -> list[Block]:
    """The blocks of a schedule."""
    types = p.precision
    dot = dot_of(types, s.dot, cpu)
    lanes = channel_lanes(p.group_oc, layout_pair(s.layout)[1], cpu, types)
    tile_h, tile_w = min(s.tile_h, p.oh), min(s.tile_w, p.ow)
    pixels, cols = tile_h * tile_w, min(s.cols, -(-p.group_oc // lanes))
    across = int(s.columns or -(-p.ow // s.tile_w))
    height, wide = tile_h * s.rows, tile_w * across
    if _single_row(p):
        height, wide = 1, tile_w * s.rows
    task = input_span(p, min(p.oh, height), min(p.ow, wide))
    found = [
        register_tile(
            cpu,
            "tile_h, tile_w, cols",
            registers(pixels, cols) + dot.registers,
            f"sums of {tile_h}x{tile_w} pixels by {cols} vectors of channels",
        )
    ]
    kc = int(s.kc or p.group_c)
    terms, panel = kc * p.kernel[0] * p.kernel[1], cols * lanes
    if types.weights.bytes(terms * panel) + types.src.bytes(terms * pixels) <= cpu.l1:
        size = types.weights.bytes(terms * panel) + types.src.bytes(terms * pixels)
        holds = f"a panel of weights and a tile's pixels, {kc} channels of each"
        found.append(Block("L1", "kc", holds, "the most channels that fit L1", size))
        beside = 0
    else:
        beside = types.weights.bytes(terms * panel)
    if not s.oc_outer:
        holds = f"the input of a task, {s.rows} by {across} register tiles"
        holds += ", and a panel of weights" if beside else ""
        found.append(
            Block("L2", "rows, columns", holds, "the input fills half of L2", task + beside)
        )
        weights, strips = types.weights.bytes(p.oc * p.depth), -(-p.oh // (s.tile_h * s.rows))
        if strips * -(-p.ow // (s.tile_w * across)) > 1 and weights > cpu.l2 // 2:
            holds = "all weights, which each task reads again"
            found.append(Block("L3", "oc_outer", holds, "no block: all weights", weights))
    elif beside:
        holds = "a panel of weights, which all tasks of the image read again"
        found.append(Block("L2", "oc_outer", holds, "no block: a panel", beside))
    return found


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s, "prefetch")
    # The one row of a band lies in an image of several.
    alone = all(x.h == 1 and not x.halo[0] and not x.halo[2] for x in (io.src, io.dst, io.add))
    if _single_row(p) and alone:
        return _of_a_row(p, s, cpu, io)
    return _of_rows(p, s, cpu, io)


def _of_a_row(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    """The kernel for an image of one row, as one column: parts of it are tasks, as rows are."""
    (_, left, _, right), (_, step), (_, apart) = p.padding, p.stride, p.dilation
    column = replace(
        p, h=p.w, w=1, kernel=(p.kernel[1], 1), stride=(step, 1), padding=(left, 0, right, 0),
        dilation=(apart, 1),
    )  # fmt: skip
    flat = Io(_column(io.src), _column(io.dst), _column(io.add), io.gathered)
    program = _of_rows(column, replace(s, tile_h=s.tile_w, tile_w=1, columns=""), cpu, flat)

    def pack(weights: NDArray[Any]) -> NDArray[Any]:
        return program.pack_weights(weights.reshape(column.weight_shape))

    return replace(program, io=io, pack_weights=pack)


def _column(where: Placement) -> Placement:
    """The pixels of a row one below the other."""
    _, left, _, right = where.halo
    return replace(where, h=where.w, w=1, halo=(left, 0, right, 0))


def _of_rows(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    dst_layout = io.dst.layout
    check(dst_layout.name != "NCHW", "direct writes NHWC or NCHWc")
    check(not io.gathered or io.src.layout.name == "NHWC", "channels are gathered from NHWC only")
    dot = dot_of(p.precision, s.dot, cpu)
    check(dot.group == 1 or not io.gathered, f"dot={dot.name} cannot gather channels")
    kc = _block_of_k(p, s, io)
    window = _Window.of(p, io, dot, kc)
    check(
        window.whole, f"dot={dot.name} needs {dot.group} channels side by side, not {window.block}"
    )
    check_groups(p, io)
    lanes = channel_lanes(p.group_oc, dst_layout, cpu, p.precision)
    # A block of channels is stored whole, with its padding channels.
    tail = p.group_oc % lanes if dst_layout.name == "NHWC" else 0
    panels = channel_panels(p.group_oc, lanes, s.cols, split_tail=tail > 0)
    y_tiles, x_tiles = cover(p.oh, s.tile_h), cover(p.ow, s.tile_w)
    for y, x, v in product(y_tiles, x_tiles, panels):
        check_tile(cpu, y.size * x.size, v.size, min(s.unroll, p.depth), dot.registers)
    per_row = _number(s.columns, "columns") or tile_count(x_tiles)
    across = -(-tile_count(x_tiles) // per_row)
    row_tasks = -(-tile_count(y_tiles) // s.rows) * across
    panel_tasks = tile_count(panels)
    skips = window.kernel == p.kernel and share_met(p, 1, x_tiles[0].size) < MET

    module, where, sums = Module(cpu), io.src, p.precision.sums
    if dot.rounds:
        where = _rounded(module, io, dot, p)
    if dot.centred:
        _sums(module, p, io, dot, window)

    @module.stage("direct", p.n * p.groups * row_tasks * panel_tasks)
    def write_direct(k: Kernel, task: Index) -> None:
        row, panel, rest = task_order(task, row_tasks, panel_tasks, s.oc_outer)
        group, image = rest % p.groups, rest // p.groups
        source = "shared" if dot.rounds else "src"
        src = k.tensor(source, where, y=-p.padding[0], x=-p.padding[1]).at(image)
        if not io.gathered:
            src = at_channel(src, io.src, group, p.group_c)
        terms = window.steps * window.kernel[0] * window.kernel[1] * dot.width
        width = panels[-1].end * lanes
        strides = (width * terms, lanes * terms)
        table = channel_table(p.c) if io.gathered else table_room(dot, p.groups * width)
        weights, scales = weights_at(k, dot.types.weights, p.groups * width, *strides, table=table)
        first, left_tile = (row, 0) if across == 1 else (row // across, row % across * per_row)
        first = first * s.rows
        of_row = (left_tile, left_tile + per_row) if across > 1 else ()
        for v in panels:
            with v.when(k, panel) as vector:
                packed = weights.at(group, vector).strided(v.size * lanes * dot.width, 1)
                scale = scales.strided(width, lanes).at(group, vector) if scales else None
                kept = tail if v is panels[-1] else 0
                outputs = _Outputs(
                    k,
                    p,
                    s,
                    io,
                    dot,
                    window,
                    width,
                    lanes,
                    kept,
                    image,
                    group,
                    vector,
                    packed,
                    scale,
                    _fetches(p, io, cpu),
                )
                for blocks in cut(p.group_c, kc):
                    with chunk_loop(k, blocks) as chunk:
                        for y in y_tiles:
                            with y.loop(k, first, first + s.rows) as top:
                                rows = met_taps(p, 0, top, y.size)
                                for x in x_tiles:
                                    with x.loop(k, *of_row) as left:
                                        columns = met_taps(p, 1, left, x.size) if skips else None
                                        acc = k.tile(y.size * x.size, v.size, lanes, sums)
                                        at = (top, left, x.size)
                                        outputs.compute(acc, chunk, src, at, (rows, columns))

    shared = where.dtype.bytes(where.size + READ_SLACK) if dot.rounds else 0
    shared += I32.bytes(p.n * p.groups * p.oh * p.ow) if dot.centred else 0

    def pack(w: NDArray[Any]) -> NDArray[Any]:
        return pack_panels(window.filters(w), p.groups, window.block, lanes, panels, dot)

    return module.program(io, pack, shared)


def _rounded(module: Module, io: Io, dot: Dot, p: ConvProblem) -> Placement:
    """A stage that rounds all input to the type of the weights, and where it lies in `shared`."""
    src, lanes = io.src, module.cpu.lanes
    whole = (src.first, src.buffer_c, src.block % dot.group) == (0, src.c, 0)
    check(whole, f"dot={dot.name} needs whole groups of {dot.group} channels of a whole tensor")
    chunks = cut(src.size, ROUNDED)

    @module.stage("round", tile_count(chunks))
    def write_round(k: Kernel, task: Index) -> None:
        for chunk in chunks:
            with chunk.when(k, task) as first:
                before = k.argument("src", 1).at(first)
                after = k.argument("shared", 1, dtype=p.precision.weights).at(first)
                for some in cut(chunk.size, lanes):
                    with some.loop(k) as at:
                        value = before.load(at, lanes=lanes).to(after.dtype)
                        after.store_first(value, some.size, at)

    return replace(src, layout=src.layout.of(p.precision.weights))


def _sums(module: Module, p: ConvProblem, io: Io, dot: Dot, window: _Window) -> None:
    """A stage that sums the input under the filter for each group and output pixel, in `shared`.

    The sums are products with ones.
    """
    strips, lanes = cut(p.oh, max(1, SUMMED // p.ow)), module.cpu.lanes
    (kh, kw), size = window.kernel, 4 * lanes
    count = tile_count(strips)

    @module.stage("sums", p.n * p.groups * count)
    def write_sums(k: Kernel, task: Index) -> None:
        strip, rest = task % count, task // count
        group, image = rest % p.groups, rest // p.groups
        src = k.tensor("src", io.src, y=-p.padding[0], x=-p.padding[1]).at(image)
        src = at_channel(src, io.src, group, p.group_c)
        of_group = k.argument("shared", p.oh * p.ow, dtype=I32).at(rest).strided(p.ow, 1)
        for some in strips:
            with some.when(k, strip) as top, k.loop(some.size) as row, k.loop(p.ow) as x:
                y, total = top + row, k.tile(1, 1, lanes, I32)
                total.fill(k.const(0, lanes, I32))
                corner = src.at(0, 0, y * p.stride[0], x * p.stride[1])
                for blocks in cut(window.channels, window.block):
                    with k.times(blocks.count) as number, k.times(kh) as ky, k.times(kw) as kx:
                        tap = (number + blocks.number, ky * p.dilation[0], kx * p.dilation[1])
                        for parts in cut(blocks.size, size):
                            ones = [1] * parts.size + [0] * (size - parts.size)
                            with parts.loop(k) as first:
                                pixels = corner.load(0, *tap, first, lanes=size)
                                products = dot.prepare(pixels), (k.literal(ones, S8),)
                                total[0, 0] = dot.add(total[0, 0], *products)
                name = f"llvm.vector.reduce.add.v{lanes}i32"
                taken = dot.offset * window.channels * kh * kw
                of_group.store(k.target(name, I32, 1, total[0, 0]) + taken, y, x)


def _number(text: str, name: str) -> int:
    """A field's number, 0 where it is empty.

    Raises:
        ScheduleError: it is no number.
    """
    check(
        not text or (text.isdecimal() and 0 < int(text) <= LARGEST), f"{name}={text}: not a number"
    )
    return int(text or 0)


def _block_of_k(p: ConvProblem, s: Schedule, io: Io) -> int:
    """The input channels of a block of K.

    Raises:
        ScheduleError: the sums cannot be interrupted there.
    """
    kc = _number(s.kc, "kc")
    if not kc or kc == p.group_c:
        return p.group_c
    check(not p.types, f"kc={s.kc}: sums of {p.types} are not interrupted")
    check(p.group_c % kc == 0, f"kc={s.kc} does not divide {p.group_c} channels")
    whole = io.gathered or not io.src.layout.blocked or kc % io.src.block == 0
    check(whole, f"kc={s.kc} is not whole channel blocks of {io.src.layout}")
    return kc


def _fetches(p: ConvProblem, io: Io, cpu: Cpu) -> bool:
    """Whether a tile fetches the pixels of the next one: of images that L2 cannot have kept."""
    src = io.src
    blocked = bool(src.layout.blocked) and p.kernel != (1, 1) and not p.types
    return blocked and src.dtype.bytes(src.size) > cpu.l2


def _read_next(p: ConvProblem, height: int, width: int) -> tuple[range, range]:
    """Rows and columns of the input that the next register tile reads, and this one does not."""
    (sy, sx), (dy, dx) = p.stride, p.dilation
    end = (width - 1) * sx + (p.kernel[1] - 1) * dx + 1
    return range((height - 1) * sy + (p.kernel[0] - 1) * dy + 1), range(end, end + width * sx)


@dataclass(frozen=True)
class _Window:
    """What the loop over K runs through: `channels` in blocks under each of the `kernel`'s taps.

    Where pixels have no gaps between them a filter's row is one run of numbers. Its columns then
    count as channels, if the channels alone would not fill groups: a row of 7x3 bytes is 6 groups
    of 4 instead of 7.
    """

    dot: Dot
    channels: int
    block: int
    kernel: tuple[int, int]

    @classmethod
    def of(cls, p: ConvProblem, io: Io, dot: Dot, kc: int) -> _Window:
        """The window of a group of channels, in blocks of K of `kc` channels."""
        (kh, kw), dense = p.kernel, io.src.x_stride == p.c and p.dilation[1] == 1
        if dense and kw > 1 and p.groups == 1 and p.c % dot.group:
            return cls(dot, kw * p.c, kw * p.c, (kh, 1))
        block = kc if io.gathered else min(io.src.block, kc)
        return cls(dot, p.group_c, block, p.kernel)

    @property
    def whole(self) -> bool:
        """Whether groups do not reach beyond blocks, except beyond the last."""
        return self.block == self.channels or self.block % self.dot.group == 0

    @property
    def steps(self) -> int:
        """Groups of channels in all blocks."""
        full, rest = divmod(self.channels, self.block)
        return full * self.dot.groups(self.block) + self.dot.groups(rest)

    def filters(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Weights (oc, c / groups, kh, kw) as (oc, channels, *kernel)."""
        if self.kernel == weights.shape[2:]:
            return weights
        rows = weights.transpose(0, 3, 1, 2)  # oc, kw, c, kh
        return rows.reshape(len(weights), self.channels, *self.kernel)


@dataclass(frozen=True)
class _Outputs:
    """One panel of output channels: how its register tiles are computed.

    Rows of a register tile are pixels, `width` to a line of the image.
    """

    k: Kernel
    p: ConvProblem
    s: Schedule
    io: Io
    dot: Dot
    window: _Window
    width: int  # packed output channels of a group
    lanes: int
    tail: int  # channels of the last vector, 0 where it is full
    image: Int
    group: Int
    vector: Int  # the first of the panel
    weights: Buffer  # of the panel: (term of K, channel)
    scales: Buffer | None  # of the panel: (group, vector)
    fetches: bool  # pixels of the next register tile

    def compute(
        self,
        acc: Tile,
        chunk: Chunk,
        src: Buffer,
        at: tuple[Int, Int, int],
        met: tuple[Taps, Taps],
    ) -> None:
        """The outputs of a register tile, or their sums over the blocks of K so far.

        `at` is the tile's first pixel and its width, `met` are the filter's rows and columns that
        must run.
        """
        top, left, width = at
        for is_first in outcomes(chunk.first):
            with self.k.when(chunk.first, is_first):
                self._start(acc, *at) if is_first else self._resume(acc, *at)
        sy, sx = self.p.stride
        self._add_products(acc, chunk, src.at(0, 0, top * sy, left * sx), width, met)
        for is_last in outcomes(chunk.last):
            with self.k.when(chunk.last, is_last):
                if is_last:
                    self._finish(acc, top, left, width)
                else:
                    self._interrupt(acc, top, left, width)

    def _start(self, acc: Tile, top: Int, left: Int, width: int) -> None:
        """Begin with the bias, which then need not be added unless weights are scaled.

        To it belongs what the middles of centred weights add.
        """
        for j in range(acc.cols):
            value = self.k.const(0.0, self.lanes) if self.scales else self._bias(j)
            for i in range(acc.rows):
                acc[i, j] = value
            if self.dot.centred:
                middle = self._table(int(self.dot.offset > 0), j)
                for i in range(acc.rows):
                    pixel = top + i // width, left + i % width
                    acc[i, j] = value + middle * self._pixel_sum(*pixel)

    def _bias(self, j: int) -> Vec:
        sums = self.p.precision.sums
        place, lanes = (self.group, self.vector + j), self.lanes
        value = self.k.argument("bias", self.p.group_oc, lanes, dtype=sums).load(
            *place, lanes=lanes
        )
        return value + self._table(0, j) if self.dot.offset else value

    def _table(self, number: int, j: int) -> Vec:
        """What a table in front of the weights has for a vector of channels: see `table_room`."""
        start = number * whole_lines(self.p.groups * self.width)
        table = self.k.argument("weights", self.width, self.lanes, offset=start, dtype=I32)
        return table.load(self.group, self.vector + j, lanes=self.lanes)

    def _pixel_sum(self, y: Int, x: Int) -> Vec:
        """The sum of the input under the filter at an output pixel, in every lane."""
        p = self.p
        strides = p.groups * p.oh * p.ow, p.oh * p.ow, p.ow, 1
        sums = self.k.argument("shared", *strides, dtype=I32)
        return sums.splat(self.image, self.group, y, x, lanes=self.lanes)

    def _resume(self, acc: Tile, top: Int, left: Int, width: int) -> None:
        """Go on with the sums of the blocks of K before."""
        for j, dst in self._columns_of("dst", self.io.dst, acc, top, left):
            for i in range(acc.rows):
                acc[i, j] = dst.load(0, 0, i // width, i % width, lanes=self.lanes)

    def _interrupt(self, acc: Tile, top: Int, left: Int, width: int) -> None:
        """Leave the sums in the output until the next block of K."""
        for j, dst in self._columns_of("dst", self.io.dst, acc, top, left):
            kept = self.tail if self.tail and j == acc.cols - 1 else self.lanes
            for i in range(acc.rows):
                dst.store_first(acc[i, j], kept, 0, 0, i // width, i % width)

    def _columns_of(
        self, name: str, where: Placement, acc: Tile, top: Int, left: Int
    ) -> Iterator[tuple[int, Buffer]]:
        """Each vector of a register tile, and where its first pixel lies."""
        for j in range(acc.cols):
            yield j, self._channels(name, where, j).at(0, 0, top, left)

    def _add_products(
        self, acc: Tile, chunk: Chunk, corner: Buffer, width: int, met: tuple[Taps, Taps]
    ) -> None:
        """Add the filter window's products over a block of K.

        `corner` is the first input pixel of the tile.
        """
        p, s, io, dot, lanes = self.p, self.s, self.io, self.dot, self.lanes
        (sy, sx), (dy, dx) = p.stride, p.dilation
        offsets = [(0, 0, i // width * sy, i % width * sx) for i in range(acc.rows)]
        table = self.k.argument("weights", p.group_c, 1)
        window, whole = self.window, chunk.channels == p.group_c
        steps = window.steps if whole else chunk.channels
        weights = self.weights.at(chunk.number * (steps * window.kernel[0] * window.kernel[1]))
        begin = chunk.number * chunk.channels
        if not io.gathered:
            corner = at_channel(corner, io.src, chunk.number, chunk.channels)

        def step(b: Int, ky: Int, kx: Int, lane: Int, position: Int) -> None:
            # LLVM would keep pixels of several steps or taps in registers and run out of them.
            overlapping = dot.group > 1 or (isinstance(kx, int) and p.kernel[1] > 1)
            here = corner.after(acc[0, 0]) if overlapping else corner
            pixels = [here.at(*offset) for offset in offsets]
            lane = table.index(self.group, lane + begin) if io.gathered else lane * dot.group
            at = (0, b, ky * dy, kx * dx, lane)
            across = lanes * dot.width
            line = weights.dtype.count(CACHE_LINE)
            for first in range(0, acc.cols * across if s.prefetch else 0, line):
                weights.prefetch(position + s.prefetch, first, level=2)
            outer_product(
                acc,
                (dot.pixel(pixel, *at, lanes=lanes) for pixel in pixels),
                (dot.weights(weights, position, j * across, lanes=lanes) for j in range(acc.cols)),
                dot.add,
            )

        def fetch_next(b: Int) -> None:
            if far:
                for pixel in [corner.at(*offset) for offset in offsets]:
                    pixel.prefetch(0, b + 1, 0, 0, 0)
            for y, x in product(*ahead):
                corner.prefetch(0, b, y, x, level=2)

        # The processor cannot foresee where the next block of channels lies, and a 1x1 filter
        # gives it little time to find out.
        far = io.src.blocks > 1 and p.kernel == (1, 1)
        # Nor that a tile reads on where the one before it ended, since it has read elsewhere since.
        ahead = _read_next(p, acc.rows // width, width) if self.fetches else (range(0), range(0))
        block = dot.groups(window.block)
        reduction(self.k, steps, block, window.kernel, s.unroll, step, *met, fetch_next)

    def _finish(self, acc: Tile, top: Int, left: Int, width: int) -> None:
        """Add the residual, apply the activation, store."""
        p, lanes = self.p, self.lanes
        # Vectors that lie side by side are finished together: those of a pixel, or of a row.
        places = (self.io.dst, self.io.add) if p.add else (self.io.dst,)
        across = self.io.dst.x_stride == lanes and not self.tail
        row = acc.rows if all(x.y_stride == width * x.x_stride for x in places) else width
        longest = longest_run(p) if across or self.io.dst.blocks == 1 else 1
        runs = _runs(acc, longest, row) if across else _runs_of_channels(acc, longest)
        started = -1
        for cells in runs:
            i, j = cells[0]
            if j != started:
                started = j
                dst = self._channels("dst", self.io.dst, j).at(0, 0, top, left)
                add = self._channels("add", self.io.add, j).at(0, 0, top, left) if p.add else None
            pixel = (0, 0, i // width, i % width)
            adds = [add.load(*pixel, n * lanes, lanes=lanes) if add else None
                    for n in range(len(cells))]  # fmt: skip
            totals = [self._total(acc, *cell) for cell in cells]
            value = finish_run(p, totals, adds, [self._channel(j) for _, j in cells])
            kept = len(cells) * lanes
            if self.tail and cells[-1][1] == acc.cols - 1:
                kept += self.tail - lanes
            dst.store_first(value, kept, *pixel)

    def _total(self, acc: Tile, i: int, j: int) -> Vec:
        """A finished sum, without the power of two that 16-bit weights are scaled by."""
        total = acc[i, j]
        if not self.scales:
            return total
        return unscale(total, self.scales.load(0, j, lanes=self.lanes), self._bias(j))

    def _channel(self, j: int) -> Int:
        """The output channel where a vector of the panel begins; of float32 nothing needs it."""
        if not self.p.precision.integer:
            return 0
        return (self.vector + j) * self.lanes + self.group * self.p.group_oc

    def _channels(self, name: str, where: Placement, j: int) -> Buffer:
        tensor = self.k.tensor(name, where).at(self.image)
        tensor = at_channel(tensor, where, self.group, self.p.group_oc)
        return at_channel(tensor, where, self.vector + j, self.lanes)


def _runs(acc: Tile, longest: int, width: int) -> Iterator[list[tuple[int, int]]]:
    """Cells of a register tile in runs along rows of `width` pixels, one column after another."""
    for j in range(acc.cols):
        for row in range(0, acc.rows, width):
            for first in range(row, row + width, longest):
                yield [(i, j) for i in range(first, min(first + longest, row + width))]


def _runs_of_channels(acc: Tile, longest: int) -> Iterator[list[tuple[int, int]]]:
    """Cells of a register tile in runs along the vectors of a pixel, one pixel after another."""
    for first in range(0, acc.cols, longest):
        for i in range(acc.rows):
            yield [(i, j) for j in range(first, min(first + longest, acc.cols))]


template = KernelTemplate(
    "direct",
    Schedule,
    why_not,
    heuristic,
    build,
    gathers=True,
    takes=lambda types, cpu: bool(dots(types, cpu)),
    grain=lambda p, s: int(s.tile_h),
    streaming=reads_less,
    levels=levels,
)

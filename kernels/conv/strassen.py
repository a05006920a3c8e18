"""1x1 convolution as a matrix product by seven products of halves, where eight are usual.

Pixels, input channels and output channels are cut in two. The products are Strassen's (1969) with
Winograd's sums (1971), the fewest there are. Sums of weights are packed. Sums of pixels are made
by each task in a workspace that its cache holds (as Huang et al., 2016, make them while packing).
A register tile goes on from one product to the next, so that only three of its states are stored
beside the output, and nothing is added in memory. All products are one piece of code, in a loop.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from fastrun.kernels.codegen.builder import (
    Buffer,
    Index,
    Int,
    Kernel,
    Module,
    Tile,
    at_channel,
)
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.micro_kernel import check_tile
from fastrun.kernels.codegen.packing import pack_panels
from fastrun.kernels.codegen.sums import add_products
from fastrun.kernels.codegen.tile_choice import best_tile
from fastrun.kernels.codegen.tiling import (
    Tiles,
    channel_lanes,
    cover,
    start_of,
    tile_count,
)
from fastrun.kernels.codegen.values import Vec, least
from fastrun.kernels.conv.pointwise import in_column
from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import READ_SLACK, Array, Layout, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import (
    KernelTemplate,
    check,
    check_sizes,
    summation_error,
)

# Products of halves, and chains of them.
PRODUCTS, CHAINS = 7, 3

# The state of register tiles that is zero, behind the two that are kept.
_NOTHING = 2

# What sums for a register tile take, in the time of its products with one panel.
SUMS = 0.25

# Products by which weights are fetched ahead: the most that a register tile adds in one go.
AHEAD = 3

# How many times as large as that of a plain sum the error is. Measured: 2.0 to 2.3.
AMPLIFIED = 2.4

# Sizes from which the saved products outweigh the sums. Those of an input channel are saved once
# for each output channel.
CHANNELS, FILTERS, PIXELS = 96, 192, 48


@dataclass(frozen=True)
class Schedule:
    layout: str
    rows: int  # pixels of a register tile, of one half
    cols: int  # vectors of output channels of a register tile, of one half
    unroll: int  # input channels in the loop body
    tiles: int  # register tiles, along the pixels, of a task
    parts: int  # tasks among which the output channels of the same pixels are shared
    prefetch: int = 0  # products by which weights are fetched ahead into L2; 0: no prefetch


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.kernel != (1, 1) or p.groups > 1:
        return "the convolution is no product of matrices"
    if p.stride != (1, 1) or any(p.padding):
        return "pixels are strided or padded"
    if p.c % (2 * cpu.block) or p.oc % (2 * cpu.block):
        return "halves of the channels are not whole vectors"
    return None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    layout = Layout(f"NCHW{cpu.block}c")
    lanes, half, depth = channel_lanes(p.oc, layout, cpu), _half(p.h * p.w), p.c // 2
    vectors = p.oc // 2 // lanes
    _, rows, cols = best_tile(1, half, vectors, cpu, depth)
    heights, panels = tile_count(cover(half, rows)), tile_count(cover(vectors, cols))
    # The left operands of a chain of products fit half of L2 beside a stream of weights.
    least_chunks = -(-heights * F32.bytes(AHEAD * depth * rows) // (cpu.l2 // 2))

    def cost(tasks: tuple[int, int]) -> float:
        """Register tiles of the busiest core, where sums are made for each part again."""
        chunks, parts = tasks
        rounds = -(-p.n * chunks * parts // cpu.cores)
        return rounds * -(-heights // chunks) * (-(-panels // parts) + SUMS)

    chunks, parts = min(
        product(
            range(least_chunks, least_chunks + cpu.cores), range(1, min(panels, cpu.cores) + 1)
        ),
        key=cost,
    )
    unroll = 4 if cpu.lanes == 16 else 8
    tiles = -(-heights // chunks)
    return Schedule(str(layout), rows, cols, unroll, max(1, tiles), parts, prefetch=AHEAD)


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s, "prefetch")
    for where in (io.src, io.dst, io.add):
        check(where.layout.name != "NCHW", "strassen takes NHWC or NCHWc")
    work = _Work.of(p, s, cpu, io)
    for rows in work.heights:
        for panel in work.panels:
            check_tile(cpu, rows.size, panel.size, min(s.unroll, work.depth))
    module = Module(cpu)

    @module.stage("strassen", work.images * work.chunks * work.parts)
    def write_strassen(k: Kernel, task: Index) -> None:
        part, rest = task % work.parts, task // work.parts
        chunk, image = rest % work.chunks, rest // work.chunks
        _Task(work, k, image, chunk * work.per_task, part * work.per_part).run()

    local = F32.bytes(work.room + READ_SLACK)
    return replace(module.program(io, work.pack, local_bytes=local), io=io)


@dataclass(frozen=True)
class _Work:
    """How a product is cut: pixels, input channels (`depth`) and output channels in halves.

    Register tiles are `heights` of pixels by `panels` of vectors; a task has `per_task` by
    `per_part` of them. Images without gaps between them are one. Where pixels are an odd number,
    the last row of the second half is missing.
    """

    p: ConvProblem
    s: Schedule
    io: Io
    images: int
    pixels: int
    read: int  # lanes of vectors of input channels
    lanes: int
    heights: list[Tiles]
    panels: list[Tiles]
    per_task: int
    per_part: int

    @classmethod
    def of(cls, p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> _Work:
        places = [in_column(x) if x.dense else x for x in (io.src, io.dst, io.add)]
        images, pixels = p.n, p.h * p.w
        if all(x.n_stride == pixels * x.x_stride for x in places):
            images, pixels = 1, p.n * pixels
            places = [replace(x, n=1, h=pixels) for x in places]
        src, dst, add = places
        read, lanes = (channel_lanes(c // 2, x.layout, cpu)
                       for c, x in ((p.c, io.src), (p.oc, io.dst)))  # fmt: skip
        heights = cover(_half(pixels), s.rows)
        panels = cover(p.oc // 2 // lanes, s.cols)
        parts = min(s.parts, tile_count(panels))
        return cls(
            p,
            s,
            Io(src, dst, add),
            images,
            pixels,
            read,
            lanes,
            heights,
            panels,
            min(s.tiles, tile_count(heights)),
            -(-tile_count(panels) // parts),
        )

    @property
    def half(self) -> int:
        """Pixels of the first half."""
        return _half(self.pixels)

    @property
    def depth(self) -> int:
        """Input channels of a half."""
        return self.p.c // 2

    @property
    def chunks(self) -> int:
        """Tasks along the pixels."""
        return -(-tile_count(self.heights) // self.per_task)

    @property
    def parts(self) -> int:
        """Tasks along the output channels."""
        return -(-tile_count(self.panels) // self.per_part)

    @property
    def tall(self) -> int:
        """Pixels of a task."""
        return self.per_task * self.heights[0].size

    @property
    def state(self) -> int:
        """Numbers of the register tiles of a panel, for all pixels of a task."""
        return self.tall * self.panels[0].size * self.lanes

    @property
    def room(self) -> int:
        """Numbers of a task's workspace: its left operands, and states of register tiles."""
        return PRODUCTS * self.tall * self.depth + (_NOTHING + 1) * self.state

    def pack(self, weights: Array) -> Array:
        """The right operands in reading order: panel, product, input channel, output channel."""
        w = weights.reshape(2, self.p.oc // 2, 2, self.depth).astype(np.float64)
        b11, b21, b12, b22 = w[0, :, 0], w[0, :, 1], w[1, :, 0], w[1, :, 1]
        t1, t3 = b12 - b11, b22 - b12
        t2 = b22 - t1
        right = np.concatenate([b11, b21, t2, t3, b21 - t2, t1, b22]).astype(np.float32)
        whole = right[:, :, None, None]
        packed = pack_panels(whole, PRODUCTS, self.depth, self.lanes, self.panels)
        vectors = packed.reshape(PRODUCTS, -1, self.depth * self.lanes)
        starts = [t.start + i * t.size for t in self.panels for i in range(t.count)]
        return np.concatenate([x.reshape(-1) for x in np.split(vectors, starts[1:], axis=1)])


@dataclass(frozen=True)
class _Task:
    """The tiles of pixels from number `first` on by the panels from number `panel` on."""

    work: _Work
    k: Kernel
    image: Int
    first: Int
    panel: Int

    def run(self) -> None:
        """Write the code."""
        work = self.work
        self._sums()
        with self.k.times(work.state // work.lanes) as i:
            self.states().at(_NOTHING, i * work.lanes).store(self.k.const(0.0, work.lanes))
        begin = self.panel if work.parts > 1 else 0
        for panel in work.panels:
            # The right operands of a chain stay in L2 for all pixels of the task.
            panels = panel.loop(self.k, begin, begin + work.per_part)
            with panels as vector, self.k.loop(CHAINS) as chain:
                for run in work.heights:
                    with run.loop(self.k, self.first, self.first + work.per_task) as row:
                        _Cells(self, vector, row, run.size, panel.size).chain(chain)

    def _sums(self) -> None:
        """The left operands of all products, for the pixels of the task."""
        work, k = self.work, self.k
        vectors = work.depth // work.read
        for run in work.heights:
            # Pixels of a block of channels lie together, as those of a tile do in the workspace.
            with run.loop(k, self.first, self.first + work.per_task) as row, k.times(vectors) as v:
                for i in range(run.size):
                    self._sums_of(row + i, v, vectors)

    def _sums_of(self, row: Int, v: Int, vectors: int) -> None:
        """The left operands of a pixel of each half and a vector of channels of each half."""
        work, lanes = self.work, self.work.read
        where = work.io.src
        src = self.k.tensor("src", where).at(self.image)
        # A missing row is that before it once more; what becomes of it is not stored.
        below = row + work.half if work.pixels % 2 == 0 else least(row + work.half, work.pixels - 1)
        quarters = [
            _at_pixel(at_channel(src, where, v + half * vectors, lanes), where, pixel)
            for pixel in (row, below)
            for half in (0, 1)
        ]
        a11, a12, a21, a22 = (x.load(lanes=lanes) for x in quarters)
        if where.blocks > 1:
            for quarter in quarters:
                quarter.prefetch(0, AHEAD * lanes // where.block)
        s1 = a21 + a22
        s2 = s1 - a11
        to = self.left().at(0, row - start_of(work.heights, self.first), v * lanes)
        for number, value in enumerate((a11, a12, s2, a11 - a21, a22, s1, a12 - s2)):
            to.store(value, number)

    def states(self) -> Buffer:
        """Register tiles as they were: (state, number)."""
        work = self.work
        offset = PRODUCTS * work.tall * work.depth
        return self.k.argument("local", work.state, 1, offset=offset)

    def left(self) -> Buffer:
        """The left operands: (product, pixel of the task, channel)."""
        return self.k.argument("local", self.work.tall * self.work.depth, self.work.depth, 1)


class _Cells:
    """A register tile of a task: pixels from `row` on by vectors from `vector` on, of any half."""

    def __init__(self, task: _Task, vector: Int, row: Int, rows: int, cols: int) -> None:
        self._task, self._vector, self._row = task, vector, row
        self._work, self._k = task.work, task.k
        self.acc: Tile = task.k.tile(rows, cols, task.work.lanes)

    def chain(self, number: Index) -> None:
        """One of three chains of products: 0 and 1, then 2 to 4, then 5 and 6.

        The second goes on from the state behind product 0, which becomes state 0. State 0 is then
        that behind product 2, and state 1 that behind product 3. Products 1, 4, 5 and 6 complete
        an output; to the last two these states are added. State 2 is zero: the other chains begin
        with it, and it is added to products 1 and 4.
        """
        k = self._k
        for cell in self.acc:
            self.acc[cell] = self._kept(_NOTHING - number % 2 * _NOTHING, cell)
        with k.loop(_first_of(number), _first_of(number + 1)) as product:
            self._add(product)
            continued = ~k.index(product % 3).equals(1) & ~(product >= 5)
            with k.when(continued):
                self._keep(product // 3)
            # The last rows of the output are its low half, the last columns its second half.
            low, second = k.index(product % 6) // 4, product // 5
            with k.when(~continued):
                self._finish(low, second, least(6 - product, _NOTHING))

    def _add(self, product: Index) -> None:
        """Add a product to the tile."""
        work, across = self._work, self.acc.cols * self._work.lanes
        matrix = across * work.depth
        weights = self._k.argument("weights", work.lanes * work.depth * PRODUCTS, matrix)
        columns = weights.at(self._vector, product).strided(across, work.lanes)
        rows = self._task.left().at(product, self._place).strided(work.depth, 1)
        # All pixels of a task multiply a matrix, so for each of them a share of the lines of a
        # later one is fetched. The first tile would wait for memory if it had to fetch all.
        line, unroll = F32.count(CACHE_LINE), min(work.s.unroll, work.depth)
        share = -(-matrix // (line * work.tall))
        lines = -(-share * self.acc.rows * unroll // work.depth)
        later = columns.strided(1).at(work.s.prefetch * matrix + self._place * (share * line))

        def fetch(f: Int) -> None:
            for i in range(lines if work.s.prefetch else 0):
                later.prefetch(f * (lines * line) // unroll + i * line, level=2)

        add_products(self._k, self.acc, rows, columns, work.depth, work.s.unroll, fetch)

    def _keep(self, state: Int) -> None:
        """Store the tile as it is."""
        for cell in self.acc:
            self._state(state).store(self.acc[cell], *cell)

    def _kept(self, state: Int, cell: tuple[int, int]) -> Vec:
        """A vector of the tile as it was."""
        return self._state(state).load(*cell, lanes=self._work.lanes)

    def _finish(self, low: Int, second: Int, further: Int) -> None:
        """Leave the tile, plus a `further` state, as output of these halves, each 0 or 1."""
        work, p, k = self._work, self._work.p, self._k
        vector = self._vector + second * (p.oc // 2 // work.lanes)
        first = self._row + low * work.half
        bias = k.argument("bias", work.lanes)
        shifts = [bias.load(vector + j, lanes=work.lanes) for j in range(self.acc.cols)]
        for i in range(self.acc.rows):
            perhaps = work.pixels % 2 and i == self.acc.rows - 1
            with k.when(first + i < work.pixels) if perhaps else nullcontext():
                for j, shift in enumerate(shifts):
                    total = self.acc[i, j] + shift + self._kept(further, (i, j))
                    self._store(total, vector + j, first + i)

    def _store(self, total: Vec, vector: Int, pixel: Int) -> None:
        """Store a vector of the output, with residual and activation."""
        p, io, lanes = self._work.p, self._work.io, self._work.lanes
        residual = None
        if p.add:
            residual = self._output("add", io.add, vector, pixel).load(lanes=lanes)
        self._output("dst", io.dst, vector, pixel).store(finish(p, total, residual))

    @property
    def _place(self) -> Int:
        """The first pixel's number in the task."""
        return self._row - start_of(self._work.heights, self._task.first)

    def _state(self, number: Int) -> Buffer:
        work = self._work
        across = work.panels[0].size * work.lanes
        return self._task.states().at(number, self._place * across).strided(across, work.lanes)

    def _output(self, name: str, where: Placement, vector: Int, pixel: Int) -> Buffer:
        tensor = self._k.tensor(name, where).at(self._task.image)
        return _at_pixel(at_channel(tensor, where, vector, self._work.lanes), where, pixel)


def _first_of(chain: Index) -> Index:
    """The first product of a chain: 0, 2, 5, and behind them 7."""
    return chain * 2 + chain // 2


def _at_pixel(tensor: Buffer, where: Placement, pixel: Int) -> Buffer:
    """A tensor's image, re-based at a pixel by its number."""
    return tensor.at(0, 0, pixel // where.w, pixel % where.w)


def _half(pixels: int) -> int:
    return -(-pixels // 2)


def rank(p: ConvProblem, cpu: Cpu) -> int:
    """Above other algorithms where it saves more than the sums take."""
    pays = p.c >= CHANNELS and p.oc >= FILTERS and p.h * p.w >= PIXELS
    return 3 if pays else 0


def expected_error(p: ConvProblem, s: Schedule) -> float:
    """The rms error to expect, as `KernelTemplate.error` says."""
    return AMPLIFIED * summation_error(p, s)


template = KernelTemplate(
    "strassen",
    Schedule,
    why_not,
    heuristic,
    build,
    rank=rank,
    rows_alike=False,
    error=expected_error,
    expansion=lambda p, s: PRODUCTS / 4,
)

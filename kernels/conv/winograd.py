"""Winograd convolution, engineered: a block of tiles goes through all three steps in cache.

The block is transformed into a buffer of its own, multiplied plane by plane with packed
transformed weights on the shared register tile, and transformed back with the epilogue at the
store. Vectors are runs of channels on both sides and tiles are the rows that are broadcast, so
nothing is packed or transposed on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np

from kernels.codegen.builder import Buffer, Int, Kernel, Module, at_channel, least, most
from kernels.codegen.epilogue import finish
from kernels.codegen.reduction import reduction
from kernels.codegen.tile_gemm import (
    Run,
    channel_panels,
    check_groups,
    cover,
    dispatch,
    outer_product,
    registers,
    start_of,
    sweep,
    tile_count,
)
from kernels.codegen.winograd import Transform, tile_sizes, transform_weights
from kernels.core.cpu import Cpu
from kernels.core.layout import Array, Io, Layout, Placement
from kernels.core.problem import ConvProblem
from kernels.core.template import KernelTemplate, Program, ScheduleError, check

LINE = 16  # floats of a cache line

# The heuristic takes no tile that is expected to err by more: an rms relative to the output's.
MAX_ERROR = 2e-5


@dataclass(frozen=True)
class Schedule:
    layout: str
    mh: int  # output rows of a tile; 1: no transform on that axis
    mw: int  # output columns of a tile
    points: str  # interpolation points, one of POINTS
    nr_tiles: int  # tiles of a block
    cols: int  # vectors of output channels of a register tile; its rows are tiles
    unroll: int  # steps of K in the loop body
    oc_block: int  # panels of output channels that go through the planes together
    prefetch: int  # steps of K by which weights are fetched ahead, 0: not
    split: str  # what tasks share out: tiles, or channels once all tiles are transformed


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.stride != (1, 1) or p.dilation != (1, 1):
        return "Winograd needs stride 1 and dilation 1"
    if all(r == 1 or extent == 1 for r, extent in zip(p.kernel, (p.oh, p.ow), strict=True)):
        return "no axis has both several taps and several outputs, which could share work"
    if p.groups > 1 and p.group_c == 1:
        return "a depthwise convolution sums over no channels"
    return None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    return heuristic_with_tile(p, cpu, *_best_sizes(p))


def heuristic_with_tile(p: ConvProblem, cpu: Cpu, mh: int, mw: int) -> Schedule:
    """The heuristic's schedule for tiles of mh x mw outputs."""
    block = min(16, max(4, cpu.lanes))
    grouped = p.groups > 1 and (p.group_c % block or p.group_oc % block)
    layout = Layout("NHWC" if grouped else f"NCHW{block}c")
    alphas = mh + p.kernel[0] - 1, mw + p.kernel[1] - 1
    tiles = p.n * -(-p.oh // mh) * -(-p.ow // mw)
    # One plane of a block and its products fit L1 beside a stream of weights, all planes half of
    # L2; but weights should not come by more often than for every sixteen tiles.
    bytes_per_tile = 4 * (p.group_c + 2 * block)
    fit = min(cpu.l1 // bytes_per_tile, cpu.l2 // 2 // (math.prod(alphas) * bytes_per_tile))
    enough = 2 * cpu.cores
    blocks = max(-(-tiles // max(16, fit)), min(enough, tiles // 16))
    few = blocks * p.groups < enough
    if not few:
        blocks = -(-blocks // cpu.cores) * cpu.cores
    nr_tiles = -(-tiles // blocks)
    weight_bytes = 4 * math.prod(alphas) * p.c * p.group_oc
    return Schedule(
        layout=str(layout),
        mh=mh,
        mw=mw,
        points="balanced",
        nr_tiles=nr_tiles,
        cols=_best_cols(nr_tiles, -(-p.group_oc // _lanes(layout, p.group_oc, cpu)), cpu),
        unroll=4,
        oc_block=1,
        # A stream from memory is best left to the processor.
        prefetch=64 if weight_bytes < cpu.l3 // 2 else 0,
        split="channels" if few else "tiles",
    )


def _best_cols(tiles: int, vectors: int, cpu: Cpu) -> int:
    """The narrowest panel whose smallest register tile has enough accumulators, or has most."""
    # A single vector takes more loads than products, unless those read a broadcast from memory;
    # then weights come fast enough only with more sums in flight.
    narrowest, enough = (1, 12) if cpu.lanes == LINE else (2, 10)

    def accumulators(cols: int) -> int:
        return min(enough, cover(tiles, _max_rows(cols, cpu))[-1].size * cols)

    return max(range(min(narrowest, vectors), min(4, vectors) + 1), key=accumulators)


def _best_sizes(p: ConvProblem) -> tuple[int, int]:
    """The size of tile that should cost least, counted in multiplications, and is exact enough.

    A transform costs about 6 per element and channel; a weight, which streams from L3, about 5.
    """

    def cost(m: tuple[int, int]) -> int:
        tiles = p.n * -(-p.oh // m[0]) * -(-p.ow // m[1])
        planes = (m[0] + p.kernel[0] - 1) * (m[1] + p.kernel[1] - 1)
        products = p.c * p.group_oc
        return planes * (tiles * (products + 6 * (p.c + p.oc)) + 5 * products)

    pairs = product(tile_sizes(p.kernel[0], p.oh), tile_sizes(p.kernel[1], p.ow))
    exact = [m for m in pairs if m != (1, 1) and expected_error(p, m) <= MAX_ERROR]
    return min(exact, key=cost)


def expected_error(p: ConvProblem, m: tuple[int, int], points: str = "balanced") -> float:
    """The rms error on normal data, relative to the output's.

    Sums round at every step, so their errors grow with the root of their length; the factor 1/3
    is measured, over m = 2..7 and 16 to 512 channels.
    """
    axes = (Transform.of(size, r, points) for size, r in zip(m, p.kernel, strict=True))
    eps = float(np.finfo(np.float32).eps) / 2
    return eps * math.sqrt(p.group_c) / 3 * math.prod(t.amplification for t in axes)


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    refusal = why_not(p, cpu)
    check(refusal is None, refusal or "")
    check(s.split in ("tiles", "channels"), f"split {s.split!r}: use tiles or channels")
    counts = (s.mh, s.mw, s.nr_tiles, s.cols, s.unroll, s.oc_block, s.prefetch + 1)
    check(min(counts) > 0, "sizes of tiles, blocks and panels are at least 1, prefetch at least 0")
    check("NCHW" not in (io.src.layout.name, io.dst.layout.name), "winograd takes NHWC or NCHWc")
    check_groups(p, io)
    w = _Winograd.of(p, s, cpu, io)
    blocks = tile_count(w.blocks)
    module = Module(cpu)
    if s.split == "channels":
        with module.stage("winograd_input", p.groups * blocks * w.input_vectors) as (k, task):
            vector, rest = task % w.input_vectors, task // w.input_vectors
            block, group = rest % blocks, rest // blocks % p.groups
            planes = k.argument("shared", w.input_floats).at(rest)
            w.transform_input(k, block, group, vector, planes)
        with module.stage("winograd_output", p.groups * w.passes * blocks) as (k, task):
            block, rest = task % blocks, task // blocks
            number, group = rest % w.passes, rest // w.passes % p.groups
            planes = k.argument("shared", blocks * w.input_floats, w.input_floats).at(group, block)
            products = k.argument("local")
            w.multiply(k, block, group, number, planes, products)
            w.transform_output(k, block, group, number, products)
        shared = 4 * p.groups * blocks * w.input_floats
        return module.program(io, w.pack, shared_bytes=shared, local_bytes=4 * w.product_floats)
    with module.stage("winograd", p.groups * blocks) as (k, task):
        block, group = task % blocks, task // blocks % p.groups
        planes = k.argument("local")
        with k.loop(w.input_vectors) as vector:
            w.transform_input(k, block, group, vector, planes)
        with k.loop(w.passes) as number:
            products = k.argument("local", offset=w.input_floats)
            w.multiply(k, block, group, number, planes, products)
            w.transform_output(k, block, group, number, products)
    return module.program(io, w.pack, local_bytes=4 * (w.input_floats + w.product_floats))


@dataclass(frozen=True)
class _Winograd:
    """The sizes of one kernel and the code of its three steps."""

    p: ConvProblem
    s: Schedule
    io: Io
    vertical: Transform
    horizontal: Transform
    blocks: list[Run]  # of tiles, counted through all images
    panels: list[Run]  # of vectors of output channels
    rows: int  # tiles of a register tile, at most
    input_lanes: int
    lanes: int  # of output channels

    @classmethod
    def of(cls, p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> _Winograd:
        try:
            vertical = Transform.of(s.mh, p.kernel[0], s.points)
            horizontal = Transform.of(s.mw, p.kernel[1], s.points)
        except ValueError as error:
            raise ScheduleError(str(error)) from error
        tiles = p.n * -(-p.oh // s.mh) * -(-p.ow // s.mw)
        lanes = _lanes(io.dst.layout, p.group_oc, cpu)
        input_lanes = _lanes(io.src.layout, p.group_c, cpu)
        panels = channel_panels(p.group_oc, lanes, s.cols, split_tail=False)
        rows = _max_rows(panels[0].size, cpu)
        check(rows > 0, "tile needs too many registers")
        blocks = cover(tiles, s.nr_tiles)
        return cls(p, s, io, vertical, horizontal, blocks, panels, rows, input_lanes, lanes)

    @property
    def planes(self) -> int:
        """Products of a tile for each pair of channels."""
        return self.vertical.alpha * self.horizontal.alpha

    @property
    def input_vectors(self) -> int:
        return -(-self.p.group_c // self.input_lanes)

    @property
    def passes(self) -> int:
        """Times the planes of a block are gone through, each time for some of the panels."""
        return -(-tile_count(self.panels) // self.s.oc_block)

    @property
    def input_floats(self) -> int:
        """Room for a block's transformed input."""
        return self.input_vectors * self.planes * self._plane(self.input_lanes)

    @property
    def product_floats(self) -> int:
        """Room for a block's products of one pass."""
        vectors = min(self.s.oc_block * self.panels[0].size, self.panels[-1].end)
        return vectors * self.planes * self._plane(self.lanes)

    def pack(self, weights: Array) -> Array:
        """Transformed weights in reading order: group, pass, plane, panel, term of K, channel."""
        p, width = self.p, self.panels[-1].end * self.lanes
        filters = weights.reshape(p.groups, p.group_oc, p.group_c, *p.kernel)
        taps = np.zeros((p.groups, p.group_c, width, *p.kernel), np.float32)
        taps[:, :, : p.group_oc] = filters.swapaxes(1, 2)
        sizes = [run.size * self.lanes for run in self.panels for _ in range(run.count)]
        packed = np.empty(p.groups * self.planes * p.group_c * width, np.float32)
        left = packed
        for group in taps:
            u = transform_weights(group, self.vertical, self.horizontal)
            panels = np.split(u.reshape(self.planes, p.group_c, width), np.cumsum(sizes)[:-1], 2)
            for first in range(0, len(panels), self.s.oc_block):
                through = panels[first : first + self.s.oc_block]
                count = sum(panel.size for panel in through)
                planes, left = left[:count].reshape(self.planes, -1), left[count:]
                for panel in through:
                    size = panel[0].size
                    planes[:, :size].reshape(panel.shape)[...] = panel
                    planes = planes[:, size:]
        return packed

    def transform_input(
        self, k: Kernel, block: Int, group: Int, vector: Int, memory: Buffer
    ) -> None:
        """Bt d B of one vector of channels for the tiles of a block: columns first, then rows."""
        p, lanes = self.p, self.input_lanes
        planes = self._planes(memory, lanes).at(vector)
        src = k.tensor("src", self.io.src, y=-p.padding[0], x=-p.padding[1])
        src = at_channel(at_channel(src, self.io.src, group, p.group_c), self.io.src, vector, lanes)
        height, width = self.vertical.alpha, self.horizontal.alpha
        half = k.scratch(height * width * lanes, width * lanes, lanes, 1)
        # A tile that hangs over the edge reads the last pixels again: its outputs inside do not
        # depend on them, and nothing beyond the padding is touched.
        last_y, last_x = p.oh + p.kernel[0] - 2, p.ow + p.kernel[1] - 2
        with self._tiles(k, block) as (tile, image, top, left):
            rows = [src.at(image, 0, least(top + i, last_y)) for i in range(height)]
            for x in range(width):
                column = [row.load(0, 0, 0, least(left + x, last_x), lanes=lanes) for row in rows]
                for row in rows:
                    row.prefetch(0, 0, 0, left + x + width)
                for i, value in enumerate(self.vertical.of_input(column)):
                    half.store(value, i, x)
            for y in range(height):
                line = [half.load(y, j, lanes=lanes) for j in range(width)]
                for j, value in enumerate(self.horizontal.of_input(line)):
                    planes.store(value, 0, y * width + j, tile)

    def multiply(
        self, k: Kernel, block: Int, group: Int, number: Int, inputs: Buffer, products: Buffer
    ) -> None:
        """The products of a block with the panels of pass `number`, plane by plane."""
        begin, end, first, last = self._pass(number)
        inputs = self._planes(inputs, self.input_lanes)
        products = self._planes(products, self.lanes)
        terms = self.lanes * self.p.group_c
        weights = k.argument("weights", self.planes * self.panels[-1].end * terms, terms)
        weights = weights.at(group, first * self.planes)

        def whole_block(tiles: Run, _: Int) -> None:
            def panel(v: Run, vector: Int) -> None:
                here = (last - first) * plane + (vector - first)
                packed = weights.at(0, here).strided(v.size * self.lanes, 1)
                out = products.at(vector - first, plane)

                def tile(t: Run, at: Int) -> None:
                    self._product(k, t, v, inputs.at(0, plane, at), packed, out.at(0, 0, at))

                sweep(k, cover(tiles.size, self.rows), tile)

            with k.loop(self.planes) as plane:
                sweep(k, self.panels, panel, begin, end)

        dispatch(k, self.blocks, block, whole_block)

    def _product(
        self, k: Kernel, tiles: Run, v: Run, inputs: Buffer, weights: Buffer, out: Buffer
    ) -> None:
        """A register tile: some tiles of one plane times a panel of weights, over all of K."""
        acc = k.tile(tiles.size, v.size, self.lanes)
        acc.fill(k.const(0.0, self.lanes))
        ahead = self.s.prefetch
        lines = range(0, v.size * self.lanes, LINE) if ahead else ()

        def step(b: Int, ky: Int, kx: Int, lane: Int, position: Int) -> None:
            for line in lines:
                weights.prefetch(position + ahead, line)
            done = acc[tiles.size - 1, v.size - 1]
            now, packed = inputs.after(done), weights.after(done)
            outer_product(
                acc,
                lambda i: now.splat(b, 0, i, lane, lanes=self.lanes),
                lambda j: packed.load(position, j * self.lanes, lanes=self.lanes),
            )

        reduction(k, self.p.group_c, self.input_lanes, (1, 1), self.s.unroll, step)
        for i, j in acc:
            out.store(acc[i, j], j, 0, i)

    def transform_output(
        self, k: Kernel, block: Int, group: Int, number: Int, products: Buffer
    ) -> None:
        """At m A of the vectors of pass `number`: columns first, then rows with the epilogue."""
        p, lanes = self.p, self.lanes
        _, _, first, last = self._pass(number)
        products = self._planes(products, lanes)
        width = self.horizontal.alpha
        half = k.scratch(self.s.mh * width * lanes, width * lanes, lanes, 1)

        def vectors(begin: Int, end: Int, kept: int) -> None:
            with k.loop(begin, end) as vector:
                planes = products.at(vector - first)
                dst = self._channels(k, "dst", self.io.dst, group, vector)
                add = self._channels(k, "add", self.io.add, group, vector)
                bias = k.argument("bias", p.group_oc, lanes).load(group, vector, lanes=lanes)
                with self._tiles(k, block) as (tile, image, top, left):
                    with k.loop(width) as x:
                        column = [
                            planes.load(0, x + i * width, tile, lanes=lanes)
                            for i in range(self.vertical.alpha)
                        ]
                        for i, value in enumerate(self.vertical.of_output(column)):
                            dst.prefetch(image, 0, top + i, left + x + self.s.mw, write=True)
                            half.store(value, i, x)

                    def lines(pixels: int) -> None:
                        with k.loop(least(p.oh - top, self.s.mh)) as y:
                            line = [half.load(y, j, lanes=lanes) for j in range(width)]
                            values = self.horizontal.of_output(line)[:pixels]
                            for j, value in enumerate(values):
                                at = (image, 0, top + y, left + j)
                                residual = add.load(*at, lanes=lanes) if p.add else None
                                dst.store_first(finish(p, value + bias, residual), kept, *at)

                    self._by_width(k, left, lines)

        whole = p.group_oc // lanes
        if self.io.dst.blocks == 1 and p.group_oc % lanes:
            if whole:
                vectors(first, least(last, whole), lanes)
            vectors(most(first, whole), last, p.group_oc % lanes)
        else:
            vectors(first, last, lanes)

    def _pass(self, number: Int) -> tuple[Int, Int, Int, Int]:
        """Panels [begin, end) of a pass, and their vectors."""
        begin = number * self.s.oc_block
        end = least(begin + self.s.oc_block, tile_count(self.panels))
        return begin, end, start_of(self.panels, begin), start_of(self.panels, end)

    def _plane(self, lanes: int) -> int:
        """Floats from plane to plane: an odd number of lines, which spreads them over all sets."""
        return (-(-self.blocks[0].size * lanes // LINE) | 1) * LINE

    def _planes(self, memory: Buffer, lanes: int) -> Buffer:
        """`memory` as (vector of channels, plane, tile, lane)."""
        plane = self._plane(lanes)
        return memory.strided(self.planes * plane, plane, lanes, 1)

    @contextmanager
    def _tiles(self, k: Kernel, block: Int) -> Iterator[tuple[Int, Int, Int, Int]]:
        """A loop over a block: tile in the block, image, row and column of its first output."""
        down, across = -(-self.p.oh // self.s.mh), -(-self.p.ow // self.s.mw)
        first = start_of(self.blocks, block)
        with k.loop(start_of(self.blocks, block + 1) - first) as tile:
            number = tile + first
            y, x = number // across % down, number % across
            yield tile, number // (across * down), y * self.s.mh, x * self.s.mw

    def _by_width(self, k: Kernel, left: Int, body: Callable[[int], None]) -> None:
        """`body(columns)` for a tile at `left`: those of its columns that the image has."""
        ragged = self.p.ow % self.s.mw
        if not ragged or isinstance(left, int):
            body(ragged or self.s.mw)
            return
        with k.when(left < self.p.ow - ragged):
            body(self.s.mw)
        with k.when(left >= self.p.ow - ragged):
            body(ragged)

    def _channels(self, k: Kernel, name: str, where: Placement, group: Int, vector: Int) -> Buffer:
        """A tensor of the output's shape from the first channel of a vector on."""
        tensor = at_channel(k.tensor(name, where), where, group, self.p.group_oc)
        return at_channel(tensor, where, vector, self.lanes)


def _max_rows(cols: int, cpu: Cpu) -> int:
    """Rows of the largest register tile, 0 where there is none."""
    return max(r for r in range(cpu.registers) if registers(r, cols) <= cpu.registers or r == 0)


def _lanes(layout: Layout, channels: int, cpu: Cpu) -> int:
    """Lanes of the vectors of channels: no wider than the channels that lie together."""
    return min(cpu.lanes, layout.blocked or 1 << (channels - 1).bit_length())


def rank(p: ConvProblem, cpu: Cpu) -> int:
    """Preferred for square filters with enough channels to pay for the transforms."""
    pays = min(p.kernel) >= 3 and max(p.kernel) <= 5 and min(p.group_c, p.group_oc) >= 16
    return 4 if pays else 0


def grain(p: ConvProblem, s: Schedule) -> int:
    """The rows of a block of tiles, for which weights go by once."""
    if s.split == "channels":
        return p.oh
    return s.mh * -(-s.nr_tiles // -(-p.ow // s.mw))


template = KernelTemplate(
    "winograd",
    Schedule,
    why_not,
    heuristic,
    build,
    rank,
    rows_alike=False,
    grain=grain,
    error=lambda p, s: expected_error(p, (s.mh, s.mw), s.points),
)

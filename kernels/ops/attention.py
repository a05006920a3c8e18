"""Attention in blocks: softmax(scale * q @ k^T + mask) @ v for each head, without all its scores.

A task is one head of one image and a block of its queries. It takes the keys in blocks that a cache
holds with their values, and keeps the largest score and the sum of powers of every query so far
(Milakov and Gimelshein, 2018; Dao et al., 2022). Heads are ranges of channels in NHWC, so queries,
keys and values are read, and results written, where the products around leave and take them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf

import numpy as np

from fastrun.kernels.codegen.builder import (
    Buffer,
    Index,
    Int,
    Kernel,
    Module,
    Vec,
    first_lanes,
    fma,
)
from fastrun.kernels.codegen.elementary import weight
from fastrun.kernels.codegen.micro_kernel import check_tile
from fastrun.kernels.codegen.sums import across, add_products
from fastrun.kernels.codegen.tile_choice import best_tile
from fastrun.kernels.codegen.tiling import (
    Tiles,
    channel_panels,
    cover,
    cut,
    last_apart,
    start_of,
    tile_count,
)
from fastrun.kernels.codegen.transpose import cell_side, transpose
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import NCHW, NHWC, READ_SLACK, Array, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check, check_f32, check_sizes

# Without measuring: queries that are worth a task, and steps along a sum in straight code.
QUERIES, UNROLL = 32, 4

# Below every score that is not masked: where all are so far, differences stay finite.
LOWEST = -1e30


@dataclass(frozen=True)
class Heads:
    """Head `i` is the `size` channels from `start + i * step` on."""

    start: int
    step: int
    size: int


@dataclass(frozen=True)
class Attention:
    """`softmax(scale * q @ k^T + mask) @ v` among the pixels of each image, for every head.

    The first input (n, c, ...) has the channels of `q`. A second one, if there is one, has those of
    `k` and `v`, else the first has them too. The mask (groups, heads or 1, queries, keys) is
    optional; image i takes that of group i % groups. It is constant, or computed if there is no
    second input; a computed one may have a single row for all queries. The result has the heads'
    values one after another as its channels, and the pixels of the first input.
    """

    heads: int
    scale: float
    q: Heads
    k: Heads
    v: Heads


@dataclass(frozen=True)
class Schedule:
    """The blocks of attention. Register tiles have the same sizes in both of its products."""

    layout: str
    rows: int  # queries of a register tile
    cols: int  # vectors of a register tile: of keys in the scores, of values in the result
    keys: int  # keys of a block
    tiles: int  # register tiles, along the queries, of a task
    unroll: int  # terms of a sum in the loop body


def usual(pairs: int, queries: int, size: int, cpu: Cpu) -> Schedule:
    """The schedule without measuring, for so many pairs of a head and an image.

    `size` is the number of values of a head.
    """
    _, rows, cols = best_tile(1, queries, -(-size // _lanes(size, cpu)), cpu)
    tiles = tile_count(cover(queries, rows))
    chunks = min(-(-2 * cpu.cores // pairs), -(-queries // QUERIES))
    # A block of keys and values takes half of the second cache.
    keys = max(1, cpu.l2 // 2 // F32.bytes(2 * size))
    return Schedule("NHWC", rows, cols, keys, -(-tiles // chunks), UNROLL)


def _lanes(size: int, cpu: Cpu) -> int:
    return cpu.lanes_for(max(size, cell_side(F32)))  # keys are transposed in cells


@identified
def build(
    spec: Attention,
    cpu: Cpu,
    src: Placement,
    dst: Placement,
    context: Placement | None = None,
    mask: tuple[int, ...] = (),
    computed: Placement | None = None,
    schedule: Schedule | None = None,
) -> Program:
    """Attention of the pixels of `src` to those of `context`, or to each other.

    The weights are the mask of this shape, if there is one. One that is `computed` lies in NCHW:
    its heads are channels, its queries rows. Without a `schedule` it is the `usual` one.

    Raises:
        ScheduleError: a tensor is not of f32 in NHWC without a halo beside its rows, heads exceed
            the channels, sizes do not fit each other, there are both a context and a computed
            mask, or the schedule needs too many registers.
    """
    other = src if context is None else context
    check_f32("attention", src, dst, other)
    for where in (src, dst, other):
        check(where.layout == NHWC and where.dense, f"attention takes pixels in a row, not {where}")
    queries, keys = src.h * src.w, other.h * other.w
    for heads, where in ((spec.q, src), (spec.k, other), (spec.v, other)):
        end = heads.start + (spec.heads - 1) * heads.step + heads.size
        check(end <= where.c, f"{spec.heads} heads of {heads} exceed {where.c} channels")
    fits = (dst.n, dst.h * dst.w, dst.c) == (src.n, queries, spec.heads * spec.v.size)
    check(fits and other.n == src.n, f"attention of {src} to {other} does not give {dst}")
    check(spec.q.size == spec.k.size, "queries and keys differ in size")
    if mask:
        known = mask[1] in (1, spec.heads) and mask[2:] == (queries, keys) and not src.n % mask[0]
        check(len(mask) == 4 and known, f"a mask of {mask} does not fit")
    if computed is not None:
        check(context is None, "a mask beside a context must be constant")
        check(computed.layout == NCHW, f"a mask lies in NCHW, not in {computed.layout}")
        rows = computed.h in (1, queries) and computed.w == keys and not src.n % computed.n
        check(computed.c in (1, spec.heads) and rows, f"a mask of {computed} does not fit")
    beside = "src" if context is None else "add"
    schedule = schedule or usual(src.n * spec.heads, queries, spec.v.size, cpu)
    check_sizes(schedule)
    check(schedule.layout == "NHWC", f"attention takes channels side by side: {schedule.layout}")
    check_tile(cpu, schedule.rows, schedule.cols, schedule.unroll)
    work = _Work.of(spec, schedule, cpu, queries, keys)
    module = Module(cpu)

    @module.stage("attention", src.n * spec.heads * work.chunks)
    def write_attention(k: Kernel, task: Index) -> None:
        chunk, rest = task % work.chunks, task // work.chunks
        head, image = rest % spec.heads, rest // spec.heads

        def heads_of(name: str, where: Placement, of: Heads) -> Buffer:
            at = k.argument(name, where.n_stride, of.step, offset=where.origin + of.start)
            return at.at(image, head).strided(where.x_stride, 1)

        given = None
        if mask:
            strides = mask[1] * queries * keys, queries * keys * (mask[1] > 1)
            given = k.argument("weights", *strides).at(image % mask[0], head).strided(keys, 1)
        if computed is not None:
            strides = computed.n_stride, computed.block_stride * (computed.c > 1)
            given = k.argument("add", *strides, offset=computed.origin)
            given = given.at(image % computed.n, head)
            given = given.strided(computed.y_stride * (computed.h > 1), 1)
        task_of = _Task(
            work,
            k,
            chunk * work.per_chunk,
            heads_of("src", src, spec.q),
            heads_of(beside, other, spec.k),
            heads_of(beside, other, spec.v),
            heads_of("dst", dst, Heads(0, spec.v.size, spec.v.size)),
            given,
        )
        task_of.run()

    io = Io(src, dst, context or computed or dst)
    return module.program(io, _packed, local_bytes=F32.bytes(work.room + READ_SLACK))


def _packed(mask: Array) -> Array:
    """The mask, behind which a whole vector may be read."""
    return np.concatenate([mask.reshape(-1), np.zeros(READ_SLACK, np.float32)])


@dataclass(frozen=True)
class _Work:
    """How a head is cut: register tiles of queries, `per_chunk` of them a task; blocks of keys."""

    spec: Attention
    lanes: int
    registers: int
    cols: int
    unroll: int
    heights: list[Tiles]
    per_chunk: int
    blocks: list[Tiles]

    @classmethod
    def of(cls, spec: Attention, s: Schedule, cpu: Cpu, queries: int, keys: int) -> _Work:
        lanes, heights = _lanes(spec.v.size, cpu), cover(queries, s.rows)
        # Blocks of equal whole vectors; only the last may be shorter.
        vectors = cover(-(-keys // lanes), -(-s.keys // lanes))[0].size
        blocks = cut(keys, vectors * lanes)
        per_chunk = min(s.tiles, tile_count(heights))
        return cls(spec, lanes, cpu.registers, s.cols, s.unroll, heights, per_chunk, blocks)

    @property
    def chunks(self) -> int:
        """Tasks of a head."""
        return -(-tile_count(self.heights) // self.per_chunk)

    @property
    def tall(self) -> int:
        """Queries of the highest tile."""
        return self.heights[0].size

    def vectors(self, size: int) -> int:
        """Vectors that hold so many numbers."""
        return -(-size // self.lanes)

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of each array of a task's workspace, in their order.

        Keys are transposed. Results, the largest scores and the sums of powers so far are kept only
        if there are several blocks of keys.
        """
        keys, wide = self.blocks[0].size, self.vectors(self.spec.v.size) * self.lanes
        padded = self.vectors(keys) * self.lanes
        state = self.per_chunk * self.tall if tile_count(self.blocks) > 1 else 0
        return {
            "keys": self.spec.k.size * padded,
            "values": keys * wide,
            "scores": self.tall * padded,
            "factors": self.tall,
            "results": state * wide,
            "peaks": state,
            "sums": state,
        }

    @property
    def room(self) -> int:
        """Numbers of the whole workspace."""
        return sum(self.sizes.values())


@dataclass(frozen=True)
class _Task:
    """One head's attention from the tiles of queries from `begin` on; rows are pixels."""

    work: _Work
    k: Kernel
    begin: Int
    q: Buffer
    keys: Buffer
    values: Buffer
    dst: Buffer
    mask: Buffer | None

    def run(self) -> None:
        """Write the code."""
        single = tile_count(self.work.blocks) == 1
        if not single:
            self._reset()
        for block in self.work.blocks:
            with block.loop(self.k) as start:
                self._pack(start, block.size)
                for run, row in self._tiles():
                    self._scores(row, run.size, start, block.size)
                    self._powers(row, run.size, block.size, single)
                    self._results(row, run.size, block.size, single)
        if not single:
            self._finish()

    def _tiles(self) -> Iterator[tuple[Tiles, Int]]:
        for run in self.work.heights:
            with run.loop(self.k, self.begin, self.begin + self.work.per_chunk) as row:
                yield run, row

    def _array(self, name: str, *strides: int) -> Buffer:
        before = takewhile(lambda item: item[0] != name, self.work.sizes.items())
        return self.k.argument("local", *strides, offset=sum(size for _, size in before))

    def _place(self, row: Int) -> Int:
        """The number of a query in this task."""
        return row - start_of(self.work.heights, self.begin) if self.work.chunks > 1 else row

    @property
    def _wide(self) -> int:
        """From one row of values to the next."""
        return self.work.vectors(self.work.spec.v.size) * self.work.lanes

    def _row(self, keys: int) -> int:
        """From one row of scores to the next."""
        return self.work.vectors(keys) * self.work.lanes

    def _pack(self, start: Int, count: int) -> None:
        """Copy a block of keys, transposed and scaled, and its values."""
        k, lanes, size = self.k, self.work.lanes, self.work.spec.k.size
        # Every vector of keys with the whole depth together.
        packed = self._array("keys", size, lanes)
        for run in cut(count, lanes):
            with run.loop(k) as key:
                source, target = self.keys.at(start + key), packed.at(key)
                for first in range(0, size, lanes):
                    rows = [
                        source.load(i, first, lanes=lanes) * self.work.spec.scale
                        for i in range(run.size)
                    ]
                    rows += [k.const(0.0, lanes)] * (lanes - run.size)
                    for f, column in enumerate(transpose(k, rows)[: size - first]):
                        target.store(column, 0, first + f)
        values = self._array("values", self._wide)
        with k.loop(count) as key:
            for first in range(0, self._wide, lanes):
                row = self.values.at(start + key).load(0, first, lanes=lanes)
                values.at(key, 0).strided(1).store(row, first)

    def _scores(self, row: Int, height: int, start: Int, count: int) -> None:
        """The scores of a tile of queries and a block of keys; behind the last they are -inf."""
        k, lanes, size = self.k, self.work.lanes, self.work.spec.k.size
        scores, packed = self._array("scores", self._row(count), lanes), self._array("keys")
        tail = count % lanes
        panels = cover(self.work.vectors(count), self.work.cols)
        for panel in last_apart(panels) if tail else panels:
            with panel.loop(k) as vector:
                acc = k.tile(height, panel.size, lanes)
                acc.fill(k.const(0.0, lanes))
                columns = packed.strided(lanes * size).at(vector).strided(lanes, lanes * size)
                add_products(k, acc, self.q.at(row), columns, size, self.work.unroll)
                for i, j in acc:
                    value = acc[i, j]
                    if self.mask:
                        at = self.mask.at(row + i, start + (vector + j) * lanes)
                        value = value + at.strided(1).load(0, lanes=lanes)
                    if tail and panel.end == self.work.vectors(count) and j == panel.size - 1:
                        value = k.blend(first_lanes(tail, lanes), value, k.const(-inf, lanes))
                    scores.store(value, i, vector + j)

    def _powers(self, row: Int, height: int, count: int, single: bool) -> None:
        """Scores become powers relative to the largest so far; earlier sums shrink by a factor."""
        k, lanes = self.k, self.work.lanes
        scores = self._array("scores", self._row(count), lanes)
        factors = self._array("factors", 1)
        # Rows together: the steps of one alone would wait for one another.
        for run in cut(height, max(1, self.work.registers // 8)):
            with run.unrolled(k) as some:
                rows = [scores.at(i) for i in some]
                peaks = self._over(rows, count, LOWEST, Vec.max, lambda x, r: x)
                before = list[Vec]()
                if not single:
                    own = [self._array("peaks", 1).at(self._place(row) + i) for i in some]
                    before = [place.load(0, lanes=1) for place in own]
                    peaks = [old.max(new) for old, new in zip(before, peaks, strict=True)]
                totals = self._over(
                    rows,
                    count,
                    0.0,
                    Vec.__add__,
                    functools.partial(_power, [k.splat(peak, lanes) for peak in peaks]),
                    store=True,
                )
                for r, i in enumerate(some):
                    if single:
                        factors.store(k.const(1.0, 1) / totals[r], i)
                        continue
                    shrunk = weight(before[r] - peaks[r])
                    sums = self._array("sums", 1).at(self._place(row) + i)
                    sums.store(k.intrinsic("fma", sums.load(0, lanes=1), shrunk, totals[r]), 0)
                    self._array("peaks", 1).at(self._place(row) + i).store(peaks[r], 0)
                    factors.store(shrunk, i)

    def _over(
        self,
        rows: Sequence[Buffer],
        count: int,
        neutral: float,
        join: Callable[[Vec, Vec], Vec],
        term: Callable[[Vec, int], Vec],
        store: bool = False,
    ) -> list[Vec]:
        """The terms of each of some rows of scores joined; `store` puts them in their place."""
        k, lanes = self.k, self.work.lanes
        apart = max(1, UNROLL // len(rows))
        acc = k.tile(len(rows), apart, lanes)
        acc.fill(k.const(neutral, lanes))
        for run in cut(self.work.vectors(count), apart):
            with run.unrolled(k) as vectors:
                for place, vector in enumerate(vectors):
                    for r, row in enumerate(rows):
                        value = term(row.load(0, vector, lanes=lanes), r)
                        if store:
                            row.store(value, 0, vector)
                        acc[r, place] = join(acc[r, place], value)
        columns = ([acc[r, place] for place in range(apart)] for r in range(len(rows)))
        return [across(functools.reduce(join, column), join) for column in columns]

    def _results(self, row: Int, height: int, count: int, single: bool) -> None:
        """Add a block's values, weighted by the powers, to a tile's results."""
        k, lanes = self.k, self.work.lanes
        powers, values = self._array("scores", self._row(count), 1), self._array("values")
        factors = self._array("factors", 1)
        for panel in self._panels():
            with panel.loop(k) as vector:
                acc = k.tile(height, panel.size, lanes)
                acc.fill(k.const(0.0, lanes))
                columns = values.strided(lanes).at(vector).strided(self._wide, lanes)
                add_products(k, acc, powers, columns, count, self.work.unroll)
                for i, j in acc:
                    factor, value = factors.splat(i, lanes=lanes), acc[i, j]
                    if single:
                        self._leave(row + i, panel, vector, j, value * factor)
                    else:
                        at = self._array("results", self._wide, lanes)
                        at = at.at(self._place(row) + i, vector + j)
                        at.store(fma(at.load(0, lanes=lanes), factor, value), 0)

    def _panels(self) -> list[Tiles]:
        return channel_panels(self.work.spec.v.size, self.work.lanes, self.work.cols, True)

    def _leave(self, row: Int, panel: Tiles, vector: Int, j: int, value: Vec) -> None:
        """Store a vector of a query's results where they belong."""
        lanes, size = self.work.lanes, self.work.spec.v.size
        last = panel.end == self.work.vectors(size) and j == panel.size - 1
        at = self.dst.at(row, 0).strided(lanes).at(vector + j).strided(1)
        at.store_first(value, (last and size % lanes) or lanes, 0)

    def _reset(self) -> None:
        k, lanes = self.k, self.work.lanes
        sizes = self.work.sizes
        with k.loop(sizes["results"] // lanes) as vector:
            self._array("results", lanes).store(k.const(0.0, lanes), vector)
        with k.loop(sizes["peaks"]) as place:
            self._array("peaks", 1).store(k.const(LOWEST, 1), place)
            self._array("sums", 1).store(k.const(0.0, 1), place)

    def _finish(self) -> None:
        """Divide the results by the sums of powers."""
        k, lanes = self.k, self.work.lanes
        for run, row in self._tiles():
            for i in range(run.size):
                place = self._place(row) + i
                sums = self._array("sums", 1).splat(place, lanes=lanes)
                results = self._array("results", self._wide, lanes)
                for panel in self._panels():
                    with panel.loop(k) as vector:
                        for j in range(panel.size):
                            value = results.load(place, vector + j, lanes=lanes) / sums
                            self._leave(row + i, panel, vector, j, value)


def _power(peaks: Sequence[Vec], score: Vec, row: int) -> Vec:
    return weight(score - peaks[row])

"""Winograd's steps on a block of tiles: transform, multiply plane by plane, transform back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import (
    Buffer,
    Int,
    Kernel,
    Tile,
    Vec,
    at_channel,
    fma,
    least,
    most,
)
from fastrun.kernels.codegen.dot import Dot, dot_of
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.half import encoded, joined, scale_room, unscale, weights_at
from fastrun.kernels.codegen.micro_kernel import outer_product, registers
from fastrun.kernels.codegen.reduction import reduction
from fastrun.kernels.codegen.tiling import (
    Tiles,
    channel_lanes,
    channel_panels,
    cover,
    last_apart,
    start_of,
    tile_count,
)
from fastrun.kernels.conv.winograd.parts import Parts, widened
from fastrun.kernels.conv.winograd.rounding import Rounding
from fastrun.kernels.conv.winograd.schedule import Schedule
from fastrun.kernels.conv.winograd.transform import (
    ALPHA,
    Transform,
    shared_outputs,
    tile_grid,
    transform_weights,
)
from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.dtype import F32, I16, I32, DType
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.template import ScheduleError, check
from fastrun.kernels.core.types import Types

LINE = F32.count(CACHE_LINE)
# The least number by which input is divided: blocks of zeros stay zeros.
TINY = 2.0**-126


@dataclass(frozen=True)
class Steps:
    """The sizes of one kernel and the code of its three steps.

    A block of tiles is transformed into planes, one for each product of a tile. A pass multiplies
    the planes by the weights of some panels of output channels. The products are transformed back.
    A block needs `input_bytes` of memory for the planes and `product_bytes` for the products.

    With a `rounding` the planes are int16, the products float32 as ever. Float32 input is divided
    by the largest absolute value of its block before.
    """

    whole: ConvProblem
    p: ConvProblem  # the same with the parts of the filter as channels
    parts: Parts
    s: Schedule
    io: Io
    vertical: Transform
    horizontal: Transform
    blocks: list[Tiles]  # of tiles, counted through all images
    panels: list[Tiles]  # of vectors of output channels
    rows: int  # tiles of a register tile, at most
    input_lanes: int
    lanes: int  # of output channels
    dot: Dot
    rounding: Rounding | None

    @classmethod
    def of(cls, whole: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Steps:
        """The steps of a schedule.

        Raises:
            ScheduleError: no transform of that size, no register tile of that width, or no such
                products.
        """
        p = widened(whole)
        for m, r in zip((s.mh, s.mw), p.kernel, strict=True):
            check(r > 1 or m <= ALPHA, f"no tile has {m} inputs on an axis, but up to {ALPHA}")
        try:
            vertical = Transform.of(s.mh, p.kernel[0], s.points)
            horizontal = Transform.of(s.mw, p.kernel[1], s.points)
            rounding = Rounding.of(p, (s.mh, s.mw), s.points, s.chunk) if rounds(p) else None
        except ValueError as error:
            raise ScheduleError(str(error)) from error
        tiles = p.n * math.prod(tile_grid(p, (s.mh, s.mw)))
        types = Types.pairs() if rounding else p.precision
        check(rounding is not None or not s.dot, f"dot={s.dot}: winograd multiplies one by one")
        of_lanes = types if rounding else Types()
        lanes = channel_lanes(p.group_oc, io.dst.layout, cpu, of_lanes)
        check(rounding is not None or not s.chunk, "sums of float32 have no chunks")
        dot = dot_of(types, s.dot, cpu)
        per_lane = F32.bits // rounding.arithmetic.bits if rounding else 1
        wide = replace(cpu, lanes=cpu.lanes * per_lane)
        input_lanes = channel_lanes(whole.group_c, io.src.layout, wide, of_lanes)
        if p.precision.as_int16 and not io.src.layout.blocked:
            # What lies behind the channels must not count as their largest value.
            input_lanes = min(input_lanes, whole.group_c & -whole.group_c)
        if rounding:
            enough = rounding.chunk >= min(input_lanes, p.group_c)
            check(enough, f"chunk={s.chunk}: a vector has {input_lanes} channels")
        panels = channel_panels(p.group_oc, lanes, s.cols, split_tail=False)
        rows = max_rows(panels[0].size, cpu, dot.registers)
        check(rows > 0, "tile needs too many registers")
        blocks = cover(tiles, s.nr_tiles)
        return cls(
            whole, p, Parts.of(whole), s, io, vertical, horizontal, blocks, panels, rows,
            input_lanes, lanes, dot, rounding,
        )  # fmt: skip

    @property
    def planes(self) -> int:
        """Products of a tile for each pair of channels."""
        return self.vertical.alpha * self.horizontal.alpha

    @property
    def input_vectors(self) -> int:
        """Vectors of a group's input channels, of all parts of the filter."""
        return self.parts.count * self._part_vectors

    @property
    def _part_vectors(self) -> int:
        return -(-self.whole.group_c // self.input_lanes)

    @property
    def passes(self) -> int:
        """How often the planes of a block are read, each time for some of the panels."""
        return -(-tile_count(self.panels) // self.s.oc_block)

    @property
    def element(self) -> DType:
        """The type of the planes."""
        return self.dot.types.src

    @property
    def input_size(self) -> int:
        """Elements of a block's transformed input."""
        return self.input_vectors * self.planes * self._plane(self.input_lanes, self.element)

    @property
    def input_bytes(self) -> int:
        """Bytes of a block's transformed input."""
        return self.element.bytes(self.input_size)

    @property
    def product_bytes(self) -> int:
        """Bytes of a block's products of one pass."""
        vectors = min(self.s.oc_block * self.panels[0].size, self.panels[-1].end)
        return F32.bytes(vectors * self.planes * self._plane(self.lanes, F32))

    def pack(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Transformed weights in reading order: group, pass, plane, panel, term of K, channel.

        In front of those that are rounded are what units of their sums are: group, plane, channel.
        """
        p, width, group_of = self.p, self.panels[-1].end * self.lanes, self.dot.group
        filters = self.parts.filters(weights)
        filters = filters.reshape(p.groups, p.group_oc, p.group_c, *p.kernel)
        taps = np.zeros((p.groups, p.group_c, width, *p.kernel), np.float32)
        taps[:, :, : p.group_oc] = filters.swapaxes(1, 2)
        sizes = [run.size * self.lanes for run in self.panels for _ in range(run.count)]
        terms = self.dot.groups(p.group_c) * group_of
        dtype = self.dot.types.weights
        front = np.zeros(scale_room(dtype, p.groups * width), np.float32)
        units = np.empty((p.groups, self.planes, width), np.float32)
        packed = np.zeros(p.groups * self.planes * terms * width, dtype.numpy)
        left = packed
        for number, group in enumerate(taps):
            u: NDArray[Any] = transform_weights(group, self.vertical, self.horizontal)
            u = u.reshape(self.planes, p.group_c, width)
            if self.rounding:
                starts = [first * self.input_lanes for first in self._chunk_starts]
                u, units[number] = self.rounding.weights(u, starts)
                u = np.pad(u, ((0, 0), (0, terms - p.group_c), (0, 0)))
                u = u.reshape(self.planes, -1, group_of, width).swapaxes(2, 3)
            elif dtype is not F32:
                elements, scales = encoded(u.transpose(2, 0, 1), dtype)
                u = elements.transpose(1, 2, 0)
                front[number * width : (number + 1) * width] = scales[:width]
            panels = np.split(u, np.cumsum(sizes)[:-1], 2)
            for first in range(0, len(panels), self.s.oc_block):
                through = panels[first : first + self.s.oc_block]
                count = sum(panel.size for panel in through)
                planes, left = left[:count].reshape(self.planes, -1), left[count:]
                for panel in through:
                    size = panel[0].size
                    planes[:, :size].reshape(panel.shape)[...] = panel
                    planes = planes[:, size:]
        return joined(units.ravel() if self.rounding else front, packed)

    @contextmanager
    def _windows(
        self, k: Kernel, block: Int, group: Int, vector: Int
    ) -> Iterator[tuple[Int, list[Buffer], Callable[[int], Int], Callable[[int], Int]]]:
        """A loop over a block: tile in the block, its rows of one vector of the input's channels.

        Two functions say where a column lies: as it is read, and as it is fetched ahead.
        """
        p, lanes = self.whole, self.input_lanes
        src = k.tensor("src", self.io.src, y=-p.padding[0], x=-p.padding[1])
        down, across = self.parts.vertical, self.parts.horizontal
        below: Int = 0
        beside: Int = 0
        if self.parts.count > 1:
            part, vector = vector // self._part_vectors, vector % self._part_vectors
            below, beside = part // across.count * down.apart, part % across.count * across.apart
        src = at_channel(at_channel(src, self.io.src, group, p.group_c), self.io.src, vector, lanes)
        # A tile that exceeds the image reads the last pixels again. Its outputs inside the image
        # do not depend on them, and nothing beyond the padding is read.
        dy, dx = p.dilation
        last_y, last_x = (
            (n - 1) * step + (taps - 1) * apart
            for n, step, taps, apart in zip(
                (p.oh, p.ow), p.stride, p.kernel, p.dilation, strict=True
            )
        )
        with self._tiles(k, block) as (tile, image, top, left):
            rows = [
                src.at(image, 0, least((top + i * dy) * down.step + below, last_y))
                for i in range(self.vertical.alpha)
            ]
            yield (
                tile,
                rows,
                lambda x: least((left + x * dx) * across.step + beside, last_x),
                lambda x: (left + x * dx + self.horizontal.alpha) * across.step,
            )

    def largest(self, k: Kernel, block: Int, group: Int) -> Vec:
        """The largest absolute value of a block's pixels, which is NaN if one is NaN."""
        lanes = self.input_lanes
        found = k.tile(1, 1, lanes, I32)
        found.fill(k.const(TINY, lanes).bits_as(I32))
        with (
            k.loop(self.input_vectors) as vector,
            self._windows(k, block, group, vector) as (_, rows, column, _),
        ):
            for x in range(self.horizontal.alpha):
                at = column(x)
                for row in rows:
                    # As integers NaN is larger than any number.
                    size = k.intrinsic("fabs", row.load(0, 0, 0, at, lanes=lanes)).bits_as(I32)
                    found[0, 0] = size.max(found[0, 0])
        most = found[0, 0]
        if lanes > 1:
            most = k.target(f"llvm.vector.reduce.smax.v{lanes}i32", I32, 1, most)
        return most.bits_as(F32)

    def transform_input(
        self, k: Kernel, block: Int, group: Int, vector: Int, memory: Buffer,
        largest: Vec | None = None,
    ) -> None:  # fmt: skip
        """Bt d B of one vector of channels for the tiles of a block: columns first, then rows.

        Planes of int16 are divided by the `largest` absolute value of the block, if it is given.
        """
        lanes = self.input_lanes
        planes = self._planes(memory, lanes).at(vector)
        height, width = self.vertical.alpha, self.horizontal.alpha
        arithmetic = self.rounding.arithmetic if self.rounding else F32
        half = k.scratch(height * width * lanes, width * lanes, lanes, 1, dtype=arithmetic)
        scales = None
        if self.rounding and largest:
            scales = k.scratch(self.planes * lanes, lanes)
            inverse = k.splat(k.const(1, 1) / largest, lanes)
            for plane, scale in enumerate(self.rounding.input_scales):
                scales.store(inverse * float(scale), plane)
        with self._windows(k, block, group, vector) as (tile, rows, column, ahead):
            for x in range(width):
                at = column(x)
                values = [row.load(0, 0, 0, at, lanes=lanes).to(arithmetic) for row in rows]
                for row in rows:
                    row.prefetch(0, 0, 0, ahead(x))
                for i, value in enumerate(self.vertical.of_input(values)):
                    half.store(value, i, x)
            for y in range(height):
                line = [half.load(y, j, lanes=lanes) for j in range(width)]
                for j, value in enumerate(self.horizontal.of_input(line)):
                    rounded = self._rounded(value, y * width + j, scales)
                    planes.store(rounded, 0, y * width + j, tile)

    def _rounded(self, value: Vec, plane: int, scales: Buffer | None) -> Vec:
        """A vector of a plane of the transformed input as the products read it."""
        if self.rounding is None or self.rounding.whole:
            return value
        if scales:
            return (value * scales.load(plane, lanes=value.lanes)).to(I16)
        return (value * float(self.rounding.input_scales[plane])).to(I16)

    def multiply(
        self, k: Kernel, block: Int, group: Int, number: Int, inputs: Buffer, products: Buffer
    ) -> None:
        """The products of a block with the panels of pass `number`, plane by plane."""
        begin, end, first, last = self._pass(number)
        inputs = self._planes(inputs, self.input_lanes)
        products = self._planes(products, self.lanes)
        terms = self.lanes * self.dot.groups(self.p.group_c) * self.dot.group
        weights, scales = self._weights(k, self.planes * self.panels[-1].end * terms, terms)
        weights = weights.at(group, first * self.planes)
        units = scales.at(group) if self.rounding and scales else None

        for tiles in self.blocks:
            with tiles.when(k, block), k.loop(self.planes) as plane:
                for v in self.panels:
                    with v.loop(k, begin, end) as vector:
                        here = (last - first) * plane + (vector - first)
                        across = v.size * self.lanes * self.dot.group
                        packed = weights.at(0, here).strided(across, 1)
                        unit = units.at(0, plane, vector).strided(self.lanes) if units else None
                        out = products.at(vector - first, plane)
                        for t in cover(tiles.size, self.rows):
                            with t.loop(k) as at:
                                row = inputs.at(0, plane, at)
                                acc = k.tile(t.size, v.size, self.lanes, self.dot.types.sums)
                                self._product(k, acc, row, packed, out.at(0, 0, at), unit)

    def _product(
        self, k: Kernel, acc: Tile, inputs: Buffer, weights: Buffer, out: Buffer,
        units: Buffer | None,
    ) -> None:  # fmt: skip
        """A register tile: some tiles of one plane times a panel of weights, over all of K.

        A unit of integer sums is `units` of their channel.
        """
        vectors = self.input_vectors
        for chunks in self._chunks:
            with chunks.loop(k) as first:
                acc.fill(k.const(0, self.lanes, acc.dtype))
                last = chunks.end == vectors and chunks.count == 1
                channels = self.p.group_c - chunks.start * self.input_lanes
                channels = channels if last else chunks.size * self.input_lanes
                position = first * (self.input_lanes // self.dot.group)
                if self.parts.count > 1 and self.whole.group_c % self.input_lanes:
                    channels = self.whole.group_c  # each part's last vector is not full
                    with k.loop(self.parts.count) as part:
                        vector, place = part * self._part_vectors, part * channels
                        self._add_products(k, acc, inputs.at(vector), weights.at(place), channels)
                else:
                    self._add_products(k, acc, inputs.at(first), weights.at(position), channels)
                for i, j in acc:
                    value = acc[i, j]
                    if units:
                        unit = units.load(j, lanes=self.lanes)
                        value = self._summed(k, first, value.to(F32), unit, out.at(j, 0, i))
                    out.store(value, j, 0, i)

    def _add_products(
        self, k: Kernel, acc: Tile, inputs: Buffer, weights: Buffer, channels: int
    ) -> None:
        """Add the products of some channels."""
        dot, lanes, ahead = self.dot, self.lanes, self.s.prefetch
        across = lanes * dot.group
        lines = range(0, acc.cols * across, weights.dtype.count(CACHE_LINE)) if ahead else ()

        def step(b: Int, ky: Int, kx: Int, lane: Int, position: Int) -> None:
            for line in lines:
                weights.prefetch(position + ahead, line)
            done = acc[acc.rows - 1, acc.cols - 1]
            now, packed = inputs.after(done), weights.after(done)
            outer_product(
                acc,
                (dot.pixel(now, b, 0, i, lane * dot.group, lanes=lanes) for i in range(acc.rows)),
                (dot.weights(packed, position, j * across, lanes=lanes) for j in range(acc.cols)),
                dot.add,
            )

        block = self.input_lanes // dot.group
        reduction(k, dot.groups(channels), block, (1, 1), self.s.unroll, step)

    def _summed(self, k: Kernel, first: Int, value: Vec, unit: Vec, out: Buffer) -> Vec:
        """The sum of a chunk times its unit, added to that of the chunks before."""
        if isinstance(first, int) and first == 0:
            return value * unit
        before = out.load(lanes=self.lanes)
        if not isinstance(first, int):
            before = k.choose(first < 1, k.const(0, self.lanes), before)
        return fma(value, unit, before)

    @property
    def _chunks(self) -> list[Tiles]:
        """Vectors of input channels whose products are added in the accumulators' type."""
        if self.rounding is None:
            return cover(self.input_vectors, self.input_vectors)
        chunks = cover(self.input_vectors, max(1, self.rounding.chunk // self.input_lanes))
        return last_apart(chunks) if self.p.group_c % self.input_lanes else chunks

    @property
    def _chunk_starts(self) -> list[int]:
        return [t.start + i * t.size for t in self._chunks for i in range(t.count)]

    def transform_output(
        self, k: Kernel, block: Int, group: Int, number: Int, products: Buffer,
        largest: Vec | None = None,
    ) -> None:  # fmt: skip
        """At m A of the vectors of pass `number`: columns first, then rows with the epilogue.

        Products of input that was divided by the `largest` are multiplied by it.
        """
        p, lanes = self.p, self.lanes
        _, _, first, last = self._pass(number)
        products = self._planes(products, lanes)
        (dy, dx), width = p.dilation, self.horizontal.alpha
        half = k.scratch(self.s.mh * width * lanes, width * lanes, lanes, 1)

        for begin, end, kept in self._vectors(first, last):
            with k.loop(begin, end) as vector:
                planes = products.at(vector - first)
                dst = self._channels(k, "dst", self.io.dst, group, vector)
                add = self._channels(k, "add", self.io.add, group, vector)
                sums = p.precision.sums
                bias = k.argument("bias", p.group_oc, lanes, dtype=sums)
                offset = bias.load(group, vector, lanes=lanes).to(F32)
                channel = vector * lanes + group * p.group_oc if p.precision.integer else 0
                scale = self._scale(k, group, vector)
                if largest:
                    scale = k.splat(largest, lanes)
                with self._tiles(k, block) as (tile, image, top, left):
                    with k.loop(width) as x:
                        column = [
                            planes.load(0, x + i * width, tile, lanes=lanes)
                            for i in range(self.vertical.alpha)
                        ]
                        for i, value in enumerate(self.vertical.of_output(column)):
                            y, ahead = top + i * dy, left + x * dx + self.s.mw
                            dst.prefetch(image, 0, y, ahead, write=True)
                            half.store(value, i, x)
                    inside, widths = self._widths(left)
                    for columns in widths:
                        has_these = isinstance(inside, int) or inside.equals(columns)
                        with (
                            k.when(has_these),
                            k.loop(least((p.oh - top + (dy - 1)) // dy, self.s.mh)) as y,
                        ):
                            line = [half.load(y, j, lanes=lanes) for j in range(width)]
                            values = self.horizontal.of_output(line)[:columns]
                            for j, value in enumerate(values):
                                at = (image, 0, top + y * dy, left + j * dx)
                                residual = add.load(*at, lanes=lanes) if p.add else None
                                total = unscale(value, scale, offset) if scale else value + offset
                                result = finish(p, total, residual, channel)
                                dst.store_first(result, kept, *at)

    def _weights(self, k: Kernel, *strides: int) -> tuple[Buffer, Buffer | None]:
        """The packed weights, and their scales if they have any.

        Those of a rounding are for groups, planes and channels, others for groups and channels.
        """
        channels = self.p.groups * self.panels[-1].end * self.lanes
        if self.rounding is None:
            return weights_at(k, self.dot.types.weights, channels, *strides)
        units = k.argument("weights", self.planes * channels // self.p.groups,
                           channels // self.p.groups, self.lanes)  # fmt: skip
        front = I16.count(F32.bytes(self.planes * channels))
        return k.argument("weights", *strides, offset=front, dtype=I16), units

    def _scale(self, k: Kernel, group: Int, vector: Int) -> Vec | None:
        """The scales of a vector of output channels, if they are the same for all planes."""
        _, scales = self._weights(k)
        width = self.panels[-1].end * self.lanes
        if scales is None or self.rounding:
            return None
        return scales.strided(width, self.lanes).load(group, vector, lanes=self.lanes)

    def _vectors(self, first: Int, last: Int) -> Iterator[tuple[Int, Int, int]]:
        """Vectors `first` to `last` in ranges (begin, end, channels to store of each)."""
        whole, tail = divmod(self.p.group_oc, self.lanes)
        if self.io.dst.blocks == 1 and tail:
            if whole:
                yield first, least(last, whole), self.lanes
            yield most(first, whole), last, tail
        else:
            yield first, last, self.lanes

    def _pass(self, number: Int) -> tuple[Int, Int, Int, Int]:
        """Panels [begin, end) of a pass, and their vectors."""
        begin = number * self.s.oc_block
        end = least(begin + self.s.oc_block, tile_count(self.panels))
        return begin, end, start_of(self.panels, begin), start_of(self.panels, end)

    def _plane(self, lanes: int, dtype: DType) -> int:
        """Elements from plane to plane: an odd number of lines, to use all sets of the cache."""
        line = dtype.count(CACHE_LINE)
        return (-(-self.blocks[0].size * lanes // line) | 1) * line

    def _planes(self, memory: Buffer, lanes: int) -> Buffer:
        """`memory` as (vector of channels, plane, tile, lane)."""
        plane = self._plane(lanes, memory.dtype)
        return memory.strided(self.planes * plane, plane, lanes, 1)

    @contextmanager
    def _tiles(self, k: Kernel, block: Int) -> Iterator[tuple[Int, Int, Int, Int]]:
        """A loop over a block: tile in the block, image, row and column of its first output."""
        down, across = tile_grid(self.p, (self.s.mh, self.s.mw))
        first = start_of(self.blocks, block)
        with k.loop(start_of(self.blocks, block + 1) - first) as tile:
            number = tile + first
            y, x = number // across % down, number % across
            top, left = self._first(y, self.s.mh, 0), self._first(x, self.s.mw, 1)
            yield tile, number // (across * down), top, left

    def _first(self, number: Int, size: int, axis: int) -> Int:
        """The first of a tile's `size` outputs on this axis, which lie a dilation apart."""
        apart = self.p.dilation[axis]
        return number % apart + number // apart * (size * apart) if apart > 1 else number * size

    def _widths(self, left: Int) -> tuple[Int, Sequence[int]]:
        """How many of its columns the image has for a tile at `left`, and what that may be."""
        apart, size = self.p.dilation[1], self.s.mw
        line = shared_outputs(self.p)[1]
        ragged = line - (-(-line // size) - 1) * size
        # A line that begins with a later output may have one output less.
        widths = {min(line, size), ragged, ragged - (self.p.ow % apart > 0)}
        if isinstance(left, int) or len(widths) == 1:
            return ragged, [ragged]
        return least((self.p.ow - left + (apart - 1)) // apart, size), sorted(widths - {0})

    def _channels(self, k: Kernel, name: str, where: Placement, group: Int, vector: Int) -> Buffer:
        """A tensor of the output's shape from the first channel of a vector on."""
        tensor = at_channel(k.tensor(name, where), where, group, self.p.group_oc)
        return at_channel(tensor, where, vector, self.lanes)


def rounds(p: ConvProblem) -> bool:
    """Whether a kernel's products are those of int16."""
    return p.precision.integer or p.precision.as_int16


def max_rows(cols: int, cpu: Cpu, further: int = 0) -> int:
    """Rows of the largest register tile beside `further` registers, 0 where there is none."""
    most_registers = cpu.registers - further
    return max(r for r in range(cpu.registers) if registers(r, cols) <= most_registers or r == 0)

"""Winograd's steps on a block of tiles: transform, multiply plane by plane, transform back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Vec, at_channel, least, most
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.half import encoded, joined, scale_room, unscale, weights_at
from fastrun.kernels.codegen.micro_kernel import outer_product, registers
from fastrun.kernels.codegen.reduction import reduction
from fastrun.kernels.codegen.tiling import (
    Tiles,
    channel_lanes,
    channel_panels,
    cover,
    start_of,
    tile_count,
)
from fastrun.kernels.conv.winograd.schedule import Schedule
from fastrun.kernels.conv.winograd.transform import (
    ALPHA,
    Transform,
    shared_outputs,
    tile_grid,
    transform_weights,
)
from fastrun.kernels.core.cpu import CACHE_LINE, Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Array, Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io
from fastrun.kernels.core.template import ScheduleError, check

LINE = F32.count(CACHE_LINE)


@dataclass(frozen=True)
class Steps:
    """The sizes of one kernel and the code of its three steps.

    A block of tiles is transformed into planes, one for each product of a tile. A pass multiplies
    the planes by the weights of some panels of output channels. The products are transformed back.
    A block needs `input_floats` of memory for the planes and `product_floats` for the products.
    """

    p: ConvProblem
    s: Schedule
    io: Io
    vertical: Transform
    horizontal: Transform
    blocks: list[Tiles]  # of tiles, counted through all images
    panels: list[Tiles]  # of vectors of output channels
    rows: int  # tiles of a register tile, at most
    input_lanes: int
    lanes: int  # of output channels

    @classmethod
    def of(cls, p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Steps:
        """The steps of a schedule.

        Raises:
            ScheduleError: no transform of that size, or no register tile of that width.
        """
        for m, r in zip((s.mh, s.mw), p.kernel, strict=True):
            check(r > 1 or m <= ALPHA, f"no tile has {m} inputs on an axis, but up to {ALPHA}")
        try:
            vertical = Transform.of(s.mh, p.kernel[0], s.points)
            horizontal = Transform.of(s.mw, p.kernel[1], s.points)
        except ValueError as error:
            raise ScheduleError(str(error)) from error
        tiles = p.n * math.prod(tile_grid(p, (s.mh, s.mw)))
        lanes = channel_lanes(p.group_oc, io.dst.layout, cpu)
        input_lanes = channel_lanes(p.group_c, io.src.layout, cpu)
        panels = channel_panels(p.group_oc, lanes, s.cols, split_tail=False)
        rows = max_rows(panels[0].size, cpu)
        check(rows > 0, "tile needs too many registers")
        blocks = cover(tiles, s.nr_tiles)
        return cls(p, s, io, vertical, horizontal, blocks, panels, rows, input_lanes, lanes)

    @property
    def planes(self) -> int:
        """Products of a tile for each pair of channels."""
        return self.vertical.alpha * self.horizontal.alpha

    @property
    def input_vectors(self) -> int:
        """Vectors of a group's input channels."""
        return -(-self.p.group_c // self.input_lanes)

    @property
    def passes(self) -> int:
        """How often the planes of a block are read, each time for some of the panels."""
        return -(-tile_count(self.panels) // self.s.oc_block)

    @property
    def input_floats(self) -> int:
        """Floats of a block's transformed input."""
        return self.input_vectors * self.planes * self._plane(self.input_lanes)

    @property
    def product_floats(self) -> int:
        """Floats of a block's products of one pass."""
        vectors = min(self.s.oc_block * self.panels[0].size, self.panels[-1].end)
        return vectors * self.planes * self._plane(self.lanes)

    def pack(self, weights: Array) -> Array:
        """Transformed weights in reading order: group, pass, plane, panel, term of K, channel."""
        p, width = self.p, self.panels[-1].end * self.lanes
        filters = weights.reshape(p.groups, p.group_oc, p.group_c, *p.kernel)
        taps = np.zeros((p.groups, p.group_c, width, *p.kernel), np.float32)
        taps[:, :, : p.group_oc] = filters.swapaxes(1, 2)
        sizes = [run.size * self.lanes for run in self.panels for _ in range(run.count)]
        dtype = p.precision.weights
        front = np.zeros(scale_room(dtype, p.groups * width), np.float32)
        packed = np.empty(p.groups * self.planes * p.group_c * width, dtype.numpy)
        left = packed
        for number, group in enumerate(taps):
            u = transform_weights(group, self.vertical, self.horizontal)
            u = u.reshape(self.planes, p.group_c, width)
            if dtype is not F32:
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
        return joined(front, packed)

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
        # A tile that exceeds the image reads the last pixels again. Its outputs inside the image
        # do not depend on them, and nothing beyond the padding is read.
        dy, dx = p.dilation
        last_y, last_x = p.oh - 1 + (p.kernel[0] - 1) * dy, p.ow - 1 + (p.kernel[1] - 1) * dx
        with self._tiles(k, block) as (tile, image, top, left):
            rows = [src.at(image, 0, least(top + i * dy, last_y)) for i in range(height)]
            for x in range(width):
                at = least(left + x * dx, last_x)
                column = [row.load(0, 0, 0, at, lanes=lanes) for row in rows]
                for row in rows:
                    row.prefetch(0, 0, 0, left + x * dx + width)
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
        weights, _ = self._weights(k, self.planes * self.panels[-1].end * terms, terms)
        weights = weights.at(group, first * self.planes)

        for tiles in self.blocks:
            with tiles.when(k, block), k.loop(self.planes) as plane:
                for v in self.panels:
                    with v.loop(k, begin, end) as vector:
                        here = (last - first) * plane + (vector - first)
                        packed = weights.at(0, here).strided(v.size * self.lanes, 1)
                        out = products.at(vector - first, plane)
                        for t in cover(tiles.size, self.rows):
                            with t.loop(k) as at:
                                row = inputs.at(0, plane, at)
                                self._product(k, t, v, row, packed, out.at(0, 0, at))

    def _product(
        self, k: Kernel, tiles: Tiles, v: Tiles, inputs: Buffer, weights: Buffer, out: Buffer
    ) -> None:
        """A register tile: some tiles of one plane times a panel of weights, over all of K."""
        acc = k.tile(tiles.size, v.size, self.lanes)
        acc.fill(k.const(0.0, self.lanes))
        ahead = self.s.prefetch
        line = self.p.precision.weights.count(CACHE_LINE)
        lines = range(0, v.size * self.lanes, line) if ahead else ()

        def step(b: Int, ky: Int, kx: Int, lane: Int, position: Int) -> None:
            for place in lines:
                weights.prefetch(position + ahead, place)
            done = acc[tiles.size - 1, v.size - 1]
            now, packed = inputs.after(done), weights.after(done)
            outer_product(
                acc,
                (now.splat(b, 0, i, lane, lanes=self.lanes) for i in range(acc.rows)),
                (
                    packed.load(position, j * self.lanes, lanes=self.lanes).to(F32)
                    for j in range(acc.cols)
                ),
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
        (dy, dx), width = p.dilation, self.horizontal.alpha
        half = k.scratch(self.s.mh * width * lanes, width * lanes, lanes, 1)

        for begin, end, kept in self._vectors(first, last):
            with k.loop(begin, end) as vector:
                planes = products.at(vector - first)
                dst = self._channels(k, "dst", self.io.dst, group, vector)
                add = self._channels(k, "add", self.io.add, group, vector)
                bias = k.argument("bias", p.group_oc, lanes).load(group, vector, lanes=lanes)
                scale = self._scale(k, group, vector)
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
                                total = unscale(value, scale, bias) if scale else value + bias
                                dst.store_first(finish(p, total, residual), kept, *at)

    def _weights(self, k: Kernel, *strides: int) -> tuple[Buffer, Buffer | None]:
        """The packed weights, and the scales of all groups' channels if they have any."""
        channels = self.p.groups * self.panels[-1].end * self.lanes
        return weights_at(k, self.p.precision.weights, channels, *strides)

    def _scale(self, k: Kernel, group: Int, vector: Int) -> Vec | None:
        """The scales of a vector of output channels, if weights have any."""
        _, scales = self._weights(k)
        width = self.panels[-1].end * self.lanes
        if scales is None:
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

    def _plane(self, lanes: int) -> int:
        """Floats from plane to plane: an odd number of lines, to use all sets of the cache."""
        return (-(-self.blocks[0].size * lanes // LINE) | 1) * LINE

    def _planes(self, memory: Buffer, lanes: int) -> Buffer:
        """`memory` as (vector of channels, plane, tile, lane)."""
        plane = self._plane(lanes)
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


def max_rows(cols: int, cpu: Cpu) -> int:
    """Rows of the largest register tile, 0 where there is none."""
    return max(r for r in range(cpu.registers) if registers(r, cols) <= cpu.registers or r == 0)

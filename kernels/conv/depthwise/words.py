"""Depthwise convolution of bytes by dot products of four input rows.

A word of 32 bits holds a channel's bytes of four rows, one below the other: products with the
weights of four taps are one instruction. Three rows of a filter and four of the input serve two
output rows, with weights (a, b, c, 0) and (0, a, b, c). Words are made once for each column of a
tile; columns pass from left to right, and an output is stored as soon as its last column has been
added, so that few sums are alive.

Where products are of int16 the rows are widened as they are loaded, and words are two vectors of
two rows each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Vec, at_channel
from fastrun.kernels.codegen.dot import Dot, Group
from fastrun.kernels.codegen.epilogue import finish_scaled, scales_at
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, I16, I32, U8
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io

ROWS = 4  # of the input in a word
LEAST = 16  # channels whose bytes fill the 128-bit parts in which they are interleaved


@dataclass(frozen=True)
class Pattern:
    """The taps (filter rows, -1 for none) that an output row of a tile takes from a word."""

    output: int
    word: int
    taps: tuple[int, ...]


def input_rows(p: ConvProblem, height: int) -> list[list[int]]:
    """The input rows that `height` output rows need, four to a word."""
    rows = sorted(
        {oy * p.stride[0] + ky * p.dilation[0] for oy in range(height) for ky in range(p.kernel[0])}
    )
    return [rows[first : first + ROWS] for first in range(0, len(rows), ROWS)]


def patterns(p: ConvProblem, height: int) -> list[Pattern]:
    """What each output row takes from each word, where that is anything."""
    found = []
    for oy in range(height):
        places = {oy * p.stride[0] + ky * p.dilation[0]: ky for ky in range(p.kernel[0])}
        for number, rows in enumerate(input_rows(p, height)):
            taps = tuple(places.get(row, -1) for row in rows)
            if max(taps) >= 0:
                found.append(Pattern(oy, number, taps + (-1,) * (ROWS - len(taps))))
    return found


def least_channels(count: int) -> int:
    """Channels of the narrowest vector for `count` that there are."""
    return max(LEAST, 1 << (count - 1).bit_length())


def channels_of(p: ConvProblem, height: int, cpu: Cpu, hold: bool, dot: Dot) -> int:
    """Channels of a vector: the bytes of a register, or of a part of one if registers are few."""
    most = least_channels(min(p.c, 4 * cpu.lanes))
    fits = [
        channels
        for channels in (most, most // 2, most // 4)
        if channels >= max(LEAST, cpu.lanes)
        and _registers(p, height, cpu, hold, dot, channels) <= cpu.registers
    ]
    return fits[0] if fits else LEAST


def word_registers(p: ConvProblem, height: int, cpu: Cpu, hold: bool, dot: Dot) -> int:
    """Vector registers that a tile of so many rows keeps alive."""
    return _registers(p, height, cpu, hold, dot, channels_of(p, height, cpu, hold, dot))


def _registers(p: ConvProblem, height: int, cpu: Cpu, hold: bool, dot: Dot, channels: int) -> int:
    width = (p.kernel[1] - 1) * p.dilation[1] + 1
    sums = height * -(-width // p.stride[1])
    weights = len(patterns(p, height)) * p.kernel[1] if hold else 0
    return (sums + weights + 1) * channels // cpu.lanes + dot.registers + 3


def order_of(channels: int, dot: Dot) -> list[int]:
    """The channels in the order in which interleaving leaves them. Widening keeps their order."""
    if dot.widens:
        return [*range(channels)]
    parts = range(0, channels, LEAST)
    return [part + quad + i for quad in range(0, LEAST, 4) for part in parts for i in range(4)]


def pack_words(
    weights: NDArray[Any], p: ConvProblem, channels: int, lanes: int, heights: Sequence[int],
    dot: Dot,
) -> NDArray[Any]:  # fmt: skip
    """Weights (c, 1, kh, kw) -> (vector, height of tile, pattern, kw, part, lane, row).

    The last vector is only as wide as its channels need.
    """
    pieces = []
    for first in range(0, p.c, channels):
        filters = weights[first : first + channels, 0]
        width = min(channels, least_channels(len(filters)))
        pieces.append(_packed(filters, p, width, lanes, heights, dot))
    return np.concatenate(pieces)


def _packed(
    filters: NDArray[Any], p: ConvProblem, channels: int, lanes: int, heights: Sequence[int],
    dot: Dot,
) -> NDArray[Any]:  # fmt: skip
    dtype = dot.types.weights.numpy
    filled = np.zeros((channels, *p.kernel), dtype)
    filled[: len(filters)] = filters
    places, none = filled[order_of(channels, dot)], np.zeros((channels, p.kernel[1]), dtype)
    pieces = []
    for taps in (pattern.taps for h in heights for pattern in patterns(p, h)):
        rows = np.stack([places[:, tap] if tap >= 0 else none for tap in taps])
        words = rows.transpose(2, 1, 0).reshape(p.kernel[1], -1, lanes, ROWS)
        pieces.append(dot.order(words).reshape(-1))
    return np.concatenate(pieces)


@dataclass(frozen=True)
class WordVector:
    """A vector of channels of an image: how its tiles are computed."""

    k: Kernel
    p: ConvProblem
    io: Io
    dot: Dot
    hold: bool
    heights: Sequence[int]  # of tiles, in the order of packed weights
    image: Int
    number: Int
    unit: int  # channels of the others
    kept: int  # channels that there are in this one

    @property
    def channels(self) -> int:
        """Channels that are computed."""
        return min(self.unit, least_channels(self.kept))

    def tile(self, height: int, width: int, top: Int, left: Int) -> None:
        """Compute height x width outputs from row `top` and column `left` on."""
        k, p, io, lanes = self.k, self.p, self.io, self.k.lanes
        channels, parts = self.channels, self.channels // lanes
        order = order_of(channels, self.dot)
        bias = k.argument("bias", self.unit, dtype=I32).load(self.number, lanes=channels)
        scales = scales_at(p, k, self.number * self.unit, channels)
        starts, factors = (self._in_order(x, order) for x in (bias, scales))
        src = k.tensor("src", io.src, y=-p.padding[0], x=-p.padding[1]).at(self.image)
        corner = at_channel(src, io.src, self.number, self.unit)
        corner = corner.at(0, 0, top * p.stride[0], left * p.stride[1])
        used, words = patterns(p, height), input_rows(p, height)
        packed = self._weights(height, parts)
        sums = {(y, x): list(starts) for y in range(height) for x in range(width)}
        after = starts[0]
        (kw, step, apart) = p.kernel[1], p.stride[1], p.dilation[1]
        for ix in range((width - 1) * step + (kw - 1) * apart + 1):
            found = pairs_at(ix, width, kw, step, apart)
            if not found:
                continue
            column = corner.after(after).at(0, 0, 0, ix)
            combine = self._widened if self.dot.widens else self._interleaved
            operands = [combine(column, rows, channels) for rows in words]
            weights = packed if self.hold else packed.opaque()
            for ox, kx in found:
                for i, pattern in enumerate(used):
                    cell = sums[pattern.output, ox]
                    for part in range(parts):
                        w = self.dot.weights(weights, i, kx, part, lanes=lanes)
                        x = operands[pattern.word][part]
                        cell[part] = after = self.dot.add(cell[part], x, w)
            for ox in range(width):
                if ox * step + (kw - 1) * apart == ix:
                    for y in range(height):
                        self._store(sums.pop((y, ox)), factors, order, top + y, left + ox)

    def _in_order(self, wide: Vec, order: Sequence[int]) -> list[Vec]:
        """A value for each channel as vectors in the order of the sums."""
        lanes = self.k.lanes
        cuts = range(0, len(order), lanes)
        return [self.k.shuffle(wide, wide, order[first : first + lanes]) for first in cuts]

    def _weights(self, height: int, parts: int) -> Buffer:
        """Packed weights (pattern, kx, part) of tiles of this height."""
        p, one = self.p, self.k.lanes * self.dot.group
        sizes = [len(patterns(p, h)) * p.kernel[1] * parts * one for h in self.heights]
        place = self.heights.index(height)
        # Those of the vectors before, which are full.
        before = sum(sizes) * self.unit // self.channels
        whole = self.k.argument("weights", before, dtype=self.dot.types.weights).at(self.number)
        strides = p.kernel[1] * parts * one, parts * one, one
        return whole.strided(1).at(sum(sizes[:place])).strided(*strides)

    def _interleaved(self, column: Buffer, rows: Sequence[int], channels: int) -> list[Group]:
        """The operands of a column of up to four rows."""
        k = self.k
        loaded = [column.load(0, 0, row, lanes=channels) for row in rows]
        a, b, c, d = [*loaded, *[loaded[-1]] * (ROWS - len(rows))]
        halves = [(_zip(k, a, b, half, 1), _zip(k, c, d, half, 1)) for half in (0, 1)]
        quarters = [_zip(k, low, high, half, 2) for low, high in halves for half in (0, 1)]
        size = k.lanes * self.dot.group
        while quarters[0].lanes < size:
            pairs = zip(quarters[::2], quarters[1::2], strict=True)
            quarters = [k.shuffle(x, y, range(x.lanes + y.lanes)) for x, y in pairs]
        return [self.dot.prepare(words) for words in quarters]

    def _widened(self, column: Buffer, rows: Sequence[int], channels: int) -> list[Group]:
        """The operands of a column of up to four rows as pairs of int16: rows 0 and 2, 1 and 3."""
        k, lanes = self.k, self.k.lanes

        def pairs(first: int, part: int) -> Vec:
            words = [column.load(0, 0, row, 0, part, lanes=lanes).to(I32) for row in rows[first::2]]
            low, *high = words or [k.const(0, lanes, I32)]
            return (low + k.shifted(high[0], "shl", I16.bits) if high else low).bits_as(I16)

        starts = range(0, channels, lanes)
        return [(pairs(0, start), pairs(1, start)) for start in starts]

    def _store(
        self, totals: list[Vec], scales: list[Vec], order: Sequence[int], y: Int, x: Int
    ) -> None:
        p, io, k = self.p, self.io, self.k
        channels = self.channels
        adds: list[Vec | None] = [None] * len(totals)
        if p.add:
            of = at_channel(k.tensor("add", io.add).at(self.image), io.add, self.number, self.unit)
            residual = of.load(0, 0, y, x, lanes=channels).to(F32)
            adds = [*self._in_order(residual, order)]
        dst = at_channel(k.tensor("dst", io.dst).at(self.image), io.dst, self.number, self.unit)
        # Where each channel is among the sums.
        places = [int(place) for place in np.argsort(order)]
        if p.precision.dst is U8:
            quads = [place // 4 for place in places[::4]]
            value = finish_scaled(p, totals, adds, scales, quads)
        else:
            whole = [
                finish_scaled(p, [t], [a], [s])
                for t, a, s in zip(totals, adds, scales, strict=True)
            ]
            value = _joined(k, whole, places)
        dst.store_first(value, self.kept, 0, 0, y, x)


def _zip(k: Kernel, a: Vec, b: Vec, half: int, unit: int) -> Vec:
    """Bytes of a and b in turn, `unit` of each, from one half of every 16 bytes."""
    first, size = half * LEAST // 2, a.lanes
    starts = [part + first + i for part in range(0, size, LEAST) for i in range(0, 8, unit)]
    order = [
        place + i for start in starts for place in (start, size + start) for i in range(unit)
    ]  # fmt: skip
    return k.shuffle(a, b, order)


def _joined(k: Kernel, vectors: list[Vec], places: Sequence[int]) -> Vec:
    """Vectors one behind the other, then lanes in this order."""
    while len(vectors) > 1:
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [k.shuffle(a, b, range(a.lanes + b.lanes)) for a, b in pairs]
    return k.shuffle(vectors[0], vectors[0], places)


def pairs_at(i: int, outputs: int, taps: int, stride: int, dilation: int) -> list[tuple[int, int]]:
    """(output, tap) pairs along one axis that need input `i` of a tile."""
    pairs = ((o, i - o * stride) for o in range(outputs))
    return [(o, d // dilation) for o, d in pairs if d % dilation == 0 and 0 <= d // dilation < taps]

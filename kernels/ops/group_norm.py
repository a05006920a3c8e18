"""Normalisation over groups of channels and all pixels, with scale and shift, in one kernel.

A plane is cut into pieces that stay in a cache while mean and squared deviations are summed in a
pass each. What pieces and channels found is joined without cancellation (Chan, Golub and LeVeque,
1979). So the tensor is read from memory twice: for the sums, and to be normalised.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fastrun.kernels.codegen.builder import (
    Buffer,
    Index,
    Int,
    Kernel,
    Module,
    Vec,
    at_channel,
    first_lanes,
    fma,
)
from fastrun.kernels.codegen.epilogue import activate
from fastrun.kernels.codegen.sums import across
from fastrun.kernels.codegen.tiling import Tiles, consecutive, cover, cut, last_apart, tile_count
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import READ_SLACK, Array, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check, check_f32

# Accumulators of a sum, vectors of channels that a task takes together, and bytes of a piece.
SUMS, TOGETHER, PIECE = 8, 4, 1 << 15

# Lanes of the vectors of channels while what pieces found is joined, where vectors are of pixels.
JOINED = 8


@dataclass(frozen=True)
class GroupNorm:
    """`activation((x - mean) / sqrt(variance + epsilon) * scale + shift)` by groups of channels.

    Mean and variance are those of a group's neighbouring channels at all pixels of an image. Inputs
    are x, scale and shift, the latter of c values each. With a channel in each group this is
    instance normalisation.
    """

    groups: int
    epsilon: float
    activation: str = ""


@identified
def build(spec: GroupNorm, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Normalise every image of `src`. The weights are scale and shift, (2, c).

    Raises:
        ScheduleError: the tensors differ in shape or layout, groups do not divide the channels, or
            a tensor is not of f32.
    """
    check_f32("group normalisation", src, dst)
    shape = (dst.n, dst.c, dst.h, dst.w)
    alike = (src.n, src.c, src.h, src.w) == shape and src.layout == dst.layout
    check(alike, f"group normalisation cannot turn {src} into {dst}")
    check(src.c % spec.groups == 0, f"{spec.groups} groups do not divide {src.c} channels")
    module = Module(cpu)
    work = _Work.of(spec, cpu, src, dst)
    work.sum_pieces(module)
    work.join_pieces(module)
    if src.c > spec.groups:
        work.join_channels(module)
    work.normalise(module)
    return module.program(
        Io(src, dst, dst),
        lambda weights: _packed(weights, work.width),
        shared_bytes=F32.bytes(work.room + READ_SLACK),
    )


def _packed(weights: Array, width: int) -> Array:
    """Scale and shift, each with zeros behind: missing channels of a block become zero."""
    both = np.zeros((2, width + READ_SLACK), np.float32)
    both[:, : weights.shape[1]] = weights
    return both.reshape(-1)


@dataclass(frozen=True)
class _Work:
    """How planes are cut: `lines` of `pieces` of pixels, and `units` of vectors of channels.

    In NCHW, where `planes` is true, vectors are of pixels, and a unit is a channel.
    """

    spec: GroupNorm
    src: Placement
    dst: Placement
    planes: bool
    lanes: int
    lines: int
    pieces: list[Tiles]
    units: list[Tiles]

    @classmethod
    def of(cls, spec: GroupNorm, cpu: Cpu, src: Placement, dst: Placement) -> _Work:
        planes = src.layout.name == "NCHW"
        lines, pixels = (1, src.h * src.w) if src.dense and dst.dense else (src.h, src.w)
        if planes:
            lanes, units, bytes_of = cpu.lanes_for(pixels), consecutive((1, src.c)), F32.bytes()
        else:
            lanes = min(cpu.lanes, src.layout.blocked or cpu.lanes_for(src.c))
            units = last_apart(cover(-(-src.c // lanes), TOGETHER))
            bytes_of = F32.bytes(units[0].size * lanes)
        return cls(spec, src, dst, planes, lanes, lines, cover(pixels, PIECE // bytes_of), units)

    @property
    def per_image(self) -> int:
        """Pieces of a plane."""
        return tile_count(self.pieces) * self.lines

    @property
    def tasks(self) -> int:
        """Pieces of all units and images."""
        return self.src.n * self.per_image * tile_count(self.units)

    @property
    def joined(self) -> int:
        """Lanes of a vector of channels while what pieces found is joined."""
        return JOINED if self.planes else self.lanes

    @property
    def width(self) -> int:
        """Channels, rounded up to whole vectors."""
        return -(-self.src.c // self.joined) * self.joined

    @property
    def room(self) -> int:
        """Numbers of the workspace: means and squares of pieces, means and factors of channels."""
        return 2 * self.src.n * self.width * (self.per_image + 1)

    def _found(self, k: Kernel, squares: bool) -> Buffer:
        """The means or the sums of squared deviations, indexed (image, piece, channel)."""
        before = self.src.n * self.per_image * self.width if squares else 0
        return k.argument("shared", self.per_image * self.width, self.width, 1, offset=before)

    def _joined(self, k: Kernel, factors: bool) -> Buffer:
        """The means of channels or the factors of their deviations, indexed (image, channel)."""
        before = self.src.n * self.width * (2 * self.per_image + factors)
        return k.argument("shared", self.width, 1, offset=before)

    def _each(self, k: Kernel, task: Int, body: Callable[[_Piece], None]) -> None:
        """Write the code of a task, whose place `body` gets."""
        count, units = tile_count(self.pieces), tile_count(self.units)
        unit, rest = task % units, task // units
        number, rest = rest % count, rest // count
        line, image = rest % self.lines, rest // self.lines
        for run in self.pieces:
            with run.when(k, number) as x:
                for vectors in self.units:
                    with vectors.when(k, unit) as first:
                        tail = self.src.c % self.lanes if vectors is self.units[-1] else 0
                        place = image, line * count + number, line
                        body(_Piece(self, k, *place, x, run.size, first, vectors.size, tail))

    def sum_pieces(self, module: Module) -> None:
        """The mean and the squared deviations of every channel in every piece."""

        @module.stage("group_sums", self.tasks)
        def write(k: Kernel, task: Index) -> None:

            def body(piece: _Piece) -> None:
                means = [total * (1 / piece.pixels) for total in piece.totals(lambda x, j: x)]
                wide = [k.splat(x, self.lanes) if self.planes else x for x in means]
                squares = piece.totals(lambda x, j: (x - wide[j]) * (x - wide[j]))
                for squared, values in ((False, means), (True, squares)):
                    for j, value in enumerate(values):
                        target = self._found(k, squared).at(piece.image, piece.number)
                        target.store(value, 0, 0, piece.channel(j))

            self._each(k, task, body)

    def join_pieces(self, module: Module) -> None:
        """The mean and the squared deviations of every channel, or its factor if it is a group."""
        vectors, pixels = self.width // self.joined, self.src.h * self.src.w

        @module.stage("group_pieces", self.src.n * vectors)
        def write(k: Kernel, task: Index) -> None:
            image, channel = task // vectors, task % vectors * self.joined
            acc = k.tile(1, 2, self.joined)
            acc.fill(k.const(0.0, self.joined))
            means, squares = (
                self._found(k, squared).at(image, 0, channel) for squared in (False, True)
            )
            for second in (False, True):
                with k.loop(self.lines) as line:
                    for run in self.pieces:
                        with k.times(run.count) as i:
                            at = 0, line * tile_count(self.pieces) + run.number + i, 0
                            mean = means.load(*at, lanes=self.joined)
                            if second:
                                apart = mean - acc[0, 0]
                                more = squares.load(*at, lanes=self.joined)
                                acc[0, 1] = acc[0, 1] + (apart * apart * run.size + more)
                            else:
                                acc[0, 0] = acc[0, 0] + mean * (run.size / pixels)
            alone = self.spec.groups == self.src.c
            found = self._factor(k, acc[0, 1] * (1 / pixels)) if alone else acc[0, 1]
            self._joined(k, False).store(acc[0, 0], image, channel)
            self._joined(k, True).store(found, image, channel)

    def join_channels(self, module: Module) -> None:
        """The mean of every group, and its factor, in the places of its channels."""
        groups, pixels = self.spec.groups, self.src.h * self.src.w
        size = self.src.c // groups

        @module.stage("group_channels", self.src.n * groups)
        def write(k: Kernel, task: Index) -> None:
            image, first = task // groups, task % groups * size
            means, factors = (self._joined(k, x).at(image, first) for x in (False, True))
            acc = k.tile(1, 2, 1)
            acc.fill(k.const(0.0, 1))
            with k.loop(size) as c:
                acc[0, 0] = acc[0, 0] + means.load(0, c, lanes=1) * (1 / size)
            with k.loop(size) as c:
                apart = means.load(0, c, lanes=1) - acc[0, 0]
                acc[0, 1] = acc[0, 1] + (apart * apart * pixels + factors.load(0, c, lanes=1))
            factor = self._factor(k, acc[0, 1] * (1 / (size * pixels)))
            with k.loop(size) as c:
                means.store(acc[0, 0], 0, c)
                factors.store(factor, 0, c)

    def _factor(self, k: Kernel, variance: Vec) -> Vec:
        deviation = k.intrinsic("sqrt", variance + self.spec.epsilon)
        return k.const(1.0, deviation.lanes) / deviation

    def normalise(self, module: Module) -> None:
        """The result, from the means and factors of channels."""

        @module.stage("group_norm", self.tasks)
        def write(k: Kernel, task: Index) -> None:
            behind = self.width + READ_SLACK

            def body(piece: _Piece) -> None:
                def of_channel(where: Buffer, j: int) -> Vec:
                    if self.planes:
                        return where.splat(piece.channel(j), lanes=self.lanes)
                    return where.load(piece.channel(j), lanes=self.lanes)

                columns = range(piece.vectors)
                means, factors = (
                    [of_channel(self._joined(k, x).at(piece.image).strided(1), j) for j in columns]
                    for x in (False, True)
                )
                scales, shifts = (
                    [of_channel(k.argument("weights", 1, offset=at), j) for j in columns]
                    for at in (0, behind)
                )
                factors = [a * b for a, b in zip(factors, scales, strict=True)]
                piece.replaced(
                    lambda x, j: activate(
                        fma(x - means[j], factors[j], shifts[j]), self.spec.activation
                    )
                )

            self._each(k, task, body)


@dataclass(frozen=True)
class _Piece:
    """`pixels` neighbouring pixels of `vectors` vectors of channels, the last of which has `tail`.

    In NCHW `first` is a channel. A `tail` of 0 is a whole vector.
    """

    work: _Work
    k: Kernel
    image: Int
    number: Int
    line: Int
    x: Int
    pixels: int
    first: Int
    vectors: int
    tail: int

    def channel(self, j: int) -> Int:
        """The first channel of a vector."""
        return self.first if self.work.planes else (self.first + j) * self.work.lanes

    def _columns(self, name: str, where: Placement) -> list[Buffer]:
        """The pixels of each vector of channels; their stride is in axis 3."""
        whole = self.k.tensor(name, where).at(self.image, 0, self.line, self.x)
        unit = 1 if self.work.planes else self.work.lanes
        return [at_channel(whole, where, self.first + j, unit) for j in range(self.vectors)]

    def _cells(self) -> Iterator[tuple[int, int, Int, int]]:
        """Place in straight code, vector of channels, pixel, and the lanes that are used."""
        lanes = self.work.lanes
        if not self.work.planes:
            for run in cut(self.pixels, max(1, SUMS // self.vectors)):
                with run.unrolled(self.k) as pixels:
                    for i, pixel in enumerate(pixels):
                        for j in range(self.vectors):
                            last = j == self.vectors - 1
                            yield i, j, pixel, (last and self.tail) or lanes
            return
        full, rest = divmod(self.pixels, lanes)
        for run in cut(full, SUMS):
            with run.unrolled(self.k) as vectors:
                for i, vector in enumerate(vectors):
                    yield i, 0, vector * lanes, lanes
        if rest:
            yield 0, 0, full * lanes, rest

    def _load(self, at: Buffer, pixel: Int, used: int) -> Vec:
        lanes = self.work.lanes
        if self.work.planes:
            return at.load_first(used, 0, 0, 0, pixel, lanes=lanes)
        return at.load(0, 0, 0, pixel, lanes=lanes)

    def totals(self, term: Callable[[Vec, int], Vec]) -> list[Vec]:
        """The sum of a function of the values of each vector of channels, or of the channel."""
        k, lanes, planes = self.k, self.work.lanes, self.work.planes
        acc = k.tile(SUMS if planes else max(1, SUMS // self.vectors), self.vectors, lanes)
        acc.fill(k.const(0.0, lanes))
        source = self._columns("src", self.work.src)
        for i, j, pixel, used in self._cells():
            value = term(self._load(source[j], pixel, used), j)
            if planes and used < lanes:
                value = k.blend(first_lanes(used, lanes), value, k.const(0.0, lanes))
            acc[i, j] = acc[i, j] + value
        found = []
        for j in range(self.vectors):
            total = functools.reduce(Vec.__add__, (acc[i, j] for i in range(acc.rows)))
            found.append(across(total, Vec.__add__) if planes else total)
        return found

    def replaced(self, function: Callable[[Vec, int], Vec]) -> None:
        """Store a function of the values."""
        k, lanes = self.k, self.work.lanes
        source, target = self._columns("src", self.work.src), self._columns("dst", self.work.dst)
        for _, j, pixel, used in self._cells():
            value = function(self._load(source[j], pixel, used), j)
            if self.work.dst.layout.blocked and used < lanes:
                # Missing channels of a block must be finite.
                value = k.blend(first_lanes(used, lanes), value, k.const(0.0, lanes))
                used = lanes
            target[j].store_first(value, used, 0, 0, 0, pixel)

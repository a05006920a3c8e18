"""Winograd convolution as a chain of whole-map steps: the baseline of the engineered one.

The padded map is copied and transformed as a whole. Each product packs its operand again. All
products lie in memory before they are transformed back. Vectors are neighbouring tiles of an NCHW
plane, so pixels are read and written with a stride.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, least
from fastrun.kernels.codegen.epilogue import finish
from fastrun.kernels.codegen.micro_kernel import outer_product, registers
from fastrun.kernels.codegen.tiling import cover, cut
from fastrun.kernels.conv.winograd.transform import Transform, expected_error, transform_weights
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Array
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import KernelTemplate, check, check_layouts, check_sizes


@dataclass(frozen=True)
class Schedule:
    layout: str
    m: int  # output rows and columns of a tile


def why_not(p: ConvProblem, cpu: Cpu) -> str | None:
    if p.stride != (1, 1) or p.dilation != (1, 1):
        return "Winograd needs stride 1 and dilation 1"
    if min(p.kernel) == 1 or max(p.kernel) > 7:
        return "filters from 2x2 to 7x7 only"
    return "no groups" if p.groups > 1 else None


def heuristic(p: ConvProblem, cpu: Cpu) -> Schedule:
    return Schedule("NCHW", m=min(6, 9 - max(p.kernel)))


def build(p: ConvProblem, s: Schedule, cpu: Cpu, io: Io) -> Program:
    check_sizes(s)
    check_layouts(io, "NCHW")
    check(1 <= s.m <= 9 - max(p.kernel), f"no points for F({s.m},{max(p.kernel)})")
    vertical, horizontal = (Transform.of(s.m, r, "standard") for r in p.kernel)
    tiles = p.n * -(-p.oh // s.m) * -(-p.ow // s.m)
    lanes = cpu.lanes_for(tiles)
    w = _Naive(p, s, io, vertical, horizontal, lanes, cols=min(2, -(-tiles // lanes)))
    module = Module(cpu)

    @module.stage("winograd_pad", p.n * p.c)
    def write_winograd_pad(k: Kernel, task: Index) -> None:
        w.pad(k, task // p.c, task % p.c)

    @module.stage("winograd_input", p.n * p.c)
    def write_winograd_input(k: Kernel, task: Index) -> None:
        w.transform_input(k, task // p.c, task % p.c)

    panels = w.pitch // w.panel

    @module.stage("winograd_product", w.planes * panels)
    def write_winograd_product(k: Kernel, task: Index) -> None:
        w.multiply(k, task // panels, task % panels)

    @module.stage("winograd_output", p.n * p.oc)
    def write_winograd_output(k: Kernel, task: Index) -> None:
        w.transform_output(k, task // p.oc, task % p.oc)

    def pack(weights: Array) -> Array:
        return transform_weights(weights, vertical, horizontal).reshape(-1)

    shared = w.padded_floats + w.planes * (p.c + p.oc) * w.pitch
    return module.program(io, pack, F32.bytes(shared), local_bytes=F32.bytes(p.c * w.panel))


@dataclass(frozen=True)
class _Naive:
    """The sizes of one kernel and the code of its four steps."""

    p: ConvProblem
    s: Schedule
    io: Io
    vertical: Transform
    horizontal: Transform
    lanes: int  # of vectors of tiles
    cols: int  # vectors of tiles of a register tile; its rows are output channels

    @property
    def panel(self) -> int:
        """Tiles that are packed together."""
        return self.cols * self.lanes

    @property
    def planes(self) -> int:
        return self.vertical.alpha * self.horizontal.alpha

    @property
    def down(self) -> int:
        """Tiles in a column of the map."""
        return -(-self.p.oh // self.s.m)

    @property
    def across(self) -> int:
        """Tiles in a row of the map."""
        return -(-self.p.ow // self.s.m)

    @property
    def pitch(self) -> int:
        """Tiles of all images, rounded up to whole panels."""
        return -(-self.p.n * self.down * self.across // self.panel) * self.panel

    @property
    def group(self) -> int:
        """Tiles of a row that are transformed together: a power of two."""
        return min(self.lanes, 1 << (self.across.bit_length() - 1))

    @property
    def height(self) -> int:
        return self.down * self.s.m + self.p.kernel[0] - 1

    @property
    def width(self) -> int:
        return self.across * self.s.m + self.p.kernel[1] - 1

    @property
    def padded_floats(self) -> int:
        """Floats of the padded map and of what the last strided load reads behind it."""
        return self.p.n * self.p.c * self.height * self.width + self.s.m

    def pad(self, k: Kernel, image: Int, channel: Int) -> None:
        """Copy a channel to where it is followed by zeros up to whole tiles."""
        p = self.p
        rows, columns = p.oh + p.kernel[0] - 1, p.ow + p.kernel[1] - 1
        src = k.tensor("src", self.io.src, y=-p.padding[0], x=-p.padding[1]).at(image, channel)
        out = self._padded(k, image, channel)
        zero = k.const(0.0, lanes=1)
        with k.loop(rows) as y:
            with k.loop(columns) as x:
                out.store(src.load(0, 0, y, x, lanes=1), y, x)
            if columns < self.width:
                with k.loop(columns, self.width) as x:
                    out.store(zero, y, x)
        if rows < self.height:
            with k.loop(rows * self.width, self.height * self.width) as i:
                out.store(zero, 0, i)

    def transform_input(self, k: Kernel, image: Int, channel: Int) -> None:
        """Bt d B of one channel, a vector of tiles at a time."""
        lanes, m = self.group, self.s.m
        height, width = self.vertical.alpha, self.horizontal.alpha
        padded = self._padded(k, image, channel)
        planes = self._transformed(k).at(0, channel)
        half = k.scratch(self.planes * lanes, width * lanes, lanes, 1)
        with self._tiles(k, image) as (tile, y, x):
            with k.loop(width) as right:
                column = [
                    padded.load_strided(y + i, x + right, step=m, lanes=lanes)
                    for i in range(height)
                ]
                for i, value in enumerate(self.vertical.of_input(column)):
                    half.store(value, i, right)
            with k.loop(height) as below:
                line = [half.load(below, j, lanes=lanes) for j in range(width)]
                for j, value in enumerate(self.horizontal.of_input(line)):
                    planes.store(value, below * width + j, 0, tile)

    def multiply(self, k: Kernel, plane: Int, panel: Int) -> None:
        """One plane of products for a panel of tiles: packed first, then by register tiles."""
        p, lanes = self.p, self.lanes
        inputs = self._transformed(k).at(plane, 0, panel * self.panel)
        products = self._products(k).at(plane, 0, panel * self.panel)
        weights = k.argument("weights", p.oc * p.c, p.c, 1).at(plane)
        packed = k.argument("local", self.panel, 1)
        with k.loop(p.c) as channel:
            for j in range(self.cols):
                packed.store(inputs.load(0, channel, j * lanes, lanes=lanes), channel, j * lanes)
        rows = [r for r in range(k.cpu.registers) if registers(r, self.cols) <= k.cpu.registers]
        for channels in cover(p.oc, rows[-1]):
            with channels.loop(k) as first:
                acc = k.tile(channels.size, self.cols, lanes)
                acc.fill(k.const(0.0, lanes))
                for steps in cut(p.c, 4):
                    with steps.unrolled(k) as terms:
                        for c in terms:
                            done = acc[channels.size - 1, self.cols - 1]
                            a, b = weights.at(0, first).after(done), packed.after(done)
                            outer_product(
                                acc,
                                (a.splat(0, i, c, lanes=lanes) for i in range(acc.rows)),
                                (b.load(c, j * lanes, lanes=lanes) for j in range(acc.cols)),
                            )
                for i, j in acc:
                    products.store(acc[i, j], 0, first + i, j * lanes)

    def transform_output(self, k: Kernel, image: Int, channel: Int) -> None:
        """At m A of one channel, a vector of tiles at a time, and the epilogue pixel by pixel."""
        p, lanes, m = self.p, self.group, self.s.m
        width = self.horizontal.alpha
        products = self._products(k).at(0, channel)
        dst, add = (
            k.tensor(name, where).at(image, channel)
            for name, where in (("dst", self.io.dst), ("add", self.io.add))
        )
        bias = k.argument("bias", 1).load(channel, lanes=1)
        half = k.scratch(m * width * lanes, width * lanes, lanes, 1)
        pixels = k.scratch(m * lanes, lanes, 1)
        with self._tiles(k, image) as (tile, top, left):
            with k.loop(width) as right:
                column = [
                    products.load(right + i * width, 0, tile, lanes=lanes)
                    for i in range(self.vertical.alpha)
                ]
                for i, value in enumerate(self.vertical.of_output(column)):
                    half.store(value, i, right)
            with k.loop(least(p.oh - top, m)) as y:
                line = [half.load(y, j, lanes=lanes) for j in range(width)]
                for j, value in enumerate(self.horizontal.of_output(line)):
                    pixels.store(value, j)
                with k.loop(lanes) as t:
                    first = t * m + left
                    with k.loop(least(p.ow - first, m)) as x:
                        at = (0, 0, top + y, first + x)
                        residual = add.load(*at, lanes=1) if p.add else None
                        dst.store(finish(p, pixels.load(x, t, lanes=1) + bias, residual), *at)

    @contextmanager
    def _tiles(self, k: Kernel, image: Int) -> Iterator[tuple[Int, Int, Int]]:
        """A loop over vectors of tiles: number of the first, row and column of its output.

        The last vector of a row overlaps the one before.
        """
        with k.loop(self.down) as y, k.loop(-(-self.across // self.group)) as vector:
            x = least(vector * self.group, self.across - self.group)
            tile = image * (self.down * self.across) + y * self.across + x
            yield tile, y * self.s.m, x * self.s.m

    def _padded(self, k: Kernel, image: Int, channel: Int) -> Buffer:
        """The padded copy of a channel as (y, x)."""
        whole = k.argument("shared", self.height * self.width)
        return whole.at(image * self.p.c + channel).strided(self.width, 1)

    def _transformed(self, k: Kernel) -> Buffer:
        """The transformed input as (plane, channel, tile)."""
        strides = (self.p.c * self.pitch, self.pitch, 1)
        return k.argument("shared", *strides, offset=self.padded_floats)

    def _products(self, k: Kernel) -> Buffer:
        """The products as (plane, output channel, tile)."""
        behind = self.padded_floats + self.planes * self.p.c * self.pitch
        return k.argument("shared", self.p.oc * self.pitch, self.pitch, 1, offset=behind)


template = KernelTemplate(
    "winograd_naive",
    Schedule,
    why_not,
    heuristic,
    build,
    baseline=True,
    rows_alike=False,
    error=lambda p, s: expected_error(p, (s.m, s.m), "standard"),
)

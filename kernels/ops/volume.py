"""Depthwise convolution of volumes: a filter of three axes for each channel.

A vector holds neighbouring channels, a register tile outputs side by side in a row. Each row of the
filter that meets the volume adds to it, so that no sum of planes is stored. A volume lies as an
image whose rows are those of all planes, one plane after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from fastrun.kernels.codegen.builder import (
    Index,
    Int,
    Kernel,
    Module,
    at_channel,
    fma,
    least,
    most,
)
from fastrun.kernels.codegen.epilogue import activate
from fastrun.kernels.codegen.tiling import Tiles, consecutive, cover
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import Array, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Ints
from fastrun.kernels.core.template import check, check_f32

# Outputs of a register tile, at most.
TILE = 14
# Tasks to aim at: enough to divide evenly among any number of threads.
TASKS = 32


@dataclass(frozen=True)
class Volume:
    """Weights are (c, 1, *kernel), the bias is (c,); axes are (depth, height, width).

    Padding is that of all begins, then of all ends. `depth` is the number of the input's planes.
    """

    depth: int
    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    activation: str = ""


@dataclass(frozen=True)
class _Axis:
    """One axis: `before` zeros lie in front of `inputs`."""

    inputs: int
    kernel: int
    stride: int
    before: int
    after: int
    dilation: int

    @property
    def outputs(self) -> int:
        """The number of windows."""
        span = (self.kernel - 1) * self.dilation + 1
        return (self.inputs + self.before + self.after - span) // self.stride + 1

    def start(self, output: Int) -> Int:
        """The input under the first tap of a window; negative in the padding."""
        return output * self.stride - self.before

    def met(self, output: Int) -> tuple[Int, Int]:
        """The taps of a window that meet the input, as (first, end)."""
        if self.before == self.after == 0:
            return 0, self.kernel
        start, apart = self.start(output), self.dilation
        first = most(start * -1, 0) + (apart - 1)
        end = most(start * -1 + (self.inputs - 1 + apart), 0)
        return first // apart, least(end // apart, self.kernel)

    def inside(self, output: int, tap: int) -> bool:
        """Whether a tap of a window meets the input."""
        return 0 <= output * self.stride - self.before + tap * self.dilation < self.inputs


@identified
def build(spec: Volume, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Convolve the volumes of `src`, whose rows are those of all planes, into those of `dst`.

    Raises:
        ScheduleError: a tensor is not of f32 or lies in NCHW, or the shapes do not fit.
    """
    check_f32("a convolution of volumes", src, dst)
    check("NCHW" not in (src.layout.name, dst.layout.name), "volumes need NHWC or NCHWc")
    check(src.h % spec.depth == 0, f"{src.h} rows are no {spec.depth} planes")
    sizes = spec.depth, src.h // spec.depth, src.w
    z, y, x = (
        _Axis(size, k, s, before, after, d)
        for size, k, s, before, after, d in zip(
            sizes, spec.kernel, spec.stride, spec.padding[:3], spec.padding[3:], spec.dilation,
            strict=True,
        )
    )  # fmt: skip
    made = src.n, src.c, z.outputs * y.outputs, x.outputs
    check(made == (dst.n, dst.c, dst.h, dst.w), f"volumes of {src} do not become {dst}")
    unit = min(cpu.lanes, *(where.layout.blocked or cpu.lanes for where in (src, dst)))
    vectors = -(-src.c // unit)
    # Where channels lie together, a task does all of them; else a vector of them is a task.
    together = "NHWC" in (src.layout.name, dst.layout.name)
    unit_tasks = 1 if together else vectors
    # In NHWC the last vector may be cut short; a block is stored whole.
    tail = 0 if dst.layout.blocked else src.c % unit
    units = consecutive((1, vectors // unit_tasks - (tail > 0)), (1, int(tail > 0)))
    planes = src.n * unit_tasks * z.outputs
    rows = min(y.outputs, max(1, planes * y.outputs // TASKS))
    row_tasks = -(-y.outputs // rows)
    columns = _columns(x, cpu)

    module = Module(cpu)

    @module.stage("volume", planes * row_tasks)
    def write_volume(k: Kernel, task: Index) -> None:
        # Planes that follow one another share input, which the cache then still has.
        plane, rest = task % z.outputs, task // z.outputs
        first, rest = rest % row_tasks * rows, rest // row_tasks
        number, image = rest % unit_tasks, rest // unit_tasks
        with k.loop(k.index(first), least(first + rows, y.outputs)) as row:
            for run in columns:
                with run.loop(k) as left:
                    for vector in units:
                        kept = (vector is units[-1] and tail) or unit
                        with vector.loop(k) as i:
                            some = _Rows(k, spec, src, dst, z, y, x, image, i + number, unit, kept)
                            some.tile(plane, row, left, run.size)

    return module.program(Io(src, dst, dst), lambda w: pack(w, unit))


def pack(weights: Array, lanes: int) -> Array:
    """Weights (c, 1, *kernel) -> (vector, *kernel, lane), flat; lanes of no channel are zero."""
    vectors = -(-len(weights) // lanes)
    filled = np.zeros((vectors * lanes, math.prod(weights.shape[1:])), np.float32)
    filled[: len(weights)] = weights.reshape(len(weights), -1)
    return filled.reshape(vectors, lanes, -1).swapaxes(1, 2).reshape(-1)


def _columns(x: _Axis, cpu: Cpu) -> Sequence[Tiles]:
    """The outputs of a row in tiles; one that meets padding is an entry of its own."""
    widest = max(1, min(TILE, cpu.registers - x.kernel - 2))
    places = [(t.start + i * t.size, t.size) for t in cover(x.outputs, widest)
              for i in range(t.count)]  # fmt: skip

    def kind(place: tuple[int, int]) -> tuple[int, int]:
        start, size = place
        free = x.inside(start, 0) and x.inside(start + size - 1, x.kernel - 1)
        return size, -1 if free else start

    return consecutive(*((size, len([*some])) for (size, _), some in groupby(places, kind)))


@dataclass(frozen=True)
class _Rows:
    """The rows of a vector of channels of a volume: how their register tiles are computed."""

    k: Kernel
    spec: Volume
    src: Placement
    dst: Placement
    z: _Axis
    y: _Axis
    x: _Axis
    image: Int
    number: Int
    unit: int
    kept: int  # channels that there are

    def tile(self, plane: Int, row: Int, left: Int, size: int) -> None:
        """Compute `size` outputs of a row from column `left` on."""
        k, z, y = self.k, self.z, self.y
        lanes = k.cpu.lanes_for(self.kept)
        acc = k.tile(1, size, lanes)
        acc.fill(k.argument("bias", self.unit).load(self.number, lanes=lanes))
        above = z.start(plane) * y.inputs + y.start(row)
        source = k.tensor("src", self.src, x=-self.x.before).at(self.image)
        corner = at_channel(source, self.src, self.number, self.unit)
        corner = corner.at(0, 0, above, left * self.x.stride)
        taps = math.prod(self.spec.kernel[1:]), math.prod(self.spec.kernel[2:]), 1
        strides = (n * self.unit for n in (z.kernel * taps[0], *taps))
        weights = k.argument("weights", *strides).at(self.number)
        with k.loop(*map(k.index, z.met(plane))) as kz, k.loop(*map(k.index, y.met(row))) as ky:
            pixels = corner.at(0, 0, kz * (z.dilation * y.inputs) + ky * y.dilation)
            filters = weights.at(0, kz, ky)
            w = [filters.load(0, 0, 0, kx, lanes=lanes) for kx in range(self.x.kernel)]
            for ix, uses in self._pixels(left, size):
                value = pixels.load(0, 0, 0, ix, lanes=lanes)
                for ox, kx in uses:
                    acc[0, ox] = fma(value, w[kx], acc[0, ox])
        target = at_channel(
            k.tensor("dst", self.dst).at(self.image), self.dst, self.number, self.unit
        )
        target = target.at(0, 0, plane * y.outputs + row, left)
        for i in range(size):
            value = activate(acc[0, i], self.spec.activation)
            target.store_first(value, self.kept, 0, 0, 0, i)

    def _pixels(self, left: Int, size: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """The pixels of a tile that meet the input, each with the (output, tap) that need it.

        A tile whose place is not known meets no padding.
        """
        x = self.x
        found = dict[int, list[tuple[int, int]]]()
        for ox in range(size):
            for kx in range(x.kernel):
                if not isinstance(left, int) or x.inside(left + ox, kx):
                    found.setdefault(ox * x.stride + kx * x.dilation, []).append((ox, kx))
        return sorted(found.items())

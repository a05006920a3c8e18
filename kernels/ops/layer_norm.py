"""Layer normalisation of the channels of each pixel, with its scale and shift.

Channels are vectors, in NHWC or in blocks. A pixel's channels stay in the first cache, so mean and
variance take a pass each: the sum of squared deviations has no cancellation.
"""

from __future__ import annotations

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
    least,
)
from fastrun.kernels.codegen.sums import across
from fastrun.kernels.codegen.tiling import cut
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import NHWC, Array, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check, check_f32

# Vectors of channels in straight code, accumulators of a sum, and values of a task.
UNROLL, SUMS, GRAIN = 8, 4, 1 << 15


@dataclass(frozen=True)
class LayerNorm:
    """`(x - mean) / sqrt(variance + epsilon) * scale + shift`, over the channels (axis 1).

    Inputs are x, scale and an optional shift, of c values each.
    """

    epsilon: float


@identified
def build(spec: LayerNorm, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Normalise every pixel of `src`. The weights are scale and shift, (2, c).

    Raises:
        ScheduleError: the tensors differ in shape or layout, channels are not vectors, or a tensor
            is not of f32.
    """
    check_f32("layer normalisation", src, dst)
    src, dst = _channels_last(src), _channels_last(dst)
    shape = (dst.n, dst.c, dst.h, dst.w)
    alike = (src.n, src.c, src.h, src.w) == shape and src.layout == dst.layout
    check(alike, f"layer normalisation cannot turn {src} into {dst}")
    check(src.layout.name != "NCHW", "layer normalisation takes channels that lie together")
    lanes = min(cpu.lanes, src.layout.blocked or cpu.lanes_for(src.c))
    width = -(-src.c // lanes) * lanes
    lines, pixels = (1, src.h * src.w) if src.dense and dst.dense else (src.h, src.w)
    per_task = max(1, GRAIN // src.c)
    chunks = -(-pixels // per_task)

    module = Module(cpu)

    @module.stage("layer_norm", src.n * lines * chunks)
    def write_layer_norm(k: Kernel, task: Index) -> None:
        chunk, rest = task % chunks, task // chunks
        line, image = rest % lines, rest // lines
        source = k.tensor("src", src).at(image, 0, line)
        target = k.tensor("dst", dst).at(image, 0, line)
        scales = k.argument("weights", lanes)
        shifts = k.argument("weights", lanes, offset=width)
        first = chunk * per_task
        with k.loop(first, least(first + per_task, pixels)) as x:
            given = _Channels(k, source.at(0, 0, 0, x), src, lanes)
            result = _Channels(k, target.at(0, 0, 0, x), dst, lanes)
            mean = given.mean(lambda value: value)
            deviation = k.intrinsic("sqrt", given.mean(lambda x: _square(x - mean)) + spec.epsilon)
            factor = k.const(1.0, lanes) / deviation
            for _, v, count in given.vectors():
                scale, shift = scales.load(v, lanes=lanes), shifts.load(v, lanes=lanes)
                value = fma((given.load(v) - mean) * factor, scale, shift)
                result.store(v, value, count)

    return module.program(Io(src, dst, dst), lambda weights: _packed(weights, width))


@dataclass(frozen=True)
class _Channels:
    """The channels of one pixel as vectors of so many lanes."""

    k: Kernel
    at: Buffer
    where: Placement
    lanes: int

    def vectors(self) -> Iterator[tuple[int, Int, int]]:
        """Place in straight code, number, and lanes that hold channels, of every vector."""
        full, tail = divmod(self.where.c, self.lanes)
        for tiles in cut(full, UNROLL):
            with tiles.unrolled(self.k) as numbers:
                for place, v in enumerate(numbers):
                    yield place, v, self.lanes
        if tail:
            yield 0, full, tail

    def load(self, v: Int) -> Vec:
        return at_channel(self.at, self.where, v, self.lanes).load(lanes=self.lanes)

    def store(self, v: Int, value: Vec, count: int) -> None:
        kept = self.lanes if self.where.layout.blocked else count
        at_channel(self.at, self.where, v, self.lanes).store_first(value, kept)

    def mean(self, term: Callable[[Vec], Vec]) -> Vec:
        """The mean of a function of the channels, in every lane."""
        k, lanes = self.k, self.lanes
        acc, zero = k.tile(1, SUMS, lanes), k.const(0.0, lanes)
        acc.fill(zero)
        for place, v, count in self.vectors():
            value = term(self.load(v))
            if count < lanes:
                value = k.blend(first_lanes(count, lanes), value, zero)
            acc[0, place % SUMS] = acc[0, place % SUMS] + value
        (a, b, c, d) = (acc[cell] for cell in acc)
        total = across((a + b) + (c + d), lambda x, y: x + y)
        return k.splat(total * (1 / self.where.c), lanes)


def _square(x: Vec) -> Vec:
    return x * x


def _packed(weights: Array, width: int) -> Array:
    """Scale and shift, each with zeros behind: missing channels of a block become zero."""
    both = np.zeros((2, width), np.float32)
    both[:, : weights.shape[1]] = weights
    return both.reshape(-1)


def _channels_last(where: Placement) -> Placement:
    """One pixel in NCHW as what it also is."""
    single = (where.h, where.w, where.halo) == (1, 1, (0, 0, 0, 0))
    if single and where.layout.name == "NCHW":
        return Placement(NHWC.of(where.dtype), where.n, where.c, 1, 1, whole=where.whole,
                         first=where.first)  # fmt: skip
    return where

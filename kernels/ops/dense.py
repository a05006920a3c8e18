"""Fully connected layers: y = activation(W x + b + add) for a few vectors x.

Every weight is used once for each x, so the time is that of reading the weights. Each panel of
outputs is a region of its own; several regions are read at the same time, as streams.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.codegen.builder import Index, Kernel, Module
from fastrun.kernels.codegen.epilogue import activate
from fastrun.kernels.codegen.half import encoded, joined, unscale, weights_at
from fastrun.kernels.codegen.sums import add_products
from fastrun.kernels.codegen.tiling import channel_panels, cover, tile_count
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32, DType
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import Array, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.template import check, check_f32

# Panels read at the same time, images that share a reading, and features in straight code.
STREAMS, IMAGES, UNROLL = 4, 6, 4


@dataclass(frozen=True)
class Dense:
    """Weights are (outputs, features), features in the order of the flattened (c, h, w) input.

    They may be stored in 16 bits; sums are float32.
    """

    bias: bool = False
    add: bool = False
    activation: str = ""
    weights: DType = F32


@identified
def build(spec: Dense, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Multiply every image of `src`, flattened, into the dst.c values of `dst`.

    Weights are packed in the order in which `src` lies in memory, whatever its layout.

    Raises:
        ScheduleError: the images differ in number, `dst` is not one pixel without a halo, or a
            tensor is not of f32.
    """
    check_f32("dense", src, dst)
    check(src.n == dst.n, f"dense cannot turn {src.n} images into {dst.n}")
    single = (dst.h, dst.w, dst.halo) == (1, 1, (0, 0, 0, 0))
    check(single, "dense writes images of one pixel without a halo")
    lanes, (begin, step, depth) = cpu.lanes, _span(src)
    images = cover(src.n, IMAGES)
    streams = min(STREAMS, (cpu.registers - 1) // (images[0].size + 1))
    panels = channel_panels(dst.c, lanes, streams, split_tail=True)

    module = Module(cpu)

    @module.stage("dense", tile_count(panels))
    def write_dense(k: Kernel, task: Index) -> None:
        width = panels[-1].end * lanes
        weights, scales = weights_at(k, spec.weights, width, depth * lanes, lanes, 1)
        bias = k.argument("bias", lanes)

        for panel in panels:
            with panel.when(k, task) as first:
                tail = dst.c % lanes if panel is panels[-1] else 0
                packed = weights.at(first).strided(lanes, depth * lanes)
                for run in images:
                    with run.loop(k) as image:
                        acc = k.tile(run.size, panel.size)
                        early = spec.bias and not scales
                        for i, j in acc:
                            acc[i, j] = bias.load(first + j) if early else k.const(0.0)
                        x = k.argument("src", src.n_stride, step, offset=begin).at(image)
                        add_products(k, acc, x, packed, depth, UNROLL)
                        for i, j in acc:
                            at = (image + i, first + j)
                            value = acc[i, j]
                            if scales:
                                later = bias.load(first + j) if spec.bias else None
                                scale = scales.strided(lanes).load(first + j)
                                value = unscale(value, scale, later)
                            if spec.add:
                                add = k.argument("add", dst.n_stride, lanes, offset=dst.origin)
                                value = value + add.load(*at)
                            kept = tail if tail and j == panel.size - 1 else lanes
                            out = k.argument("dst", dst.n_stride, lanes, offset=dst.origin)
                            out.store_first(activate(value, spec.activation), kept, *at)

    return module.program(Io(src, dst, dst), lambda w: pack(w, src, lanes, spec.weights))


def pack(weights: Array, src: Placement, lanes: int, dtype: DType = F32) -> NDArray[Any]:
    """Weights (outputs, features) -> (panel, float of an image of `src`, lane).

    Halo and padding channels have weights of zero. Scales of f16 lie in front.
    """
    outputs, (begin, step, depth) = len(weights), _span(src)
    feature = _features(src)[begin::step][:depth]
    places = np.flatnonzero(feature >= 0)
    packed = np.zeros((-(-outputs // lanes), depth, lanes), dtype.numpy)
    rows, scales = encoded(weights.reshape(outputs, -1), dtype, packed.shape[0] * lanes)
    # One panel at a time: caches hold it while its rows become columns.
    for panel, first in zip(packed, range(0, outputs, lanes), strict=True):
        some = rows[first : first + lanes].take(feature[places], axis=1)
        panel[places, : len(some)] = some.T
    return joined(scales, packed.reshape(-1))


def _features(src: Placement) -> NDArray[np.int64]:
    """The number of the feature at each place of an image, -1 where there is none."""
    numbers = np.arange(1, src.c * src.h * src.w + 1, dtype=np.float32)
    return replace(src, n=1).pack(numbers.reshape(1, src.c, src.h, src.w)).astype(np.int64) - 1


def _span(src: Placement) -> tuple[int, int, int]:
    """Where in an image the features of a part begin, how far apart and how many they are.

    Weights for all of a larger tensor would mostly be zeros: 196 of 197 for one token of many,
    where neighbouring tokens lie together.
    """
    if not src.whole:
        return 0, 1, src.n_stride
    places = np.flatnonzero(_features(src) >= 0)
    step = int(np.gcd.reduce(np.diff(places))) or 1
    return int(places[0]), step, int(places[-1] - places[0]) // step + 1

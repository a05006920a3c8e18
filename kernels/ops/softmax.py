"""Softmax over values that lie side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kernels.codegen.builder import Int, Kernel, Module, Vec
from kernels.codegen.functions import exp
from kernels.codegen.tile_gemm import Run, cut, sweep
from kernels.core.cpu import Cpu
from kernels.core.layout import Io, Placement
from kernels.core.template import Program, check


@dataclass(frozen=True)
class Softmax:
    """e^x over the sum of all e^x, over the c values of every image."""


def build(spec: Softmax, cpu: Cpu, src: Placement, dst: Placement) -> Program:
    """Softmax of each image of `src`, which is one pixel, into `dst`.

    Raises:
        ScheduleError: the images are larger, have a halo, or differ in number or channels.
    """
    for where in (src, dst):
        single = (where.h, where.w, where.halo) == (1, 1, (0, 0, 0, 0)) and not where.whole
        check(single, "softmax takes images of one pixel without a halo")
    check((src.n, src.c) == (dst.n, dst.c), f"softmax cannot turn {src} into {dst}")
    lanes = min(cpu.lanes, 1 << (src.c - 1).bit_length())
    vectors = cut(src.c, lanes)
    module = Module(cpu)
    with module.stage("softmax", src.n) as (k, image):
        x = k.argument("src", src.n_stride, 1)[image]
        y = k.argument("dst", dst.n_stride, 1)[image]
        total = k.tile(1, 1, lanes)
        total.fill(k.const(-math.inf, lanes))

        def maximum(run: Run, at: Int) -> None:
            # Lanes beyond the end must not win: the first values take their place.
            value = x.load_first(run.size, at, lanes=lanes)
            if run.size < lanes:
                order = [i if i < run.size else 0 for i in range(lanes)]
                value = k.shuffle(value, value, order)
            total[0, 0] = value.max(total[0, 0])

        sweep(k, vectors, maximum)
        largest = _fold(k, total[0, 0], lambda a, b: a.max(b))
        total.fill(k.const(0.0, lanes))

        def exponential(run: Run, at: Int) -> None:
            value = exp(x.load_first(run.size, at, lanes=lanes) - largest)
            y.store_first(value, run.size, at)
            if run.size < lanes:
                zero = k.const(0.0, lanes)
                order = [i if i < run.size else lanes for i in range(lanes)]
                value = k.shuffle(value, zero, order)
            total[0, 0] = total[0, 0] + value

        sweep(k, vectors, exponential)
        share = k.const(1.0, lanes) / _fold(k, total[0, 0], lambda a, b: a + b)

        def scale(run: Run, at: Int) -> None:
            y.store_first(y.load_first(run.size, at, lanes=lanes) * share, run.size, at)

        sweep(k, vectors, scale)
    return module.program(Io(src, dst, dst), lambda w: np.zeros(0, np.float32))


def _fold(k: Kernel, x: Vec, join: Callable[[Vec, Vec], Vec]) -> Vec:
    """All lanes joined to one value, in every lane."""
    step = x.lanes // 2
    while step:
        order = [(i + step) % x.lanes for i in range(x.lanes)]
        x = join(x, k.shuffle(x, x, order))
        step //= 2
    return x

"""Measured rates of moving data on this machine: tensors into other layouts, and plain copies.

The planner weighs faster kernels against the moves that their layouts need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import NCHW, NHWC, READ_SLACK, Array, Layout, Placement
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.native.library import Library
from fastrun.kernels.native.runner import Buffers, Runner
from fastrun.kernels.ops.reorder import Reorder, build
from fastrun.tuner.measure.timing import calibrate

# Bytes per second, by layouts ("NCHW>NHWC") and by the number of bytes read and written together.
Rates = Mapping[str, Mapping[str, float]]

_IMAGE = 64, 14, 14  # channels, height and width of the images that are moved
STEP = 1e-6  # seconds that every step costs: its barrier, and code that is not in cache
_BLOCK, _BLOCKS = 5e-4, 8  # seconds of a block of calls, and how many of them


def move_rates(cpu: Cpu, sizes: Sequence[int], cores: Sequence[int]) -> Rates:
    """Bytes per second of moves between all kinds of layouts, for each of `sizes` in bytes.

    Thread t runs on cores[t]; cores[0] is that of the caller.
    """
    kinds = NCHW, NHWC, Layout(f"NCHW{min(16, max(4, cpu.lanes))}c")
    room = np.ones(max(sizes) // 4 + 2 * READ_SLACK, np.float32)
    rates = {}
    for src, dst in product(kinds, kinds):
        moved = _Move(cpu, src, dst, max(sizes), room, cores)
        rates[f"{kind_of(src)}>{kind_of(dst)}"] = {str(size): moved.rate(size) for size in sizes}
    return rates


class _Move:
    """A kernel that moves images from the first half of `room` to the second."""

    def __init__(
        self, cpu: Cpu, src: Layout, dst: Layout, most: int, room: Array, cores: Sequence[int]
    ) -> None:
        images = most // (8 * math.prod(_IMAGE))
        before, after = (Placement(layout, images, *_IMAGE) for layout in (src, dst))
        program = build(Reorder(), cpu, before, after)
        (self._stage,), self._cores = program.stages, cores
        self._bytes = F32.bytes(before.size + after.size)
        object_ = ObjectCache().object(program.ir, cpu)
        self._library = Library(object_, [self._stage.symbol])
        start = room.ctypes.data
        self._buffers = Buffers(
            src=start, weights=0, bias=0, add=0, dst=start + F32.bytes(before.size + READ_SLACK),
            shared=0, local=(0,) * len(cores),
        )  # fmt: skip

    def rate(self, size: int) -> float:
        """Bytes per second if `size` bytes are read and written."""
        # Images lie one after the other, and so do the tasks that move them.
        tasks = max(1, round(self._stage.tasks * size / self._bytes))
        runner = Runner(self._library, (replace(self._stage, tasks=tasks),), self._cores)

        def calls(repeats: int) -> float:
            return runner.run(self._buffers, len(self._cores), repeats)

        repeats, _ = calibrate(calls, _BLOCK)
        fastest = min(calls(repeats) for _ in range(_BLOCKS)) / repeats
        return self._bytes * tasks / self._stage.tasks / fastest


def kind_of(layout: Layout) -> str:
    """A layout by name; blocked ones share a name, whatever their block."""
    return "NCHWc" if layout.blocked else layout.name

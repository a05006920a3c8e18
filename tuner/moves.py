"""What moving data costs on this machine, measured: tensors into other layouts, and plain copies.

The planner weighs a faster kernel against the moves that its layouts need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from graph.forms import Costs
from graph.tasks import Shape4
from kernels.codegen.jit import Library, ObjectCache
from kernels.codegen.runner import Buffers, Runner
from kernels.core.cpu import Cpu
from kernels.core.layout import NCHW, NHWC, READ_SLACK, Array, Layout, Placement
from kernels.ops.reorder import Reorder, build
from tuner.timing import calibrate

if TYPE_CHECKING:
    from tuner.machine import MachineReport

# Bytes per second, by "NCHW>NHWC" and the bytes that are read and written in all.
Rates = Mapping[str, Mapping[str, float]]

_IMAGE = 64, 14, 14  # channels and pixels of what is moved, as many of them as it takes
_STEP = 1e-6  # seconds that a step costs whatever it does: its barrier, code to be fetched
_BLOCK, _BLOCKS = 5e-4, 8  # seconds of a block of calls, and how many of them


def move_rates(cpu: Cpu, sizes: Sequence[int], cores: Sequence[int]) -> Rates:
    """Bytes per second of moves between all kinds of layouts, for so many bytes in all.

    Thread t runs on cores[t]; the first is the caller's own.
    """
    kinds = NCHW, NHWC, Layout(f"NCHW{min(16, max(4, cpu.lanes))}c")
    room = np.ones(max(sizes) // 4 + 2 * READ_SLACK, np.float32)
    rates = {}
    for src, dst in product(kinds, kinds):
        moved = _Move(cpu, src, dst, max(sizes), room, cores)
        rates[f"{_kind(src)}>{_kind(dst)}"] = {str(size): moved.rate(size) for size in sizes}
    return rates


class _Move:
    """Moves images from the first half of `room` to the second."""

    def __init__(
        self, cpu: Cpu, src: Layout, dst: Layout, most: int, room: Array, cores: Sequence[int]
    ) -> None:
        images = most // (8 * math.prod(_IMAGE))
        before, after = (Placement(layout, images, *_IMAGE) for layout in (src, dst))
        program = build(Reorder(), cpu, before, after)
        (self._stage,), self._cores = program.stages, cores
        self._bytes = 4 * (before.size + after.size)
        object_ = ObjectCache().object(program.ir, cpu)
        self._library = Library(object_, [self._stage.symbol])
        start = room.ctypes.data
        self._buffers = Buffers(
            src=start, weights=0, bias=0, add=0, dst=start + 4 * (before.size + READ_SLACK),
            shared=0, local=(0,) * len(cores),
        )  # fmt: skip

    def rate(self, size: int) -> float:
        """Bytes per second where `size` bytes are read and written."""
        # Images come one after the other, and so do the tasks that move them.
        tasks = max(1, round(self._stage.tasks * size / self._bytes))
        runner = Runner(self._library, (replace(self._stage, tasks=tasks),), self._cores)

        def calls(repeats: int) -> float:
            return runner.run(self._buffers, len(self._cores), repeats)

        repeats, _ = calibrate(calls, _BLOCK)
        fastest = min(calls(repeats) for _ in range(_BLOCKS)) / repeats
        return self._bytes * tasks / self._stage.tasks / fastest


def costs(report: MachineReport, threads: int) -> Costs:
    """What moving data should cost so many threads, by what was measured on one and on all."""
    shared = report.moves_all
    share = (threads - 1) / (report.cores - 1) if report.cores > 1 else 0.0

    def seconds(pair: str, size: int) -> float:
        rate = (1 - share) * _at(report.moves[pair], size) + share * _at(shared[pair], size)
        return _STEP + size / rate

    def move(shape: Shape4, src: Layout, dst: Layout) -> float:
        size = 4 * sum(Placement(layout, *shape).size for layout in (src, dst))
        return seconds(f"{_kind(src)}>{_kind(dst)}", size)

    return Costs(move, lambda size: seconds("NHWC>NHWC", size))


def _at(rates: Mapping[str, float], size: int) -> float:
    """The rate for a size between those measured."""
    sizes = [math.log(int(x)) for x in rates]
    return float(np.interp(math.log(max(1, size)), sizes, list(rates.values())))


def _kind(layout: Layout) -> str:
    return "NCHWc" if layout.blocked else layout.name

"""Expected seconds of moving a tensor from one layout to another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fastrun.graph.core.shapes import Shape4
from fastrun.graph.plan.form import Costs
from fastrun.kernels.core.layout import Layout, Placement

if TYPE_CHECKING:
    from fastrun.tuner.machine.probe import MachineReport
from fastrun.tuner.machine.move_rates import STEP, kind_of


def costs(report: MachineReport, threads: int) -> Costs:
    """Expected costs of moves on `threads` threads, from rates measured on one core and on all."""
    shared = report.moves_all
    share = (threads - 1) / (report.cores - 1) if report.cores > 1 else 0.0

    def seconds(pair: str, size: int) -> float:
        rate = (1 - share) * _at(report.moves[pair], size) + share * _at(shared[pair], size)
        return STEP + size / rate

    def move(shape: Shape4, src: Layout, dst: Layout) -> float:
        # Conversions between element types move as many bytes a second as reorders of float32.
        size = sum(x.dtype.bytes(Placement(x, *shape).size) for x in (src, dst))
        return seconds(f"{kind_of(src)}>{kind_of(dst)}", size)

    # Without an L3 results pass through memory.
    passing = report.read_streams.get("L3", report.read_streams["DRAM"])
    return Costs(move, lambda size: seconds("NHWC>NHWC", size), passing)


def _at(rates: Mapping[str, float], size: int) -> float:
    """The rate for a size, interpolated between measured sizes."""
    sizes = [math.log(int(x)) for x in rates]
    return float(np.interp(math.log(max(1, size)), sizes, list(rates.values())))

"""How fast a processor's caches and tile registers are, compared with its multiply-adds.

These ratios say which of two schedules is faster on which machine: where a core multiplies six
times faster than it reads from L3, one that reads weights again loses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Self

from fastrun.kernels.codegen.dot import has
from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.machine.probe import MachineReport, of_machine


@dataclass(frozen=True)
class Rates:
    """Bytes that one core reads from L2, L3 and memory in the time of one operation of float32.

    `tiles` is how many times faster products of bf16 in tile registers are; 0 if there are none.
    """

    l2: float
    l3: float
    memory: float
    tiles: float

    @classmethod
    def of(cls, report: MachineReport) -> Self:
        """Those that were measured. What there is not is as fast as the next cache, or memory."""
        read, found = report.read["DRAM"], []
        for level in ("DRAM", "L3", "L2"):
            read = report.read.get(level, read)
            found.append(read / report.peak)
        memory, l3, l2 = found
        return cls(l2, l3, memory, report.dots.get("tdpbf16ps", 0.0) / report.peak)

    def fetching(self, size: float, times: float, cpu: Cpu) -> float:
        """The operations of float32 in the time of reading `size` bytes so many times.

        L2 keeps what fits half of it and was read the first time.
        """
        if size <= cpu.l2 / 2:
            return 0.0
        return size * max(1.0, times) / (self.l3 if size <= cpu.usable_l3 else self.memory)


MET: Mapping[str, Rates] = {
    "zen4": Rates(l2=1.0, l3=0.84, memory=0.26, tiles=0.0),
    "xeon-amx": Rates(l2=0.72, l3=0.127, memory=0.068, tiles=13.7),
}
"""As measured on machines that a model has learnt from; each has a file of that name."""


@functools.cache
def rates_of(cpu: Cpu) -> Rates:
    """A processor's rates: from the report of `fastrun doctor` if there is one.

    Else those of the machine met that has tile registers as well, or none.
    """
    report = of_machine(cpu.fingerprint, cpu.cores)
    if report:
        return Rates.of(report)
    return MET["xeon-amx" if has(cpu, "amx-tile") else "zen4"]


def nearest(cpu: Cpu) -> str:
    """The name of the machine met whose caches are as fast as the processor's, or nearly so."""
    rates = rates_of(cpu)

    def distance(name: str) -> float:
        pairs = zip(astuple(rates)[:3], astuple(MET[name])[:3], strict=True)
        return sum(math.log(a / b) ** 2 for a, b in pairs)

    return min(MET, key=distance)

"""The canary on a device: the fixed work of `tuner.measure.canary`, timed there."""

from __future__ import annotations

from typing import cast

from fastrun.kernels.core.cpu import Cpu
from fastrun.tuner.device.channel import Operations
from fastrun.tuner.device.session import Child, Session
from fastrun.tuner.measure.canary import CANARY_SECONDS

_WALKS = 3
_READINGS = 5


class DeviceCanary:
    """Its memory is the runner's, which children share as long as nobody writes."""

    def __init__(self, session: Session, cpu: Cpu) -> None:
        self._timed = session.function("timed")
        self._spin, self._walk = session.function("spin"), session.function("walk")
        self._words = 4 * cpu.l2 // 8
        self._memory = session.map(8 * self._words)
        fill = session.function("fill")
        session.channel.own(Operations().call(fill, self._memory, 8 * self._words, 0x01010101), 60)
        count, spent = 1000, 0
        while spent < 1e9 * CANARY_SECONDS:
            count *= 2
            asked = Operations().call(self._timed, self._spin, 0, count)
            spent = cast(int, session.channel.own(asked)[0])
        self._count = count
        first = [cast(list[int], session.channel.own(self._asked())) for _ in range(_READINGS)]
        self._spun = min(reading[0] for reading in first)
        self._walked = min(min(reading[2:]) for reading in first)

    def deviation(self, child: Child) -> float:
        """How much longer the work took just now than at its best so far: 0.1 is ten per cent."""
        spun, _, *walks = cast(list[int], child.ask(self._asked()))
        self._spun, self._walked = min(self._spun, spun), min(self._walked, *walks)
        return max(spun / self._spun, min(walks) / self._walked) - 1

    def _asked(self) -> Operations:
        """A spin, then walks of which the first refills the cache."""
        asked = Operations().call(self._timed, self._spin, 0, self._count)
        for _ in range(_WALKS):
            asked.call(self._timed, self._walk, self._memory, self._words)
        return asked

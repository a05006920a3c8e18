"""Temperature and clock of a device, which decide on times more than schedules do."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastrun.tuner.device.session import Session

_MARGIN = 5_000  # thousandths of a degree below the temperature at which a system slows down
_PAUSE, _LONGEST = 2.0, 120.0  # seconds between looks at a hot device, and of all of them
_ZONES = 16


class Climate:
    """Where a device says how warm and how fast it is; many say nothing."""

    def __init__(self, core: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self._clock = f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
        self._sleep = sleep
        self._limits: dict[str, int] | None = None

    def wait(self, session: Session) -> float:
        """Wait while the device is hot, two minutes at most; the seconds spent."""
        spent = 0.0
        while spent < _LONGEST and self._hot(session):
            self._sleep(_PAUSE)
            spent += _PAUSE
        return spent

    def clock(self, session: Session) -> int:
        """Kilohertz of the core just now; 0 if the device does not say."""
        said = session.text(self._clock)
        return int(said) if said.isdigit() else 0

    def drift(self, session: Session, before: int) -> float:
        """By which share the clock has changed since it was `before`."""
        now = self.clock(session)
        return abs(now - before) / before if before and now else 0.0

    def _hot(self, session: Session) -> bool:
        if self._limits is None:
            self._limits = _limits(session)
        return any(
            _number(session.text(f"{zone}/temp")) > limit - _MARGIN
            for zone, limit in self._limits.items()
        )


def _limits(session: Session) -> dict[str, int]:
    """The thermal zones whose system slows cores down, and the temperatures at which it does."""
    found = dict[str, int]()
    for i in range(_ZONES):
        zone = f"/sys/class/thermal/thermal_zone{i}"
        if not session.text(f"{zone}/type"):
            break
        for point in range(8):
            kind = session.text(f"{zone}/trip_point_{point}_type")
            if not kind:
                break
            if kind == "passive":
                limit = _number(session.text(f"{zone}/trip_point_{point}_temp"))
                if limit > 0:
                    found[zone] = min(limit, found.get(zone, limit))
    return found


def _number(text: str) -> int:
    return int(text) if text.lstrip("-").isdigit() else 0

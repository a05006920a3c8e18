"""The clock of a core and the temperature of its processor, as the system says them.

Both decide on times as schedules do. A system says them in files, if at all: the clock is one of
cpufreq, temperatures are those of thermal zones or, on desktops of AMD, of sensors (hwmon). Virtual
machines mostly say neither.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

Text = Callable[[str], str]
"""Reads a small file of a system, stripped; '' if it cannot be read."""

_ZONES, _POINTS = 128, 8  # numbers of thermal zones and of their trip points that are looked at
_MOST = 16  # temperatures that are read beside each block
_PROCESSOR = re.compile("cpu|soc|core|pkg|cluster|^(big|mid|little)", re.IGNORECASE)
_SENSORS = ("k10temp", "zenpower", "coretemp", "cpu_thermal")
_RESOLUTION = 0.05  # a smaller change of a clock is one of its reading


@dataclass(frozen=True)
class Climate:
    """The clock in MHz and the temperature in degrees Celsius; None where the system is silent."""

    clock: int | None = None
    temperature: float | None = None

    def change(self, before: Climate) -> float:
        """By which share the clock differs from that of `before`; 0 if it is unknown."""
        if not (self.clock and before.clock):
            return 0.0
        share = abs(self.clock - before.clock) / before.clock
        return share if share > _RESOLUTION else 0.0


@dataclass(frozen=True)
class Sensors:
    """The files of a system that say the climate of a core.

    `clock` is in kHz ('' if there is none), `heat` are temperatures in thousandths of a degree.
    `limits` are temperatures at which the system slows cores down, by the file of `heat`.
    """

    clock: str = ""
    heat: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, core: int, text: Text) -> Sensors:
        """Those of the system whose files `text` reads."""
        clock = f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"
        limits, named = dict[str, int](), list[str]()
        for i in range(_ZONES):
            zone = f"/sys/class/thermal/thermal_zone{i}"
            if not (kind := text(f"{zone}/type")):
                break
            if limit := _limit(zone, text):
                limits[f"{zone}/temp"] = limit
            if _PROCESSOR.search(kind):
                named.append(f"{zone}/temp")
        heat = tuple(dict.fromkeys([*named, *limits]))[:_MOST] or _of_chips(text)
        return cls(clock if text(clock) else "", heat, limits)

    @property
    def files(self) -> tuple[str, ...]:
        """The files to be read, for `climate`."""
        return (self.clock, *self.heat) if self.clock else self.heat

    def climate(self, said: Sequence[str]) -> Climate:
        """The climate by what the files say; the highest temperature counts."""
        numbers = [int(text) if text.lstrip("-").isdigit() else None for text in said]
        clock = numbers.pop(0) if self.clock else None
        heat = [number for number in numbers if number is not None]
        return Climate(round(clock / 1e3) if clock else None, max(heat) / 1e3 if heat else None)


def _limit(zone: str, text: Text) -> int:
    """The lowest temperature at which a zone slows cores down; 0 if there is none."""
    found = []
    for point in range(_POINTS):
        kind = text(f"{zone}/trip_point_{point}_type")
        if not kind:
            break
        said = text(f"{zone}/trip_point_{point}_temp")
        if kind == "passive" and said.isdigit():
            found.append(int(said))
    return min(found, default=0)


def _of_chips(text: Text) -> tuple[str, ...]:
    """The temperatures of a processor that is no thermal zone."""
    chips = []
    for i in range(_ZONES):
        chip = f"/sys/class/hwmon/hwmon{i}"
        if not (name := text(f"{chip}/name")):
            break
        if name in _SENSORS and text(f"{chip}/temp1_input"):
            chips.append(f"{chip}/temp1_input")
    return tuple(chips[:_MOST])


def climate() -> Climate:
    """That of the first core that this process may use, now."""
    return _here(min(os.sched_getaffinity(0)))()


@functools.cache
def _here(core: int) -> Callable[[], Climate]:
    """Reads the climate of a core of this machine; its files stay open."""
    sensors = Sensors.of(core, _text)
    files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in sensors.files]
    return lambda: sensors.climate([_said(file) for file in files])


def _text(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(errors="replace").strip()
    return ""


def _said(file: int) -> str:
    with suppress(OSError):  # a sensor may be asleep
        return os.pread(file, 64, 0).decode(errors="replace").strip()
    return ""

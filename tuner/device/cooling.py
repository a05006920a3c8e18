"""A device that is hot slows down, so it is given time to cool."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastrun.tuner.measure.climate import Sensors, Text

_MARGIN = 5_000  # thousandths of a degree below the temperature at which a system slows down
_PAUSE, _LONGEST = 2.0, 120.0  # seconds between looks at a hot device, and of all of them


def wait_while_hot(
    sensors: Sensors, text: Text, sleep: Callable[[float], None] = time.sleep
) -> float:
    """Wait while the device whose files `text` reads is hot, two minutes at most; the seconds."""
    spent = 0.0
    while spent < _LONGEST and _hot(sensors, text):
        sleep(_PAUSE)
        spent += _PAUSE
    return spent


def _hot(sensors: Sensors, text: Text) -> bool:
    readings = ((text(path), limit) for path, limit in sensors.limits.items())
    return any(said.isdigit() and int(said) > limit - _MARGIN for said, limit in readings)

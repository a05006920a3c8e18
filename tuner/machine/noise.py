"""How much a run was disturbed, by the canary's readings around its measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fastrun.tuner.measure.canary import runnable
from fastrun.tuner.records.record import Record
from fastrun.tuner.records.units import percent, plural, ratio

QUIET, NOISY = 0.05, 0.25


def noise_of(records: Iterable[Record]) -> float:
    """The ninetieth percentile of the canary's readings; NaN without readings."""
    readings = sorted(r.noise for r in records if r.noise is not None)
    return readings[9 * len(readings) // 10] if readings else math.nan


def amount(noise: float) -> str:
    """Noise as a share, or in words if fixed work took a multiple of its time."""
    if math.isnan(noise):
        return "unknown"
    if noise < 1:
        return percent(noise)
    return f"so large that fixed work took {ratio(1 + noise)} its time"


def in_words(noise: float) -> str:
    """What the noise means for measurements; '' if it is unknown."""
    if math.isnan(noise):
        return ""
    if noise < QUIET:
        return "quiet"
    if noise < NOISY:
        return "usable: differences of a few per cent need the final race"
    return "noisy: stop other work and tune again, or expect ties"


def others() -> str:
    """A warning that other tasks run on this machine; '' if none do."""
    count = runnable()
    return f"{plural(count, 'other task')} on this machine: times will be noisy" if count else ""

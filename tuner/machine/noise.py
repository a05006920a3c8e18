"""How quiet a run was, by the canary's readings around its measurements."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fastrun.tuner.measure.canary import runnable
from fastrun.tuner.records.record import Record
from fastrun.tuner.records.units import percent, plural, ratio

QUIET, NOISY = 0.05, 0.25


def noise_of(records: Iterable[Record]) -> float:
    """The ninetieth percentile of the canary's readings; NaN where nobody looked."""
    readings = sorted(r.noise for r in records if r.noise is not None)
    return readings[9 * len(readings) // 10] if readings else math.nan


def amount(noise: float) -> str:
    """A share, or in words where fixed work took a multiple of its time."""
    if math.isnan(noise):
        return "unknown"
    return (
        percent(noise)
        if noise < 1
        else f"so large that fixed work took {ratio(1 + noise)} its time"
    )


def in_words(noise: float) -> str:
    """What a percentile of the canary means for measurements; '' where there is none."""
    if math.isnan(noise):
        return ""
    if noise < QUIET:
        return "quiet"
    if noise < NOISY:
        return "usable: differences of a few per cent need the final race"
    return "noisy: stop other work and tune again, or expect ties"


def others() -> str:
    """A warning that somebody else is at work on this machine; '' where nobody is."""
    waiting = runnable()
    at_work = f"{plural(waiting, 'other task')} at work on this machine"
    return f"{at_work}: times will be noisy" if waiting else ""

"""Numbers as text to read. An unknown number, NaN, becomes a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence

UNKNOWN = "-"


def significant(value: float, digits: int = 3) -> str:
    """Rounded to so many digits, without an exponent: `0.0123`, `12.3`, `1234`."""
    if not math.isfinite(value):
        return UNKNOWN
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def ms(seconds: float) -> str:
    """A time in milliseconds, without the unit."""
    return significant(1e3 * seconds)


def duration(seconds: float) -> str:
    """A time with the unit that suits it: `850 us`, `2.45 ms`, `12.0 s`."""
    if not math.isfinite(seconds):
        return UNKNOWN
    if seconds >= 1:
        return f"{significant(seconds)} s"
    return f"{ms(seconds)} ms" if seconds >= 1e-3 else f"{significant(1e6 * seconds)} us"


def clock(seconds: float) -> str:
    """Minutes and seconds: `1:05`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}:{rest:02}"


def ratio(value: float) -> str:
    """A factor: `1.08x`, `12.3x`, `240x`."""
    return f"{significant(value)}x" if math.isfinite(value) else UNKNOWN


def percent(share: float, digits: int = 0) -> str:
    """A share in per cent: `97 %`."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else UNKNOWN


def interval(low: float, high: float, digits: int = 2) -> str:
    """An interval of ratios: `1.02 to 1.10`."""
    return f"{low:.{digits}f} to {high:.{digits}f}" if math.isfinite(low) else UNKNOWN


def span(values: Sequence[float], unit: str) -> str:
    """The least and the largest of some values: `1.20 to 1.80 GHz`; `unknown` if there are none."""
    if not values:
        return "unknown"
    least, most = significant(min(values)), significant(max(values))
    return f"{least} {unit}" if least == most else f"{least} to {most} {unit}"


def size(count: int) -> str:
    """Bytes, with a binary unit: `48 KiB`."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{significant(value) if value % 1 else int(value)} {unit}"


def plural(count: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def finite(value: float) -> float | None:
    """A number for JSON, which has no NaN and no infinity: they become None."""
    return value if math.isfinite(value) else None

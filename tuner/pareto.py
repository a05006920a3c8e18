"""What less workspace or a smaller error costs in time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tuner.record import Record
from tuner.standing import is_current

WORTH = 0.9
"""A slower schedule is of interest if it takes at most this share of something."""


def front(ranking: Iterable[Record]) -> list[Record]:
    """The schedules of a problem that nothing else surpasses, the fastest first.

    Each is slower than all before it and takes a tenth less workspace than any of them, or errs by
    a tenth less (rms). `ranking` is `Database.ranking`'s; what today's generator and compiler no
    longer make is left out, and so is what has no error.
    """
    kept: list[Record] = []
    for record in sorted(ranking, key=lambda r: r.seconds_per_call):
        if not record.baseline and _is_news(record, kept) and is_current(record):
            kept.append(record)
    return kept


def _is_news(record: Record, faster: Sequence[Record]) -> bool:
    errors = record.errors
    return errors is not None and all(
        record.workspace < WORTH * other.workspace
        or (other.errors is not None and errors.rms < WORTH * other.errors.rms)
        for other in faster
    )

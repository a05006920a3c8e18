"""Which of two schedules is faster, by their records."""

from __future__ import annotations

from fastrun.tuner.records.record import Record, Stage
from fastrun.tuner.records.statistics import interval_verdict, ratio_interval


def verdict(before: Record, after: Record) -> str:
    """`interval_verdict` of the speed-up."""
    return interval_verdict(*speedup_interval(before, after))


def speedup_interval(slower: Record, faster: Record) -> tuple[float, float]:
    """The 95 % interval of the speed-up of `faster` over `slower`; NaN with too few processes.

    Records of one final are compared in pairs.
    """
    together = paired(slower, faster)
    return ratio_interval(slower.by_process(), faster.by_process(), together)


def paired(one: Record, other: Record) -> bool:
    """Whether both were timed in the same processes of a final."""
    ours = (one.run, one.stage, dict.fromkeys(one.processes))
    theirs = other.run, Stage.FINAL, dict.fromkeys(other.processes)
    return bool(one.processes) and ours == theirs

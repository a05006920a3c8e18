"""What two records say about which schedule is faster."""

from __future__ import annotations

from fastrun.tuner.records.record import Record, Stage
from fastrun.tuner.records.statistics import in_a_word, ratio_interval


def verdict(before: Record, after: Record) -> str:
    """What `in_a_word` says of the speed-up."""
    return in_a_word(*speedup_interval(before, after))


def speedup_interval(slower: Record, faster: Record) -> tuple[float, float]:
    """The 95 % interval of how many times `faster` is faster than `slower`; NaN if unknown.

    It is known of what several processes timed. Those of one final are compared in pairs.
    """
    together = paired(slower, faster)
    return ratio_interval(slower.by_process(), faster.by_process(), together)


def paired(one: Record, other: Record) -> bool:
    """Whether both were timed in the same processes of a final."""
    ours = (one.run, one.stage, dict.fromkeys(one.processes))
    theirs = other.run, Stage.FINAL, dict.fromkeys(other.processes)
    return bool(one.processes) and ours == theirs

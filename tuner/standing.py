"""Where a problem stands: the naive loop, the heuristic and the best schedule, and how sure."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kernels.core.cpu import Cpu
from kernels.core.problem import ConvProblem
from kernels.core.template import ScheduleError, parse_schedule
from tuner.environment import toolchain
from tuner.intervals import ratio_interval
from tuner.record import PROTOCOL, Record

if TYPE_CHECKING:  # a table on the terminal needs no SQL
    from tuner.database import Database

PRACTICAL = 1.03
"""A schedule that is not surely this much faster than another counts as equal to it."""

# Older records that are built again to see whether they still hold.
_LOOKS = 8


@dataclass(frozen=True)
class Standing:
    """What is known about a problem that occurs `count` times. None is what nobody measured.

    `naive`, `heuristic` and `best` are the records that decide on these schedules; `heuristic` is
    what would run without any measuring, `runner_up` the fastest but for the best, the heuristic's
    schedule included.
    """

    problem: ConvProblem
    count: int
    naive: Record | None
    heuristic: Record | None
    best: Record | None
    runner_up: Record | None = None

    @property
    def over_naive(self) -> float:
        """How many times faster the best schedule is than the naive loop; NaN if unknown."""
        return seconds(self.naive) / seconds(self.best)

    @property
    def over_heuristic(self) -> float:
        """How many times faster the best schedule is than the heuristic; NaN if unknown."""
        return seconds(self.heuristic) / seconds(self.best)

    @property
    def gflops(self) -> float:
        """The best schedule's GFLOP/s, counting the direct method's operations."""
        return self.problem.flops / seconds(self.best) / 1e9

    @functools.cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `over_heuristic`; NaN where there are too few samples."""
        if not (self.best and self.heuristic):
            return math.nan, math.nan
        return speedup_interval(self.heuristic, self.best)

    @property
    def verdict(self) -> str:
        """What measuring has gained over the heuristic, in a word or two.

        `not measured`: one of the two is missing. `not searched`: nothing else was. `heuristic`:
        the heuristic's own schedule is the best. Else as the function `verdict` says.
        """
        if not (self.best and self.heuristic):
            return "not measured"
        if self.best.schedule == self.heuristic.schedule:
            return "heuristic" if self.runner_up else "not searched"
        return verdict(self.heuristic, self.best)

    @property
    def raced(self) -> bool:
        """Whether the best raced another schedule in a final: the heuristic's, or the next best."""
        rival = self.heuristic
        if self.best and rival and self.best.schedule == rival.schedule:
            rival = self.runner_up
        return bool(self.best and rival and paired(rival, self.best))

    @functools.cached_property
    def over_runner_up(self) -> tuple[float, float]:
        """The 95 % interval of how many times faster the best is than the next; NaN if unknown.

        It was chosen for being the fastest, so that this is a little too high.
        """
        if not (self.best and self.runner_up):
            return math.nan, math.nan
        return speedup_interval(self.runner_up, self.best)


def standings(
    database: Database,
    problems: Iterable[tuple[ConvProblem, int]],
    machine: str,
    threads: int,
    regime: str,
    max_error: float | None = None,
    max_workspace: int | None = None,
) -> list[Standing]:
    """Where each problem stands, by what the database holds and today's generator still makes.

    The best is the best of those whose rms error is at most `max_error` and whose workspace is at
    most `max_workspace` bytes, where these are given.
    """
    found = []
    for problem, count in problems:
        ranking = database.ranking(problem, machine, threads, regime, include_baselines=True)
        proposed = [r for r in ranking if r.heuristic and not r.baseline]
        # Of several generators' heuristics, today's is the one measured last.
        proposed.sort(key=lambda r: r.time, reverse=True)
        allowed = [
            r
            for r in ranking
            if not r.baseline
            and _precise(r, max_error)
            and (max_workspace is None or r.workspace <= max_workspace)
        ]
        best = first_current(allowed)
        found.append(
            Standing(
                problem,
                count,
                naive=first_current(r for r in ranking if r.algorithm == "naive"),
                heuristic=first_current(proposed),
                best=best,
                runner_up=first_current(r for r in allowed if best and r.schedule != best.schedule),
            )
        )
    return found


def _precise(record: Record, max_error: float | None) -> bool:
    return max_error is None or (record.errors is not None and record.errors.rms <= max_error)


def is_current(record: Record) -> bool:
    """Whether today's generator and compiler make of the schedule what was measured.

    A record of another machine is believed: what would be made there is not known here. One that
    was timed in another way cannot be compared with those of today, wherever it was.
    """
    if record.protocol != PROTOCOL:
        return False
    cpu, ours = Cpu.host(), toolchain()
    if record.toolchain == ours or record.machine != cpu.fingerprint:
        return True
    if record.toolchain.partition(",")[0] != ours.partition(",")[0]:
        return False
    return _todays_hash(record.problem, record.schedule) == record.ir_hash


@functools.lru_cache(4096)
def _todays_hash(problem: str, schedule: str) -> str | None:
    """What today's generator makes of a schedule on this machine; None if it refuses."""
    try:
        template, parsed = parse_schedule(schedule)
        return template.program(ConvProblem.parse(problem), parsed, Cpu.host()).ir_hash
    except ScheduleError:
        return None


def first_current(records: Iterable[Record]) -> Record | None:
    """The first record that `is_current`; of older ones only the first few are looked at."""
    older = 0
    for record in records:
        older += record.toolchain != toolchain()
        if (record.toolchain == toolchain() or older <= _LOOKS) and is_current(record):
            return record
    return None


def seconds(record: Record | None) -> float:
    """Seconds per call; NaN for no record."""
    return record.seconds_per_call if record else math.nan


def of_network(
    found: Iterable[Standing], problems: Iterable[tuple[ConvProblem, int]]
) -> list[Standing]:
    """Where a network's problems stand, each as often as the network has it."""
    known = {s.problem: s for s in found}
    return [replace(known[p], count=count) for p, count in problems if p in known]


def network_seconds(found: Sequence[Standing]) -> tuple[float, float, float]:
    """The naive loop, the heuristic and the best schedules, summed over all occurrences.

    NaN where a problem lacks that measurement.
    """
    naive, heuristic, best = (
        math.fsum(s.count * seconds(record) for s, record in zip(found, records, strict=True))
        for records in (
            [s.naive for s in found],
            [s.heuristic for s in found],
            [s.best for s in found],
        )
    )
    return naive, heuristic, best


def verdict(before: Record, after: Record) -> str:
    """What `in_a_word` says of the speed-up."""
    return in_a_word(*speedup_interval(before, after))


def in_a_word(low: float, high: float) -> str:
    """`faster` or `slower` where the interval of a speed-up clears 3 %, else `tie`.

    `unsure` where there is no interval.
    """
    if math.isnan(low):
        return "unsure"
    if low > PRACTICAL:
        return "faster"
    return "slower" if high < 1 / PRACTICAL else "tie"


def speedup_interval(slower: Record, faster: Record) -> tuple[float, float]:
    """The 95 % interval of how many times `faster` is faster than `slower`; NaN if unknown.

    It is known of what several processes timed. Those of one final are compared in pairs.
    """
    together = paired(slower, faster)
    return ratio_interval(slower.by_process(), faster.by_process(), together)


def paired(one: Record, other: Record) -> bool:
    """Whether both were timed in the same processes of a final."""
    ours = (one.run, one.stage, dict.fromkeys(one.processes))
    return bool(one.processes) and ours == (other.run, "final", dict.fromkeys(other.processes))

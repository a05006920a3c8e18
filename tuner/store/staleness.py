"""Whether a record still holds for today's generator, compiler and protocol."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import PROTOCOL, Record

# Older records that are built again to see whether they still hold.
_LOOKS = 8


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

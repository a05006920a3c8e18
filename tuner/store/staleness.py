"""Whether a record is stale: whether today's generator, compiler and protocol still apply."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from fastrun.kernels.core.attention import parse_problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.program import Io
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.registry import parse_schedule
from fastrun.tuner.records.environment import toolchain
from fastrun.tuner.records.record import PROTOCOL, Record

# So many older records at most are built again to compare their code.
_LOOKS = 8


def is_current(record: Record) -> bool:
    """Whether today's generator and compiler make the measured code of the schedule.

    Records of other machines count as current, because their code cannot be made here. Records of
    another protocol are stale, because their times cannot be compared with today's.
    """
    if record.protocol != PROTOCOL:
        return False
    return record.machine != Cpu.host().fingerprint or is_todays_code(record)


def is_todays_code(record: Record) -> bool:
    """Whether generator and compiler make the measured code on this machine.

    That also tells of a machine of the same kind: the code does not depend on what differs.
    """
    ours = toolchain()
    if record.toolchain == ours:
        return True
    if record.toolchain.partition(",")[0] != ours.partition(",")[0]:
        return False
    return _todays_hash(record.problem, record.schedule) == record.ir_hash


@functools.lru_cache(4096)
def _todays_hash(problem: str, schedule: str) -> str | None:
    """The hash of the code that today's generator makes here; None if it refuses."""
    try:
        template, parsed = parse_schedule(schedule)
        p = parse_problem(problem)
        program = template.build(p, parsed, Cpu.host(), Io.of(p, parsed.layout))
        return ObjectCache().named(program).ir_hash
    except ValueError:  # a ScheduleError, or there is no such layout any more
        return None


def first_current(records: Iterable[Record]) -> Record | None:
    """The first record that `is_current`; only the first few older ones are examined."""
    older = 0
    for record in records:
        older += record.toolchain != toolchain()
        if (record.toolchain == toolchain() or older <= _LOOKS) and is_current(record):
            return record
    return None

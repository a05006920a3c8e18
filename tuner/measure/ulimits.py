"""Limits of this process that a shell or a batch system has set (`ulimit`)."""

from __future__ import annotations

import resource
from collections.abc import Callable

from fastrun.tuner.records.units import size

# A limit is named in messages if it is below this number, which such programs commonly need.
_ANY = 1 << 62
_NAMED: tuple[tuple[str, int, int, Callable[[int], str]], ...] = (
    ("-v", resource.RLIMIT_AS, _ANY, size),
    ("-d", resource.RLIMIT_DATA, _ANY, size),
    ("-f", resource.RLIMIT_FSIZE, _ANY, size),
    ("-t", resource.RLIMIT_CPU, _ANY, "{} s".format),
    ("-u", resource.RLIMIT_NPROC, 1000, str),
    ("-n", resource.RLIMIT_NOFILE, 1000, str),
)


def lower(which: int, limit: int) -> None:
    """Lower a limit of this process to `limit`; a lower one stays as it is."""
    soft, hard = resource.getrlimit(which)
    finite = [x for x in (limit, soft, hard) if x != resource.RLIM_INFINITY]
    resource.setrlimit(which, (min(finite), hard))


def small_limits() -> str:
    """The small limits of this process as the end of a message; '' if there are none."""
    found = [
        f"{flag} {text(limit)}"
        for flag, which, usual, text in _NAMED
        if 0 <= (limit := resource.getrlimit(which)[0]) < usual
    ]
    return f"; limits (ulimit): {', '.join(found)}" if found else ""

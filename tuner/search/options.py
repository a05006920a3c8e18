"""What a search is asked for besides problems, a budget and a sampler."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastrun.tuner.measure.timing import Protocol
from fastrun.tuner.records.record import NO_LIMITS, Limits, Record

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


@dataclass(frozen=True)
class Objective:
    """What a study minimises: its name with the unit, and the value of a correct record."""

    name: str
    of: Callable[[Record], float]


OBJECTIVES = {
    "time": Objective("ms per call", lambda record: 1e3 * record.seconds_per_call),
    "error": Objective(
        "rms error", lambda record: record.errors.rms if record.errors else math.inf
    ),
    "workspace": Objective("bytes of workspace", lambda record: float(record.workspace)),
}


@dataclass(frozen=True)
class SearchOptions:
    """How to search; the defaults are those of `fastrun tune`.

    `seed` is that of the random numbers; proposals of samplers that look at times repeat only as
    far as the times do. `algorithms` restricts the search to those named, and their fields to those
    of `winograd(mh=2|4, prefetch=0)`. Schedules outside of `limits` are recorded but cannot win.
    `protocol` says how a trial is timed. The final is raced in the measurer's regime and in the
    regimes `also` given. `objectives` are names in `OBJECTIVES` that the studies minimise; several
    need a sampler for several values, and the incumbent is the fastest schedule all the same.
    `storage` keeps the studies, which are in memory without it: one of Optuna, or
    `tuner.search.storage.journal`, which costs far less than the others.
    """

    seed: int = 0
    algorithms: Sequence[str] = ()
    limits: Limits = NO_LIMITS
    protocol: Protocol = field(default_factory=Protocol)
    also: Sequence[str] = ()
    objectives: Sequence[str] = ("time",)
    storage: BaseStorage | None = field(default=None, repr=False)
    baselines: bool = True

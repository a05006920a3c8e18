"""Fast-Run: measure candidates for a network's problems within a budget, and keep every outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.record import Record
from tuner.search import ProblemSearch


@dataclass(frozen=True)
class Budget:
    """When to stop: after `seconds` of wall time, or `trials` per problem. None is no limit."""

    seconds: float | None = None
    trials: int | None = None


@dataclass(frozen=True)
class Progress:
    """What an observer is told after every outcome.

    `stage` is search, final or done; `record` the newest outcome; `left` the seconds of the
    budget that remain.
    """

    stage: str
    searches: Sequence[ProblemSearch]
    record: Record | None
    trials: int
    elapsed: float
    left: float | None


@dataclass(frozen=True)
class Summary:
    """What a run did. `trials` counts outcomes of this run, `known` those it found stored."""

    run: str
    searches: Sequence[ProblemSearch]
    trials: int
    known: int
    seconds: float
    interrupted: bool

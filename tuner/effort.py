"""How hard to search, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tuner.timing import Protocol


@dataclass(frozen=True)
class Effort:
    """A budget per problem and the way to spend it.

    `seconds` is wall time, None no limit; `worth` as in `Budget`; `sampler` one of
    `tuner.propose.SAMPLERS`.
    """

    seconds: float | None
    worth: float | None
    sampler: str = "gp"
    protocol: Protocol = field(default_factory=Protocol)


EFFORTS = {
    "quick": Effort(3.0, 0.03),
    "normal": Effort(8.0, 0.01),
    "thorough": Effort(60.0, 0.003),
    # For data that others replay: no candidate is given up, and all have samples enough to rank.
    "exhaustive": Effort(None, None, "exhaustive", Protocol(blocks=7, give_up=math.inf)),
}
"""From a first look to every schedule there is."""

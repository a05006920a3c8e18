"""The outcome of a network's final: which plan won, and the times of all plans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from fastrun.tuner.records.record import RecordError, content_key, now, typical_of
from fastrun.tuner.records.statistics import PRACTICAL, ratio_interval

HEURISTIC, LAYERS, IN_PLACE = "heuristic", "layer times", "in place"
"""Names of plans: the heuristic's, the one by times of single layers, the one by times of layers
in the running network."""

ROUNDS = 12
"""Rounds that a race of plans has in one process: a sample of each plan per round."""


@dataclass(frozen=True, kw_only=True)
class NetworkRecord:
    """The outcome of a network's final on a machine.

    `graph` is `Graph.digest`, `network` a name to show. `kept` is the name of the winning plan,
    `plan` its text and `ir_hash` the hash of all its code. `limits` says which schedules were
    allowed. `samples` are seconds per run by the plans' names, ordered by the effort of finding
    the plan. Sample i of every plan is from the same round; each process adds `ROUNDS` samples.

    Raises:
        RecordError: a field is of the wrong type, or a time is not positive and finite.
    """

    network: str
    graph: str
    machine: str
    threads: int
    limits: str
    toolchain: str
    ir_hash: str
    kept: str
    plan: str
    samples: Mapping[str, Sequence[float]] = field(hash=False)
    run: str = ""
    time: str = field(default_factory=now)

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if not isinstance(getattr(self, name), str):
                raise RecordError(f"network record field {name!r} is not a text")
        if type(self.threads) is not int or self.threads < 1:
            raise RecordError("network record field 'threads' is not a number of at least 1")
        times = [x for samples in self.samples.values() for x in samples]
        if not all(type(x) is float and 0 < x < math.inf for x in times):
            raise RecordError("network record field 'samples': a time is positive and finite")
        if not self.samples.get(self.kept):
            raise RecordError("network record field 'kept' is not the name of a plan that ran")

    @property
    def key(self) -> str:
        """Thirty-two hex digits of a hash of the content: equal records have equal keys."""
        return content_key(self.to_dict())

    def seconds(self, name: str) -> float:
        """Seconds per run of a plan; infinite if it did not run."""
        return typical_of(self._by_process(name))

    def interval(self, name: str, over: str = HEURISTIC) -> tuple[float, float]:
        """The 95 % interval of the speed-up of plan `name` over plan `over`; NaN if unknown."""
        before, after = self._by_process(over), self._by_process(name)
        return ratio_interval(before, after, paired=len(before) == len(after))

    def _by_process(self, name: str) -> list[Sequence[float]]:
        samples = self.samples.get(name, ())
        return [samples[i : i + ROUNDS] for i in range(0, len(samples), ROUNDS)]

    @property
    def verdict(self) -> str:
        """The gain over the heuristic's plan, in words like those of `Standing.verdict`."""
        if self.kept == HEURISTIC:
            return "the heuristic's own"
        low, _ = self.interval(self.kept)
        if math.isnan(low):
            return "unsure"
        return "faster than the heuristic's" if low > PRACTICAL else "a tie with the heuristic's"

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `NetworkRecord(**data)` restores it."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return data | {"samples": {name: [*times] for name, times in self.samples.items()}}


_TEXTS = [f.name for f in fields(NetworkRecord) if f.name not in ("threads", "samples")]

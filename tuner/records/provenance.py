"""How the records of a run were made: by which command, sampler and seed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fastrun.tuner.records.environment import tuner_hash
from fastrun.tuner.records.record import RecordError, check_line, check_type, is_utc, now


@dataclass(frozen=True, kw_only=True)
class Run:
    """How the records were made whose field `run` is this `name`.

    `command` is the command line, or the call of a program. `sampler` chose the schedules and
    `seed` is that of its random numbers; they are '' and None where nothing was searched. `timing`
    says in words how each stage was timed. `tuner` is the hash of the source that searched and
    measured. Nothing here names a person, host or folder.

    Raises:
        RecordError: a field is of the wrong type, or has several lines.
    """

    name: str
    command: str
    sampler: str = ""
    seed: int | None = None
    timing: str = ""
    tuner: str = field(default_factory=tuner_hash)
    time: str = field(default_factory=now)

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.name != "seed":
                check_line(f"run.{f.name}", getattr(self, f.name))
        if self.seed is not None and (type(self.seed) is not int or abs(self.seed) >= 1 << 63):
            raise RecordError(f"record field 'run.seed': {self.seed!r:.60} is no seed")
        if not is_utc(self.time):
            raise RecordError(f"record field 'run.time': {self.time!r:.60} is not UTC in ISO form")

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `Run.from_dict` restores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """Read what `to_dict` wrote. Every field is checked.

        Raises:
            RecordError: naming the field that is missing, unknown or wrong.
        """
        check_type("run", data, dict)
        if wrong := data.keys() ^ {f.name for f in fields(cls)}:
            raise RecordError(f"record field {'run.' + min(wrong)!r:.60} is missing or unknown")
        return cls(**data)


def command_line(words: Sequence[str]) -> str:
    """A command as typed into a shell; of paths and addresses only the last part is kept."""
    named = (re.sub(r"[^=]*[/\\](?=[^/\\])", "", word) for word in words)
    return shlex.join("".join(c if c.isprintable() else "?" for c in word) for word in named)

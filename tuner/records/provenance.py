"""What a run was asked for: its records bear its name, this says how they came about."""

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
    """How the records came about whose `run` is this `name`.

    `command` is the command line, or the call that a program made. `sampler` chose what was
    measured, from `seed` on; '' and None where nothing was searched. `timing` says in words how
    each stage was timed, and `tuner` names the source of the search and the
    measurements. Holds nothing that names a person, host or folder.

    Raises:
        RecordError: a field is of the wrong type, or no single line.
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
        """JSON form; `Run.from_dict` gives back an equal one."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """Read what `to_dict` wrote, trusting nothing.

        Raises:
            RecordError: naming the field that is missing, unknown or wrong.
        """
        check_type("run", data, dict)
        if wrong := data.keys() ^ {f.name for f in fields(cls)}:
            raise RecordError(f"record field {'run.' + min(wrong)!r:.60} is missing or unknown")
        return cls(**data)


def command_line(words: Sequence[str]) -> str:
    """A command as one would type it, of paths and addresses only the last part."""
    named = (re.sub(r"[^=]*[/\\](?=[^/\\])", "", word) for word in words)
    return shlex.join("".join(c if c.isprintable() else "?" for c in word) for word in named)

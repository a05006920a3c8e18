"""A record: the outcome of one schedule of a problem on a machine, with all its samples."""

from __future__ import annotations

import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.notebook import card
from fastrun.tuner.records.statistics import typical
from fastrun.tuner.records.units import duration, plural, size, span

REGIMES = ("hot", "cold-weights")
"""What the caches hold when a call starts: all operands, or all but the weights."""

PROTOCOL = 1
"""The version of the way samples are taken. Times of different versions cannot be compared."""

ALONE = -1
"""The round of a sample that was taken in no round, because its schedule ran alone."""


class RecordError(ValueError):
    """The data is no record. The message is one line and names the field."""


class Stage(StrEnum):
    """How thoroughly a schedule was measured, in rising order of trust."""

    SCREEN = "screen"
    RACE = "race"
    FINAL = "final"


class Outcome(StrEnum):
    """How a trial ended, in the words of the T4 results format."""

    CORRECT = "correct"
    CONSTRAINTS = "constraints"
    COMPILE = "compile"
    RUNTIME = "runtime"
    TIMEOUT = "timeout"
    CORRECTNESS = "correctness"


# Seconds. Nothing takes longer, and the same time in milliseconds is still a finite number.
_LONGEST = 1e12


@dataclass(frozen=True)
class Conditions:
    """What must be equal for times to be comparable.

    `machine` is `Cpu.fingerprint`, `regime` one of `REGIMES`.
    """

    machine: str
    threads: int = 1
    regime: str = "hot"

    @classmethod
    def here(cls, threads: int = 1, regime: str = "hot") -> Conditions:
        """Those of this machine."""
        return cls(Cpu.host().fingerprint, threads, regime)


@dataclass(frozen=True)
class Limits:
    """What a schedule may cost besides time; None is no limit.

    `error` limits the rms error, relative to the rms of the output; `workspace` is in bytes.
    `weights` are the bytes that the packed weights of a whole network may take; it is no limit of a
    single schedule.
    """

    error: float | None = None
    workspace: int | None = None
    weights: int | None = None

    def allow(self, record: Record) -> bool:
        """Whether a record is within the limits. One without errors fails any limit of error."""
        errors = record.errors
        precise = self.error is None or (errors is not None and errors.rms <= self.error)
        return precise and (self.workspace is None or record.workspace <= self.workspace)

    def __str__(self) -> str:
        error = "" if self.error is None else f"an rms error of {self.error:g}"
        workspace = "" if self.workspace is None else f"a workspace of {size(self.workspace)}"
        return " and ".join(filter(None, (error, workspace)))


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Errors:
    """The error of an output against float64, relative to the rms of the output.

    `max` and `rms` describe the absolute error, `bias` is the mean of the signed error. Values that
    are not finite become positive infinity.
    """

    max: float
    rms: float
    bias: float

    @classmethod
    def of(
        cls, found: NDArray[Any], truth: NDArray[np.float64], scale: float | None = None
    ) -> Errors:
        """The errors of `found`; infinite if the shapes differ.

        `scale` is the rms of `truth`, where it is known already.
        """
        if found.shape != truth.shape:
            return cls(math.inf, math.inf, math.inf)
        scale = scale or float(np.sqrt(np.square(truth).mean())) or 1.0
        difference = found - truth
        bias, rms = difference.mean(), np.sqrt(np.square(difference).mean())
        largest = np.abs(difference, out=difference).max()
        return cls(float(largest) / scale, float(rms) / scale, float(bias) / scale)

    def __post_init__(self) -> None:
        for f in fields(self):
            if not math.isfinite(getattr(self, f.name)):
                object.__setattr__(self, f.name, math.inf)

    def to_dict(self) -> dict[str, float | None]:
        """JSON form, which has no infinity: None stands for it."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: value if math.isfinite(value) else None for name, value in values}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Errors:
        """Read what `to_dict` wrote.

        Raises:
            RecordError: a value is missing, unknown or no number.
        """
        _check_names(_ERRORS, data, "errors.")
        values = {k: _number(f"errors.{k}", v) for k, v in data.items() if v is not None}
        return cls(**(dict.fromkeys(data, math.inf) | values))


def now() -> str:
    """The time now, UTC, as ISO text. Such texts sort like the times."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def typical_of(processes: Sequence[Sequence[float]]) -> float:
    """The geometric mean of each process's `typical` time; infinite if there are none."""
    times = [typical(samples) for samples in processes]
    if len(times) < 2:
        return times[0] if times else math.inf
    return statistics.geometric_mean(times)


def by_process(samples: Sequence[float], processes: Sequence[int]) -> list[tuple[float, ...]]:
    """The samples of each process, in the order measured; one group if those are unknown."""
    groups: dict[int, list[float]] = {}
    for process, sample in zip(processes or (0,) * len(samples), samples, strict=True):
        groups.setdefault(process, []).append(sample)
    return [tuple(group) for group in groups.values()]


@dataclass(frozen=True, kw_only=True)
class Record:
    """All that is stored of one trial, so that it can be judged and repeated.

    `problem` and `schedule` are text forms. `machine` is `Cpu.fingerprint`. `toolchain` names LLVM
    and the generator; `ir_hash` is the hash of the code they made ('' if they made none). `reason`
    says in one line why the outcome is not correct.

    `samples` holds every timed block as seconds per call, in the order measured. `processes` and
    `rounds` give the process and the round of each sample, counted from 0 (`ALONE` if the sample
    was taken outside of rounds); they are empty if unknown. Samples of the same process and round
    in several records of a run and stage can be compared in pairs. `noise` is the largest reading
    of the canary around the samples: 0.1 means that fixed work took ten per cent longer than at
    its best, None that the canary was not read. `protocol` is the `PROTOCOL` of the samples.
    `clocks` in MHz and `temperatures` in degrees Celsius are those of the core and its processor at
    the end of each block; they are empty where the system does not say them.

    `workspace` is in bytes. `seconds` are the costs of the trial (build, compile, verify, measure).
    A run that measures a schedule again in the same stage stores another record.

    Raises:
        RecordError: a text has several lines (those of a `reason` are joined), a word is unknown, a
            count or time is out of range.
    """

    problem: str
    schedule: str
    machine: str
    threads: int
    regime: str
    toolchain: str
    ir_hash: str
    outcome: Outcome
    reason: str = ""
    stage: Stage = Stage.SCREEN
    samples: tuple[float, ...] = ()
    errors: Errors | None = None
    workspace: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict, hash=False)
    baseline: bool = False
    heuristic: bool = False
    run: str = ""
    time: str = field(default_factory=now)
    noise: float | None = None
    processes: tuple[int, ...] = ()
    rounds: tuple[int, ...] = ()
    protocol: int = 1
    clocks: tuple[int, ...] = ()
    temperatures: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # Reasons come from compilers and dying processes, so they are joined to one line.
        words = " ".join(self.reason.split())
        reason = "".join(c if c.isprintable() else "?" for c in words)
        object.__setattr__(self, "reason", reason)
        for name in _TYPES[str]:
            check_line(name, getattr(self, name))
        samples = tuple(float(sample) for sample in self.samples)
        object.__setattr__(self, "samples", samples)
        for name in self.seconds:
            check_line("seconds", name)
        _check_word("regime", self.regime, REGIMES)
        object.__setattr__(self, "stage", Stage(_check_word("stage", self.stage, Stage)))
        object.__setattr__(self, "outcome", Outcome(_check_word("outcome", self.outcome, Outcome)))
        if not (1 <= self.threads < 1 << 31 and 0 <= self.workspace < 1 << 63):
            raise RecordError("record: 'threads' is at least 1 and 'workspace' at least 0")
        if not all(0 < sample <= _LONGEST for sample in self.samples):
            raise RecordError("record field 'samples': a time is positive and finite")
        if not all(0 <= cost <= _LONGEST for cost in self.seconds.values()):
            raise RecordError("record field 'seconds': a duration is finite and at least 0")
        if self.noise is not None and not 0 <= self.noise < math.inf:
            raise RecordError("record field 'noise': a deviation is finite and at least 0")
        for name, least in _BESIDE:
            numbers = getattr(self, name)
            if numbers and len(numbers) != len(self.samples):
                raise RecordError(f"record field {name!r}: one number for each sample, or none")
            if not all(least <= number < 1 << 31 for number in numbers):
                raise RecordError(f"record field {name!r}: a number is at least {least:g}")
        if not 1 <= self.protocol < 1 << 31:
            raise RecordError("record field 'protocol': a version is at least 1")
        if not is_utc(self.time):
            raise RecordError(f"record field 'time': {self.time!r:.60} is not UTC in ISO form")

    @property
    def algorithm(self) -> str:
        """The template's name."""
        return self.schedule.partition("(")[0]

    @property
    def parameters(self) -> dict[str, int | bool | str]:
        """The schedule's fields, read without the algorithm's code; empty if it has none."""
        body = self.schedule.partition("(")[2].removesuffix(")")
        pairs = (part.strip().partition("=") for part in body.split(",") if part.strip())
        return {name: _value(word) for name, _, word in pairs}

    @property
    def screened(self) -> bool:
        """Whether this is a trial of a search: a screening, and not of a baseline."""
        return self.stage == Stage.SCREEN and not self.baseline

    @property
    def seconds_per_call(self) -> float:
        """The geometric mean of each process's `typical` time; infinite without samples."""
        return typical_of(self.by_process())

    def by_process(self) -> list[tuple[float, ...]]:
        """The samples of each process, in the order measured; one group if those are unknown."""
        return by_process(self.samples, self.processes)

    @property
    def key(self) -> str:
        """Thirty-two hex digits of a hash of the content: equal records have equal keys."""
        return content_key(self.to_dict())

    def _repr_html_(self) -> str:
        timed = ""
        if self.samples:
            low, high = min(self.samples), max(self.samples)
            timed = f"{duration(self.seconds_per_call)} per call, {len(self.samples)} samples of "
            timed += duration(low) if low == high else f"{duration(low)} to {duration(high)}"
        facts = {
            "schedule": self.schedule,
            "outcome": f"{self.outcome}: {self.reason}" if self.reason else str(self.outcome),
            "time": timed,
            "error": f"{self.errors.rms:.1e} rms, {self.errors.max:.1e} at most"
            if self.errors
            else "",
            "workspace": size(self.workspace),
            "clock": span([clock / 1e3 for clock in self.clocks], "GHz") if self.clocks else "",
            "temperature": span(self.temperatures, "degrees Celsius") if self.temperatures else "",
            "measured": f"{self.stage}, {plural(self.threads, 'thread')}, {self.regime}, "
            f"machine {self.machine}, {self.time[:16].replace('T', ' ')} UTC",
        }
        return card(self.problem, facts)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `Record.from_dict` restores it.

        Fields that the first version of the form lacked are left out where they are unknown, so
        that the keys of old records stay the same.
        """
        data = {name: getattr(self, name) for name in _NAMES}
        data |= {name: list(data[name]) for name, _ in _BESIDE}
        known = {name: x for name, x in data.items() if name not in LATER or x != LATER[name]}
        return known | {
            "outcome": str(self.outcome),
            "stage": str(self.stage),
            "samples": list(self.samples),
            "errors": self.errors and self.errors.to_dict(),
            "seconds": dict(self.seconds),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Record:
        """Read what `to_dict` wrote. Types, words and ranges are checked.

        Raises:
            RecordError: naming the first field that is missing, unknown or wrong.
        """
        data = {**LATER, **data}
        _check_names(_NAMES, data)
        for kind, names in _TYPES.items():
            for name in names:
                check_type(name, data[name], kind)
        errors = data["errors"]
        if errors is not None:
            check_type("errors", errors, dict)
        return cls(
            **{name: data[name] for names in _TYPES.values() for name in names}
            | {
                "samples": tuple(_number("samples", x) for x in data["samples"]),
                "errors": None if errors is None else Errors.from_dict(errors),
                "seconds": {k: _number("seconds", x) for k, x in data["seconds"].items()},
                "noise": None if data["noise"] is None else _number("noise", data["noise"]),
                "processes": tuple(_whole("processes", x) for x in data["processes"]),
                "rounds": tuple(_whole("rounds", x) for x in data["rounds"]),
                "clocks": tuple(_whole("clocks", x) for x in data["clocks"]),
                "temperatures": tuple(_number("temperatures", x) for x in data["temperatures"]),
            }
        )


_TYPES: dict[type, tuple[str, ...]] = {
    str: (
        *("problem", "schedule", "machine", "regime", "toolchain", "ir_hash", "outcome"),
        *("reason", "stage", "run", "time"),
    ),
    int: ("threads", "workspace", "protocol"),
    bool: ("baseline", "heuristic"),
    list: ("samples", "processes", "rounds", "clocks", "temperatures"),
    dict: ("seconds",),
}

_NAMES = dict.fromkeys(f.name for f in fields(Record)).keys()
_ERRORS = dict.fromkeys(f.name for f in fields(Errors)).keys()

LATER: dict[str, Any] = {
    **{"noise": None, "processes": [], "rounds": [], "protocol": 1},
    **{"clocks": [], "temperatures": []},
}
"""Fields that the first version of the form lacked, with the values that mean unknown."""

_BESIDE = (("processes", 0), ("rounds", ALONE), ("clocks", 1), ("temperatures", -273.15))
"""Fields with a number for each sample, or none, and the least that a number can be."""


def content_key(data: Mapping[str, Any]) -> str:
    """Thirty-two hex digits of a hash of a JSON object."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _check_names(declared: Set[str], data: Mapping[str, Any], prefix: str = "") -> None:
    if missing := declared - data.keys():
        raise RecordError(f"record field {prefix + min(missing)!r:.60} is missing")
    if unknown := data.keys() - declared:
        raise RecordError(f"record field {prefix + min(unknown)!r:.60} is unknown to this version")


def check_type(name: str, value: object, kind: type) -> None:
    """Check that a value is of exactly this type.

    Raises:
        RecordError: naming the field.
    """
    if type(value) is not kind:
        raise RecordError(f"record field {name!r}: expected {kind.__name__}, got {value!r:.60}")


def check_line(name: str, text: object) -> None:
    """Check that a value is one line of text.

    Raises:
        RecordError: naming the field.
    """
    if not (isinstance(text, str) and text.isprintable()):
        raise RecordError(f"record field {name!r}: {text!r:.60} is not one line of text")


def _check_word(name: str, value: str, words: Iterable[str]) -> str:
    if value not in tuple(words):
        raise RecordError(f"record field {name!r}: {value!r:.60} is none of {', '.join(words)}")
    return value


def _number(name: str, value: object) -> float:
    if type(value) not in (int, float):
        raise RecordError(f"record field {name!r}: expected a number, got {value!r:.60}")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise RecordError(f"record field {name!r}: {value!r:.20}... is too large") from None


def _whole(name: str, value: object) -> int:
    check_type(name, value, int)
    return value  # type: ignore[return-value]


def is_utc(text: str) -> bool:
    """Whether this is a time in ISO form whose zone is UTC."""
    try:
        offset = datetime.fromisoformat(text).utcoffset()
    except (ValueError, OverflowError):
        return False
    return offset is not None and not offset


def _value(word: str) -> int | bool | str:
    if word in ("yes", "no"):
        return word == "yes"
    return int(word) if re.fullmatch(r"-?[0-9]{1,18}", word) else word

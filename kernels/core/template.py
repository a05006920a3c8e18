"""What an algorithm is: a template that answers may I, with which schedule, and build.

A file in `kernels/conv/` that ends in `template = KernelTemplate(...)` is an algorithm; nothing
else has to know it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import numpy as np

from kernels.core.card import card
from kernels.core.cpu import Cpu
from kernels.core.layout import Array, Io
from kernels.core.problem import ConvProblem

# The largest number that a schedule may hold.
LARGEST = 10**9


class ScheduleError(ValueError):
    """This schedule cannot be right for this problem and machine; the only expected refusal."""


def check(condition: bool, reason: str) -> None:
    """Raise `ScheduleError(reason)` unless `condition`."""
    if not condition:
        raise ScheduleError(reason)


def check_sizes(schedule: Any, *zero: str) -> None:
    """Raise `ScheduleError` unless all integers of `schedule` are sizes, or 0 where that is named.

    A size is at least 1, and not so large that arithmetic with it could overflow.
    """
    for field in fields(schedule):
        size, least = getattr(schedule, field.name), int(field.name not in zero)
        if type(size) is int:  # a bool is an int, too
            check(least <= size <= LARGEST, f"{field.name}={size}: from {least} to {LARGEST}")


def check_operands(p: ConvProblem, io: Io, *layouts: str) -> None:
    """Raise `ScheduleError` unless padding lies in the input's halo and `add` lies like `dst`.

    Where `layouts` are given, input and output have one of these.
    """
    room = all(a >= b for a, b in zip(io.src.halo, p.padding, strict=True))
    check(room, f"a halo of {io.src.halo} has no room for padding {p.padding}")
    alike = not p.add or io.add.layout == io.dst.layout
    check(alike, f"a residual in {io.add.layout} cannot be added in {io.dst.layout}")
    for where in (io.src, io.dst) if layouts else ():
        check(where.layout.name in layouts, f"no {where.layout}: use {', '.join(layouts)}")


@dataclass(frozen=True)
class Stage:
    """An entry point that works on tasks [begin, end) of `tasks`; a barrier follows it."""

    symbol: str
    tasks: int


@dataclass(frozen=True)
class Program:
    """A built kernel: deterministic IR and everything needed to run it.

    Every stage has the signature
    `void stage(src, weights, bias, add, dst, shared, local, i64 begin, i64 end)`.
    `shared` is one workspace for all threads, `local` one per thread; sizes in bytes.
    `pack_weights` turns (oc, c/groups, kh, kw) into the flat float32 array the stages read.
    """

    ir: str
    stages: tuple[Stage, ...]
    io: Io
    pack_weights: Callable[[Array], Array]
    shared_bytes: int = 0
    local_bytes: int = 0

    @property
    def ir_hash(self) -> str:
        """Identity of the generated code: equal schedules in effect have equal hashes."""
        return hashlib.sha256(self.ir.encode()).hexdigest()[:32]


def pack_bias(bias: Array) -> Array:
    """Bias as kernels read it: zeros follow, so that whole vectors can be loaded at any channel."""
    return np.concatenate([bias, np.zeros(64, np.float32)]).astype(np.float32)


def channel_table(c: int) -> int:
    """Floats that the table of `c` picked channels takes: whole cache lines."""
    return -(-c // 16) * 16


def pack_channels(offsets: Sequence[int]) -> Array:
    """Where a kernel finds picked channels (see `Io`), to precede its weights: int32 as floats."""
    table = np.zeros(channel_table(len(offsets)), np.int32)
    table[: len(offsets)] = offsets
    return table.view(np.float32)


def summation_error(p: ConvProblem, schedule: Any) -> float:
    """The rms error on normal data, relative to the output's, of sums of products in order.

    It grows with the root of their length; the factor is measured, over all such algorithms here.
    """
    return 0.37 * 2**-24 * math.sqrt(p.depth)


@dataclass(frozen=True)
class KernelTemplate:
    """One algorithm. Plain functions in a frozen record; no subclassing.

    `schedule` is a frozen dataclass with fields of type int, bool or str, one of them `layout`.
    `why_not` says in words why the algorithm does not apply, or returns None.
    `heuristic` answers without measuring. `build` raises `ScheduleError` for a schedule that
    cannot be right. `rank` says how much a fixed preference favours the algorithm for a problem.
    `baseline` marks algorithms that exist to be compared with, `picks` those that can read
    picked channels (see `Io`). Without `rows_alike` the bits of an output row depend on which
    others are computed with it; `grain` says how many are best computed together. `error` is the
    rms error to expect on normal data, relative to the output's.
    """

    name: str
    schedule: type[Any]
    why_not: Callable[[ConvProblem, Cpu], str | None]
    heuristic: Callable[[ConvProblem, Cpu], Any]
    build: Callable[[ConvProblem, Any, Cpu, Io], Program]
    rank: Callable[[ConvProblem, Cpu], int] = lambda p, cpu: 1
    baseline: bool = False
    picks: bool = False
    rows_alike: bool = True
    grain: Callable[[ConvProblem, Any], int] = lambda p, schedule: 1
    error: Callable[[ConvProblem, Any], float] = summation_error

    def __post_init__(self) -> None:
        # A schedule does not know whose it is, but notebooks are to say so.
        def shown(schedule: Any) -> str:
            values = {f.name: word(getattr(schedule, f.name)) for f in fields(schedule)}
            return card(self.name, values)

        self.schedule._repr_html_ = shown

    def program(self, p: ConvProblem, schedule: Any, cpu: Cpu) -> Program:
        """Build with the usual placement of operands (`Io.of`).

        Raises:
            ScheduleError: the schedule cannot be right, or there is no such layout.
        """
        try:
            io = Io.of(p, schedule.layout)
        except ValueError as error:
            raise ScheduleError(str(error)) from error
        return self.build(p, schedule, cpu, io)

    def text(self, schedule: Any) -> str:
        """`direct(layout=NHWC, mr=6, ...)`: the schedule's name everywhere."""
        values = ((f.name, getattr(schedule, f.name)) for f in fields(schedule))
        return f"{self.name}({', '.join(f'{n}={word(v)}' for n, v in values)})"


def word(value: object) -> str:
    """A field's value as schedules' texts have it."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


@functools.cache
def templates() -> dict[str, KernelTemplate]:
    """Every algorithm of `kernels/conv`, by name, in alphabetical order.

    Raises:
        TypeError: a file there defines no `template`, or one whose name is not the file's.
    """
    import kernels.conv

    found = {}
    for module in sorted(pkgutil.iter_modules(kernels.conv.__path__), key=lambda m: m.name):
        template = getattr(importlib.import_module(f"kernels.conv.{module.name}"), "template", None)
        if not isinstance(template, KernelTemplate) or template.name != module.name:
            raise TypeError(f"kernels/conv/{module.name}.py must define a template named like it")
        found[module.name] = template
    return found


def applicable(p: ConvProblem, cpu: Cpu) -> list[KernelTemplate]:
    """The algorithms that can do `p`, baselines included."""
    return [t for t in templates().values() if t.why_not(p, cpu) is None]


def heuristic_choice(p: ConvProblem, cpu: Cpu) -> tuple[KernelTemplate, Any]:
    """Algorithm and schedule without measuring: the highest rank, and its own heuristic."""
    candidates = [t for t in applicable(p, cpu) if not t.baseline]
    best = max(candidates, key=lambda t: t.rank(p, cpu))
    return best, best.heuristic(p, cpu)


def parse_schedule(text: str) -> tuple[KernelTemplate, Any]:
    """The template and schedule that `KernelTemplate.text` wrote.

    Raises:
        ScheduleError: unknown algorithm, unknown or missing field, or a value of the wrong type.
    """
    match = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", text)
    check(match is not None, f"not a schedule: {text!r}; expected algorithm(field=value, ...)")
    assert match
    name, body = match.groups()
    check(name in templates(), f"unknown algorithm {name!r}: there are {', '.join(templates())}")
    template = templates()[name]
    types = get_type_hints(template.schedule)
    values: dict[str, Any] = {}
    for part in filter(None, (x.strip() for x in body.split(","))):
        field, equals, word = part.partition("=")
        check(bool(equals), f"{name}: at {part!r} expected field=value")
        check(field in types, f"{name} has no field {field!r}: it has {', '.join(types)}")
        values[field] = _value(types[field], word, part)
    missing = types.keys() - values.keys()
    check(not missing, f"{name} needs {', '.join(sorted(missing))}")
    return template, template.schedule(**values)


def _value(kind: type, word: str, part: str) -> int | bool | str:
    if kind is bool:
        check(word in ("yes", "no"), f"{part!r}: expected yes or no")
        return word == "yes"
    if kind is int:
        # Of any length, it would overflow whatever reckons with it.
        found = re.fullmatch("-?[0-9]{1,9}", word) is not None
        check(found, f"{part[:40]!r}: expected an integer of at most nine digits")
        return int(word)
    return word

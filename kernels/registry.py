"""The algorithms by name: every file and folder of `kernels/conv` and `kernels/attention`."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from dataclasses import fields
from types import ModuleType
from typing import Any, get_type_hints

from fastrun.kernels import attention, conv
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.template import KernelTemplate, check


@functools.cache
def templates() -> dict[str, KernelTemplate]:
    """Every convolution algorithm, by name, in alphabetical order.

    Raises:
        TypeError: a file in `kernels/conv` defines no `template`, or one whose name is not its own.
    """
    return _templates(conv)


@functools.cache
def every_template() -> dict[str, KernelTemplate]:
    """Every algorithm, by name: those of convolution, then those of attention.

    Raises:
        TypeError: a file defines no `template`, or one whose name is not the file's.
    """
    return {**templates(), **_templates(attention)}


def _templates(package: ModuleType) -> dict[str, KernelTemplate]:
    found = {}
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        file = importlib.import_module(f"{package.__name__}.{module.name}")
        template = getattr(file, "template", None)
        if not isinstance(template, KernelTemplate) or template.name != module.name:
            where = package.__name__.partition(".")[2].replace(".", "/")
            raise TypeError(f"{where}/{module.name}.py must define a template named like it")
        found[module.name] = template
    return found


def applicable(p: Problem, cpu: Cpu) -> list[KernelTemplate]:
    """The algorithms that can compute `p`, with the baselines."""
    return [t for t in every_template().values() if t.refusal(p, cpu) is None]


def heuristic_choice(p: Problem, cpu: Cpu) -> tuple[KernelTemplate, Any]:
    """Algorithm and schedule without measuring: the highest rank, and its heuristic's schedule."""
    candidates = [t for t in applicable(p, cpu) if not t.baseline]
    best = max(candidates, key=lambda t: t.rank(p, cpu))
    return best, best.heuristic(p, cpu)


@functools.lru_cache(4096)
def parse_schedule(text: str) -> tuple[KernelTemplate, Any]:
    """The template and schedule that `KernelTemplate.text` wrote.

    Raises:
        ScheduleError: unknown algorithm, unknown or missing field, or a value of the wrong type.
    """
    match = re.fullmatch(r"\s*(\w+)\((.*)\)\s*", text)
    check(match is not None, f"not a schedule: {text!r}; expected algorithm(field=value, ...)")
    assert match
    name, body = match.groups()
    known = every_template()
    check(name in known, f"unknown algorithm {name!r}: there are {', '.join(known)}")
    template = known[name]
    schedule: Any = template.schedule
    types = _field_types(schedule)
    values: dict[str, Any] = {}
    for part in filter(None, (x.strip() for x in body.split(","))):
        field, equals, word = part.partition("=")
        check(bool(equals), f"{name}: at {part!r} expected field=value")
        check(field in types, f"{name} has no field {field!r}: it has {', '.join(types)}")
        values[field] = _value(types[field], word, part)
    empty = {f.name for f in fields(schedule) if f.default == ""}
    missing = types.keys() - values.keys() - empty
    check(not missing, f"{name} needs {', '.join(sorted(missing))}")
    return template, schedule(**values)


@functools.cache
def _field_types(schedule: Any) -> dict[str, Any]:
    """The types of a schedule's fields; Python evaluates their annotations each time."""
    return get_type_hints(schedule)


def _value(kind: type, word: str, part: str) -> int | bool | str:
    if kind is bool:
        check(word in ("yes", "no"), f"{part!r}: expected yes or no")
        return word == "yes"
    if kind is int:
        # A longer number would overflow in later arithmetic.
        found = re.fullmatch("-?[0-9]{1,9}", word) is not None
        check(found, f"{part[:40]!r}: expected an integer of at most nine digits")
        return int(word)
    return word

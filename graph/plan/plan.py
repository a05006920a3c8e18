"""A plan as data and as the text of a file: the form, layouts and bands of every task of a network.

A plan is all that a network needs to run as tuned: with the file it starts without a database. The
file names the machine that made it, under a seal that an edited file breaks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrun.graph.core.errors import PlanError
from fastrun.graph.core.model import Graph, Shape
from fastrun.graph.plan.form import Form, layouts_text
from fastrun.kernels.core.layout import Layout
from fastrun.kernels.core.notebook import card
from fastrun.kernels.core.whole_file import write_whole

_HEAD = "# fastrun plan 1: microseconds expected, layouts read and written, algorithm, tensor"


@dataclass(frozen=True)
class Plan:
    """The form of every task by the name of the tensor it computes, in the order of running.

    `inputs` are the shapes for which the plan was made, `seconds` the expected time of a run,
    moves included. `machine` is the fingerprint of the processor on which it was made, "" if that
    is unknown.
    """

    network: str
    inputs: Mapping[str, Shape]
    forms: Mapping[str, Form]
    seconds: float
    machine: str = ""

    def __str__(self) -> str:
        """The file's text."""
        head, *lines = self._lines()
        if self.machine:
            lines.insert(0, f"machine\t{self.machine}\t{_seal(self.machine, [head, *lines])}")
        return "\n".join([head, *lines]) + "\n"

    def _lines(self) -> list[str]:
        inputs = [f"{_escaped(name)}\t{'x'.join(map(str, s))}" for name, s in self.inputs.items()]
        rows = [
            f"{form.seconds * 1e6:.1f}\t{layouts_text(form)}\t{_runs(form)}\t{_escaped(name)}"
            for name, form in self.forms.items()
        ]
        head = [_HEAD, f"network\t{_escaped(self.network)}", f"total\t{self.seconds * 1e6:.1f}"]
        return [*head, *(f"input\t{line}" for line in inputs), *rows]

    def _repr_html_(self) -> str:
        seconds: dict[str, list[float]] = {}
        for form in self.forms.values():
            seconds.setdefault(form.algorithm.partition("(")[0], []).append(form.seconds)
        inputs = (f"{name} {'x'.join(map(str, shape))}" for name, shape in self.inputs.items())
        facts = {"inputs": ", ".join(inputs), "expected": f"{1e3 * self.seconds:.2f} ms"}
        for name, spent in sorted(seconds.items(), key=lambda item: -sum(item[1])):
            facts[name] = f"{len(spent)} of {len(self.forms)} tasks, {1e3 * sum(spent):.2f} ms"
        return card(f"plan of {self.network}", facts)

    def save(self, path: str | Path) -> None:
        """Write the file.

        Raises:
            OSError: it cannot be written.
        """
        write_whole(Path(path), str(self))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read the file.

        Raises:
            PlanError: the file cannot be read or is not a plan.
        """
        try:
            return cls.parse(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise PlanError(f"cannot read the plan {path}: {reason}") from error
        except PlanError as error:
            raise PlanError(f"{path} is damaged or no plan: {error}") from error

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read the text form.

        Raises:
            PlanError: the text is not a plan; the message names the wrong line.
        """
        first, *lines = text.splitlines() or [""]
        if first != _HEAD:
            raise PlanError("its first line is not the first line of a plan of version 1")
        head: dict[str, str] = {}
        inputs: dict[str, Shape] = {}
        forms: dict[str, Form] = {}
        for number, line in enumerate(lines, 2):
            try:
                match line.split("\t"):
                    case ["input", name, shape]:
                        _put(
                            inputs, _plain(name), tuple(map(_count, filter(None, shape.split("x"))))
                        )
                    case ["machine", fingerprint, seal]:
                        others = [first, *(x for x in lines if x != line)]
                        known = seal == _seal(fingerprint, others)
                        _put(head, "machine", fingerprint if known else "")
                    case ["network" | "total" as key, value]:
                        _put(head, key, _plain(value))
                    case [time, layouts, runs, name]:
                        _put(forms, _plain(name), _form(time, layouts, runs))
                    case _:
                        raise ValueError("not a line of a plan")
            except ValueError as error:
                reason = str(error)[:80]
                raise PlanError(f"line {number} is {line[:60]!r}: {reason}") from None
        if not head.keys() >= {"network", "total"}:
            raise PlanError("the lines `network` and `total` are missing")
        try:
            seconds = _seconds(head["total"])
        except ValueError:
            raise PlanError(f"its total is {head['total'][:60]!r}") from None
        return cls(head["network"], inputs, forms, seconds, head.get("machine", ""))


def input_shapes(graph: Graph) -> dict[str, Shape]:
    """The shapes of a network's inputs by name."""
    return {name: graph.shape(name) for name in graph.inputs}


def _escaped(name: str) -> str:
    """The name on one line and without tabs."""
    return name.encode("unicode_escape").decode()


def _plain(text: str) -> str:
    """The name that `_escaped` turned into this text.

    Raises:
        ValueError: `_escaped` never makes this text.
    """
    if not re.fullmatch(_ESCAPED, text):
        raise ValueError(f"not an escaped name: {text!r}")
    return text.encode().decode("unicode_escape")


_ESCAPED = r"([ -\[\]-~]|\\([\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))*"


def _runs(form: Form) -> str:
    """`max pool`, `direct(...) as u8s8>u8`, `direct(...) by 4 rows`."""
    types = f" as {form.types}" if form.types else ""
    return f"{form.algorithm}{types}{f' by {form.rows} rows' if form.rows else ''}"


def _form(time: str, layouts: str, runs: str) -> Form:
    reads, _, writes = layouts.partition(">")
    kernel, _, rows = runs.removesuffix(" rows").partition(" by ")
    sources = tuple(map(Layout.parse, filter(None, reads.split(","))))
    band = _count(rows) if kernel != runs else 0
    algorithm, _, types = kernel.partition(" as ")
    if types and not re.fullmatch(_TYPES, types):
        raise ValueError(f"unknown types {types!r}")
    return Form(sources, Layout.parse(writes), algorithm, _seconds(time), band, types)


# Those of problems, and those of other kernels of bytes.
_TYPES = r"u8(s[2-9])?(>(u8|f32))?|f32>u8|f32b?f16|f32s16|bf16(>f32)?"


def _put(known: dict[str, Any], name: str, value: object) -> None:
    if name in known:
        raise ValueError(f"{name} appears twice")
    known[name] = value


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(f"not a number: {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text):
        raise ValueError(f"not a time: {text!r}")
    return float(text) * 1e-6


def _seal(machine: str, lines: Sequence[str]) -> str:
    """Sixteen hex digits of the machine and all lines: a changed line changes them."""
    return hashlib.sha256("\n".join([machine, *lines]).encode()).hexdigest()[:16]

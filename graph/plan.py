"""A plan: by what and in which layouts every task of a network runs. The unit of deployment.

It is a small text file. With it a network starts without a database, and another machine, reader
or diff can see what was decided. It knows the machine that made it, until somebody edits it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graph.choices import Choose
from graph.errors import PlanError
from graph.following import check_forms, own_choices
from graph.forms import GUESSED, Costs, Form, Forms, MoveCost, layouts_text
from graph.fusion import in_bands
from graph.layout import assign
from graph.model import Graph, Shape
from graph.steps import Arrangement, arrange
from graph.tasks import tasks
from kernels.core.card import card
from kernels.core.cpu import Cpu
from kernels.core.layout import Layout

_HEAD = "# fastrun plan 1: microseconds expected, layouts read and written, algorithm, tensor"

__all__ = ["Plan", "PlanError", "carried_out", "cheapest_plan", "follow_plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """The form of every task by the name of the tensor it computes, in the order they run.

    `inputs` are the shapes it was made for, `seconds` what a run should take, moves included.
    `machine` is the fingerprint of the processor it was made on, "" where nobody knows.
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
            f"{form.seconds * 1e6:.1f}\t{layouts_text(form)}"
            f"\t{form.algorithm}{f' by {form.rows} rows' * bool(form.rows)}\t{_escaped(name)}"
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
        try:
            Path(path).write_text(str(self), encoding="utf-8")
        except OSError as error:  # which names no file where the disk is full
            raise OSError(error.errno, error.strerror, str(path)) from error

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read the file.

        Raises:
            PlanError: there is none, or it is not a plan.
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
            PlanError: naming the line that is wrong.
        """
        first, *lines = text.splitlines() or [""]
        if first != _HEAD:
            raise PlanError("its first line is not that of a plan of version 1")
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
                        raise ValueError("no line of a plan")
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


def make_plan(
    graph: Graph, choose: Choose, cpu: Cpu, costs: Costs = GUESSED, threads: int = 0
) -> tuple[Plan, Arrangement]:
    """Choose a form for every task so that the whole network should take the least time.

    With a number of `threads`, tasks run in bands where that should pay with so many.

    Raises:
        UnsupportedError: a node cannot be run; it is named.
    """
    todo = tasks(graph)
    forms = Forms(graph, todo, choose, costs)
    plan = cheapest_plan(graph, {task.output: forms.of(task) for task in todo}, costs.move)
    plan = replace(plan, machine=cpu.fingerprint)
    if threads:
        plan = replace(plan, forms=in_bands(graph, todo, plan.forms, cpu, threads))
    arrangement = arrange(graph, todo, plan.forms, forms, cpu)
    return carried_out(plan, arrangement), arrangement


def carried_out(plan: Plan, arrangement: Arrangement) -> Plan:
    """The plan with the algorithms that its arrangement runs.

    Where a kernel refuses to work between the halos it finds, another one takes its place.
    """
    forms = dict(plan.forms)
    for step in arrangement.steps:
        forms |= step.forms
    return replace(plan, forms=forms)


def cheapest_plan(graph: Graph, forms: Mapping[str, Sequence[Form]], move: MoveCost) -> Plan:
    """Of the forms given for each task, by its output, those that take the least time together."""
    todo = tasks(graph)
    chosen, seconds = assign(graph, todo, forms, move)
    ordered = {task.output: chosen[task.output] for task in todo}
    return Plan(graph.name, _shapes(graph), ordered, seconds)


def follow_plan(graph: Graph, plan: Plan, cpu: Cpu, costs: Costs = GUESSED) -> Arrangement:
    """Do as the plan says. Schedules that this machine cannot build give way to a heuristic.

    By `costs` its moves are expected to take what the steps say.

    Raises:
        PlanError: it was made for another network or other shapes, or says of a task what nothing
            can do.
        UnsupportedError: a node cannot be run; it is named.
    """
    todo = tasks(graph)
    if plan.inputs != _shapes(graph):
        raise PlanError(
            f"the plan is for inputs {dict(plan.inputs)}, the network has {_shapes(graph)}: "
            "plan again for these shapes"
        )
    if [*plan.forms] != [task.output for task in todo]:
        raise PlanError(
            f"the plan of {plan.network!r} is for another network than this {graph.name!r}: "
            "plan again for this one"
        )
    forms = Forms(graph, todo, own_choices(graph, todo, plan.forms), costs)
    check_forms(todo, plan.forms, forms)
    return arrange(graph, todo, plan.forms, forms, cpu)


def _shapes(graph: Graph) -> dict[str, Shape]:
    return {name: graph.shape(name) for name in graph.inputs}


def _escaped(name: str) -> str:
    """On one line and without tabs."""
    return name.encode("unicode_escape").decode()


def _plain(text: str) -> str:
    """What `_escaped` made this of.

    Raises:
        ValueError: it did not make this.
    """
    if not re.fullmatch(_ESCAPED, text):
        raise ValueError(f"not an escaped name: {text!r}")
    return text.encode().decode("unicode_escape")


_ESCAPED = r"([ -\[\]-~]|\\([\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))*"


def _form(time: str, layouts: str, runs: str) -> Form:
    reads, _, writes = layouts.partition(">")
    algorithm, _, rows = runs.removesuffix(" rows").partition(" by ")
    sources = tuple(map(Layout, filter(None, reads.split(","))))
    band = _count(rows) if algorithm != runs else 0
    return Form(sources, Layout(writes), algorithm, _seconds(time), band)


def _put(known: dict[str, Any], name: str, value: object) -> None:
    if name in known:
        raise ValueError(f"{name} is there twice")
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
    """Sixteen hex digits that no longer fit once somebody has changed a line."""
    return hashlib.sha256("\n".join([machine, *lines]).encode()).hexdigest()[:16]

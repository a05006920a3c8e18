"""A plan: by what and in which layouts every task of a network runs. The unit of deployment.

It is a small text file. With it a network starts without a database, and another machine, reader
or diff can see what was decided.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graph.choices import Choose
from graph.errors import GraphError
from graph.forms import GUESSED, Costs, Form, Forms, MoveCost
from graph.layout import assign
from graph.model import Graph, Shape
from graph.ops import Conv
from graph.steps import Arrangement, arrange
from graph.tasks import Task, tasks
from kernels.core.card import card
from kernels.core.cpu import Cpu
from kernels.core.layout import Layout

_HEAD = "# fastrun plan 1: microseconds expected, layouts read and written, algorithm, tensor"


class PlanError(GraphError):
    """A plan that does not fit the network or is no plan. The message is one line."""


@dataclass(frozen=True)
class Plan:
    """The form of every task by the name of the tensor it computes, in the order they run.

    `inputs` are the shapes it was made for, `seconds` what a run should take, moves included.
    """

    network: str
    inputs: Mapping[str, Shape]
    forms: Mapping[str, Form]
    seconds: float

    def __str__(self) -> str:
        """The file's text."""
        inputs = [f"{_escaped(name)}\t{'x'.join(map(str, s))}" for name, s in self.inputs.items()]
        rows = [
            f"{form.seconds * 1e6:.1f}\t{','.join(map(str, form.reads))}>{form.writes}"
            f"\t{form.algorithm}\t{_escaped(name)}"
            for name, form in self.forms.items()
        ]
        head = [_HEAD, f"network\t{_escaped(self.network)}", f"total\t{self.seconds * 1e6:.1f}"]
        return "\n".join([*head, *(f"input\t{line}" for line in inputs), *rows]) + "\n"

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
        Path(path).write_text(str(self), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read the file.

        Raises:
            PlanError: there is none, or it is not a plan.
        """
        try:
            return cls.parse(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read the plan {path}: {error}") from error
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
            fields = line.split("\t")
            try:
                if fields[0] == "input":
                    inputs[_plain(fields[1])] = tuple(int(x) for x in fields[2].split("x") if x)
                elif fields[0] in ("network", "total"):
                    head[fields[0]] = _plain(fields[1])
                else:
                    time, layouts, algorithm, name = fields
                    reads, _, writes = layouts.partition(">")
                    forms[_plain(name)] = Form(
                        tuple(map(Layout, filter(None, reads.split(",")))),
                        Layout(writes),
                        algorithm,
                        float(time) * 1e-6,
                    )
            except (ValueError, IndexError):
                raise PlanError(f"line {number} is {line[:60]!r}") from None
        if head.keys() != {"network", "total"} or not re.fullmatch(r"[\d.]+", head["total"]):
            raise PlanError("the lines `network` and `total` are missing")
        return cls(head["network"], inputs, forms, float(head["total"]) * 1e-6)


def make_plan(
    graph: Graph, choose: Choose, cpu: Cpu, costs: Costs = GUESSED
) -> tuple[Plan, Arrangement]:
    """Choose a form for every task so that the whole network should take the least time.

    Raises:
        UnsupportedError: a node cannot be run; it is named.
    """
    todo = tasks(graph)
    forms = Forms(graph, todo, choose, costs)
    plan = cheapest_plan(graph, {task.output: forms.of(task) for task in todo}, costs.move)
    arrangement = arrange(graph, todo, plan.forms, forms, cpu)
    # Where a kernel refused to work between these halos, another one took its place.
    used = {step.output: step.algorithm for step in arrangement.steps if step.computes}
    final = {task.output: _with_algorithm(task, plan.forms[task.output], used) for task in todo}
    return replace(plan, forms=final), arrangement


def cheapest_plan(graph: Graph, forms: Mapping[str, Sequence[Form]], move: MoveCost) -> Plan:
    """Of the forms given for each task, by its output, those that take the least time together."""
    chosen, seconds = assign(graph, tasks(graph), forms, move)
    return Plan(graph.name, _shapes(graph), chosen, seconds)


def follow_plan(graph: Graph, plan: Plan, cpu: Cpu) -> Arrangement:
    """Do as the plan says. Schedules that this machine cannot build give way to a heuristic.

    Raises:
        PlanError: it was made for another network or other shapes.
        UnsupportedError: a node cannot be run; it is named.
    """
    todo = tasks(graph)
    if plan.inputs != _shapes(graph):
        raise PlanError(
            f"the plan is for inputs {dict(plan.inputs)}, the network has {_shapes(graph)}: "
            "plan again for these shapes"
        )
    if [*plan.forms] != [task.output for task in todo]:
        raise PlanError(f"the plan of {plan.network!r} is for another network than {graph.name!r}")
    for task in todo:
        if len(plan.forms[task.output].reads) != len(task.reads):
            raise PlanError(f"the plan gives {task.output!r} the wrong number of operands")
    return arrange(graph, todo, plan.forms, Forms(graph, todo, lambda p: []), cpu)


def _shapes(graph: Graph) -> dict[str, Shape]:
    return {name: graph.shape(name) for name in graph.inputs}


def _with_algorithm(task: Task, form: Form, used: Mapping[str, str]) -> Form:
    if not isinstance(task.node.op, Conv):
        return form
    return Form(form.reads, form.writes, used[task.output], form.seconds)


def _escaped(name: str) -> str:
    """On one line and without tabs."""
    return name.encode("unicode_escape").decode()


def _plain(text: str) -> str:
    return text.encode().decode("unicode_escape")

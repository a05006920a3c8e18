"""A network as steps over buffers: the programs of all tasks and moves, and how long data lives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastrun.graph.build import strided
from fastrun.graph.build.bands import fuse
from fastrun.graph.build.kernels import Kernel, build
from fastrun.graph.build.placement import Arranger, Move, Piece, Run, Tensor
from fastrun.graph.core.model import Array, Graph
from fastrun.graph.core.ops import Conv
from fastrun.graph.plan.bands import partners
from fastrun.graph.plan.forms import Form, Forms, layouts_text
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, READ_SLACK, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.ops import halo, movement, reorder


@dataclass(frozen=True)
class Step:
    """A program and the buffers it works on, by number; None is an operand it does not have.

    `name` is what the node is called, `work` what it does, `algorithm` by which kernel, `layouts`
    what that reads and writes.
    `output` is the tensor computed. Without `joins` the next step may begin before this one ends.
    `picks` are the buffer of every input channel and its place there, in floats from where `src`
    has its first, if the program picks channels. `forms` are those of the tasks that are done, by
    output, with the algorithms that could be built.
    """

    name: str
    work: str
    algorithm: str
    layouts: str
    output: str
    program: Program
    src: int
    add: int | None
    dst: int
    weights: Array | None = None
    bias: Array | None = None
    seconds: float = 0.0
    joins: bool = True
    picks: tuple[tuple[int, int], ...] = ()
    forms: Mapping[str, Form] = field(default_factory=dict)

    @property
    def computes(self) -> bool:
        """Whether this is a node's own work rather than moving data for it."""
        return self.work not in ("reorder", "halo")

    def packed(self) -> Array:
        """The weights as the program reads them; empty where it reads none."""
        given = np.zeros(0, np.float32) if self.weights is None else self.weights
        packed = self.program.pack_weights(np.ascontiguousarray(given, np.float32))
        return np.ascontiguousarray(packed.reshape(-1), np.float32)


@dataclass(frozen=True)
class Buffer:
    """`size` bytes needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Port:
    """Where an input or output of the network lies, and the shape it has outside."""

    name: str
    shape: tuple[int, ...]
    buffer: int
    placement: Placement


@dataclass(frozen=True)
class Arrangement:
    """A network as a list of steps over buffers, and its inputs and outputs in their order.

    `constants` are the outputs that do not depend on any input, `unread` inputs that nothing reads,
    `outside` element types of inputs and outputs as the model has them, where not float32.
    """

    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: Mapping[str, Array]
    unread: tuple[str, ...] = ()
    outside: Mapping[str, np.dtype[Any]] = field(default_factory=dict)

    @property
    def ir_hash(self) -> str:
        """Thirty-two hex digits of all code."""
        code = "".join(step.program.ir_hash for step in self.steps)
        return hashlib.sha256(code.encode()).hexdigest()[:32]


# The number of the buffer that a tensor lies in.
_Number = Callable[[Tensor], int]


def arrange(
    graph: Graph, tasks: Sequence[Task], chosen: Mapping[str, Form], forms: Forms, cpu: Cpu
) -> Arrangement:
    """The steps of a network whose tasks run in the forms `chosen`, by output.

    Raises:
        UnsupportedError: a task has no kernel.
    """
    arranger = Arranger(graph)
    for name in graph.inputs:
        arranger.new(name, NCHW, given=True)
    behind = partners(graph, tasks)
    for task in tasks:
        form = chosen[task.output]
        arranger.task(task, form if task.output in behind else replace(form, rows=0))
    constants = {x: graph.constants[x] for x in graph.outputs if x in graph.constants}
    computed = [x for x in graph.outputs if x not in constants]
    outputs = [arranger.in_layout(x, NCHW) for x in computed]
    roots: dict[int, Tensor] = {}

    def number(tensor: Tensor) -> int:
        root = tensor.root
        if root.number < 0:
            root.number = len(roots)
            roots[root.number] = root
        return root.number

    inputs = [arranger.there[x][0] for x in graph.inputs]
    steps: list[Step] = []
    for tensor in inputs:
        number(tensor)
        steps += _zeroed(tensor, cpu)
    if steps:
        steps[-1] = replace(steps[-1], joins=True)
    for item in arranger.work:
        if item.dst.root.number < 0:
            number(item.dst)
            steps += _zeroed(item.dst.root, cpu)
        steps += _steps(graph, forms, cpu, item, number)
    return Arrangement(
        tuple(steps),
        _lifetimes(steps, roots, [number(t) for t in inputs], [number(t) for t in outputs]),
        tuple(_port(graph, x, t, number) for x, t in zip(graph.inputs, inputs, strict=True)),
        tuple(_port(graph, x, t, number) for x, t in zip(computed, outputs, strict=True)),
        constants,
        graph.unread,
        graph.outside,
    )


def _zeroed(tensor: Tensor, cpu: Cpu) -> Iterable[Step]:
    """The step that zeroes the halo, which whoever writes the pixels need not wait for."""
    where = replace(tensor.placement, c=tensor.placement.buffer_c, whole=0)
    if any(where.halo):
        program = halo.build(halo.ZeroHalo(), cpu, where, where)
        number = tensor.number
        layouts = f"{where.layout}>{where.layout}"
        yield Step("", "halo", "zero", layouts, "", program, number, None, number, joins=False)


def _steps(
    graph: Graph, forms: Forms, cpu: Cpu, item: Move | Run | Piece, number: _Number
) -> list[Step]:
    if isinstance(item, Run) and item.behind:
        return _pair(graph, forms, cpu, item.behind, item, number)
    return [_step(graph, forms, cpu, item, number)]


def _pair(
    graph: Graph, forms: Forms, cpu: Cpu, first: Run, second: Run, number: _Number
) -> list[Step]:
    """One step for two tasks; where they cannot be one kernel, a step for each."""
    kernels = _kernel(graph, forms, cpu, first), _kernel(graph, forms, cpu, second)
    src, *residuals = first.reads + second.reads[1:]
    dst = second.dst.placement
    io = Io(src.placement, dst, residuals[0].placement if residuals else dst)
    tasks, rows = (first.task, second.task), second.form.rows
    try:
        kernel = fuse(graph, tasks, kernels, rows, cpu, io, first.dst.placement)
    except ScheduleError:
        alone = replace(second, form=replace(second.form, rows=0), behind=None)
        return [_step(graph, forms, cpu, run, number) for run in (first, alone)]
    step = _computing(second, kernel, src, residuals, number)
    both = list(zip((first, second), kernels, strict=True))
    return [
        replace(
            step,
            name=", ".join(task.node.name for task in tasks),
            work=" then ".join(task.node.work for task in tasks),
            layouts=f"{layouts_text(first.form)}>{second.form.writes}",
            seconds=sum(run.form.seconds for run, _ in both),
            forms={run.task.output: _as_built(run, kernel) for run, kernel in both},
        )
    ]


def _step(graph: Graph, forms: Forms, cpu: Cpu, item: Move | Run | Piece, number: _Number) -> Step:
    dst = item.dst.placement
    if isinstance(item, Move):
        before = item.src.placement
        program = reorder.build(reorder.Reorder(), cpu, before, dst)
        layouts = f"{before.layout}>{dst.layout}"
        expected = forms.moving(item.src.shape, before.layout, dst.layout)
        return Step(item.name, "reorder", "reorder", layouts, item.name, program, number(item.src),
                    None, number(item.dst), seconds=expected, joins=item.joins)  # fmt: skip
    if isinstance(item, Piece):
        return _piece_step(graph, cpu, item, number)
    src, *others = item.reads
    step = _computing(item, _kernel(graph, forms, cpu, item), src, others, number)
    picks: list[tuple[int, int]] = []
    for tensor in item.picked:
        first = tensor.placement.origin - src.root.placement.origin
        picks += [(number(tensor), first + c) for c in range(tensor.shape[1])]
    return replace(step, picks=tuple(picks))


def _kernel(graph: Graph, forms: Forms, cpu: Cpu, run: Run) -> Kernel:
    task, form = run.task, run.form
    schedules = [form.algorithm]
    if isinstance(task.node.op, Conv):
        schedules += forms.choices(task, form.reads[0], form.writes)
    reads = [tensor.placement for tensor in run.reads]
    if run.picked:
        reads[0] = run.reads[0].root.placement
    return build(graph, task, schedules, cpu, reads, run.dst.placement, bool(run.picked))


def _computing(
    run: Run, kernel: Kernel, src: Tensor, others: Sequence[Tensor], number: _Number
) -> Step:
    task, form = run.task, run.form
    return Step(
        name=task.node.name,
        work=task.node.work,
        algorithm=kernel.algorithm,
        layouts=layouts_text(form),
        output=task.output,
        program=kernel.program,
        src=number(src),
        add=number(others[0]) if others else None,
        dst=number(run.dst),
        weights=kernel.weights,
        bias=kernel.bias,
        seconds=form.seconds,
        forms={task.output: _as_built(run, kernel)},
    )


def _as_built(run: Run, kernel: Kernel) -> Form:
    """The form with the schedule that could be built."""
    conv = isinstance(run.task.node.op, Conv)
    return replace(run.form, algorithm=kernel.algorithm) if conv else run.form


def _piece_step(graph: Graph, cpu: Cpu, item: Piece, number: _Number) -> Step:
    shape = graph.shape(item.name)
    value = None if item.src else graph.constants[item.name]
    src = strided.view(item.src.placement, shape) if item.src else Strided.row_major(shape)
    whole = strided.view(item.dst.placement, graph.shape(item.task.output))
    part = whole.part(item.axis, item.start, shape[item.axis])
    return Step(
        name=item.task.node.name,
        work=item.task.node.work,
        algorithm="copy",
        layouts=layouts_text(item.form),
        output=item.task.output,
        program=movement.copy(cpu, src, part, constant=value is not None),
        src=number(item.src or item.dst),
        add=None,
        dst=number(item.dst),
        weights=value,
    )


def _lifetimes(
    steps: Sequence[Step], roots: Mapping[int, Tensor], given: list[int], wanted: list[int]
) -> tuple[Buffer, ...]:
    """From the first step that writes a buffer to the last that reads it."""
    spans: dict[int, tuple[int, int]] = dict.fromkeys(given, (0, 0))
    for i, step in enumerate(steps):
        for x in (step.src, step.add, step.dst, *(buffer for buffer, _ in step.picks)):
            if x is not None:
                spans[x] = spans.get(x, (i, i))[0], i
    for x in wanted:
        spans[x] = spans[x][0], len(steps)
    return tuple(
        Buffer(4 * (tensor.placement.size + READ_SLACK), *spans[x]) for x, tensor in roots.items()
    )


def _port(graph: Graph, name: str, tensor: Tensor, number: _Number) -> Port:
    return Port(name, graph.shape(name), number(tensor), tensor.placement)

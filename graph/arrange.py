"""From a form for every task to steps over buffers: where each tensor lies, and what moves.

Tensors that are ranges of others' channels, or other shapes of the same memory, are views.
Every buffer has as wide a halo as any of its readers needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graph.build import build
from graph.forms import Form, Forms
from graph.model import Array, Graph
from graph.ops import Concat, Conv, Identity, Reshape, Slice
from graph.problems import conv_problem
from graph.tasks import Shape4, Task, shape4
from kernels.core.cpu import Cpu
from kernels.core.layout import NCHW, READ_SLACK, Halo, Layout, Placement
from kernels.core.template import Program
from kernels.ops import halo, reorder

NO_HALO: Halo = (0, 0, 0, 0)


@dataclass(frozen=True)
class Step:
    """A program and the buffers it works on, by number; None is an operand it does not have.

    `name` is what the node is called, `work` what it does, `algorithm` by which kernel.
    `output` is the tensor computed. Without `joins` the next step may begin before this one ends.
    """

    name: str
    work: str
    algorithm: str
    output: str
    program: Program
    src: int
    add: int | None
    dst: int
    weights: Array | None = None
    bias: Array | None = None
    seconds: float = 0.0
    joins: bool = True


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
    """A network as a list of steps over buffers, and its inputs and outputs in their order."""

    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


@dataclass(eq=False)
class _Tensor:
    """A tensor in one layout: a buffer of its own, or a view of another one.

    A view is a range of the parent's channels, or the parent's memory under another shape
    (`recast`), which only a buffer without gaps offers: the root is then `rigid`.
    """

    shape: Shape4
    layout: Layout
    parent: _Tensor | None = None
    first: int = 0
    recast: bool = False
    rigid: bool = False
    halo: Halo = NO_HALO
    given: bool = False  # an input of the network
    number: int = -1

    @property
    def root(self) -> _Tensor:
        """The tensor whose buffer this one lies in."""
        return self.parent.root if self.parent else self

    @property
    def placement(self) -> Placement:
        """Where it lies in the root's buffer, once halos are known."""
        if self.parent is None:
            return Placement(self.layout, *self.shape, self.halo)
        if self.recast:
            return Placement(self.layout, *self.shape)
        return self.parent.placement.part(self.first, self.shape[1])

    def widen(self, halo: Halo) -> bool:
        """Make the halo at least this wide; says whether that is possible."""
        root = self.root
        if root.rigid:
            return halo == NO_HALO
        root.halo = tuple(map(max, root.halo, halo))  # type: ignore[assignment]
        return True


# The number of the buffer that a tensor lies in.
_Number = Callable[[_Tensor], int]


@dataclass
class _Move:
    """A tensor to be copied into another; part of the task that needs it."""

    name: str
    src: _Tensor
    dst: _Tensor


@dataclass
class _Run:
    """A task to be computed by a kernel."""

    task: Task
    form: Form
    reads: list[_Tensor]
    dst: _Tensor


@dataclass
class _Arranger:
    graph: Graph
    forms: Forms
    there: dict[str, list[_Tensor]] = field(default_factory=dict)
    work: list[_Move | _Run] = field(default_factory=list)

    def new(self, name: str, layout: Layout, given: bool = False) -> _Tensor:
        """A tensor in a buffer of its own."""
        tensor = _Tensor(shape4(self.graph.shape(name)), layout, given=given)
        self.there.setdefault(name, []).append(tensor)
        return tensor

    def in_layout(self, name: str, layout: Layout) -> _Tensor:
        """The tensor in this layout, moved there if it is in none such yet."""
        for tensor in self.there[name]:
            if tensor.layout == layout:
                return tensor
        source = self.there[name][0]
        if _alike(source, layout):
            view = self.recast(source, source.shape, layout)
            if view:
                self.there[name].append(view)
                return view
        moved = self.new(name, layout)
        self.work.append(_Move(name, source, moved))
        return moved

    def recast(self, source: _Tensor, shape: Shape4, layout: Layout) -> _Tensor | None:
        """A view of the memory under another shape, if it has neither gaps nor foreign channels."""
        root = source.root
        direct = source is root or source.recast
        if not direct or root.halo != NO_HALO:
            return None
        root.rigid = True
        return _Tensor(shape, layout, parent=root, recast=True)

    def task(self, task: Task, form: Form) -> None:
        wanted = zip(task.reads, form.reads, strict=True)
        reads = [self.in_layout(x, layout) for x, layout in wanted]
        match task.node.op:
            case Slice(starts=starts):
                self._slice(task, reads[0], starts[1])
            case Concat():
                self._concat(task, reads, form.writes)
            case Reshape() | Identity():
                self._reshape(task, reads[0])
            case _:
                self._run(task, form, reads)

    def _slice(self, task: Task, source: _Tensor, first: int) -> None:
        if source.recast:
            source = self._copied(task.reads[0], source)
        shape = shape4(self.graph.shape(task.output))
        view = _Tensor(shape, source.layout, parent=source, first=first)
        self.there[task.output] = [view]

    def _concat(self, task: Task, reads: Sequence[_Tensor], layout: Layout) -> None:
        whole, first = self.new(task.output, layout), 0
        for name, source in zip(task.reads, reads, strict=True):
            root = source.root
            adoptable = source is root and not root.rigid and not root.given and root is not whole
            if adoptable:
                whole.widen(source.halo)
                source.parent, source.first, source.halo = whole, first, NO_HALO
            else:
                part = _Tensor(source.shape, layout, parent=whole, first=first)
                self.work.append(_Move(name, source, part))
            first += source.shape[1]

    def _reshape(self, task: Task, source: _Tensor) -> None:
        shape = shape4(self.graph.shape(task.output))
        if shape == source.shape:
            self.there[task.output] = [source]
            return
        view = self.recast(source, shape, source.layout)
        if view is None:
            view = self.recast(self._copied(task.reads[0], source), shape, source.layout)
        assert view
        self.there[task.output] = [view]

    def _run(self, task: Task, form: Form, reads: list[_Tensor]) -> None:
        if isinstance(task.node.op, Conv):
            padding = conv_problem(self.graph, task.node).padding
            if not reads[0].widen(padding):
                reads[0] = self._copied(task.reads[0], reads[0])
                reads[0].widen(padding)
        dst = self.new(task.output, form.writes)
        self.work.append(_Run(task, form, reads, dst))

    def _copied(self, name: str, source: _Tensor) -> _Tensor:
        """The same in a buffer of its own."""
        copy = _Tensor(source.shape, source.layout)
        self.work.append(_Move(name, source, copy))
        return copy


def arrange(
    graph: Graph, tasks: Sequence[Task], chosen: Mapping[str, Form], forms: Forms, cpu: Cpu
) -> Arrangement:
    """The steps of a network whose tasks run in the forms `chosen`, by output.

    Raises:
        UnsupportedError: a task has no kernel.
    """
    arranger = _Arranger(graph, forms)
    for name in graph.inputs:
        arranger.new(name, NCHW, given=True)
    for task in tasks:
        arranger.task(task, chosen[task.output])
    outputs = [arranger.in_layout(x, NCHW) for x in graph.outputs]
    roots: dict[int, _Tensor] = {}

    def number(tensor: _Tensor) -> int:
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
        steps.append(_step(graph, forms, cpu, item, number))
    return Arrangement(
        tuple(steps),
        _lifetimes(steps, roots, [number(t) for t in inputs], [number(t) for t in outputs]),
        tuple(_port(graph, x, t, number) for x, t in zip(graph.inputs, inputs, strict=True)),
        tuple(_port(graph, x, t, number) for x, t in zip(graph.outputs, outputs, strict=True)),
    )


def _alike(tensor: _Tensor, layout: Layout) -> bool:
    """Whether the tensor lies in memory as it would in this layout."""
    n, c, h, w = tensor.shape
    whole = all(x.blocked == 0 or c % x.blocked == 0 for x in (tensor.layout, layout))
    return h == w == 1 and (n == 1 or whole)


def _zeroed(tensor: _Tensor, cpu: Cpu) -> Iterable[Step]:
    """The step that zeroes the halo, which whoever writes the pixels need not wait for."""
    where = tensor.placement
    if any(where.halo):
        program = halo.build(halo.ZeroHalo(), cpu, where, where)
        number = tensor.number
        yield Step("", "halo", "zero", "", program, number, None, number, joins=False)


def _step(graph: Graph, forms: Forms, cpu: Cpu, item: _Move | _Run, number: _Number) -> Step:
    dst = item.dst.placement
    if isinstance(item, _Move):
        src = item.src.placement
        program = reorder.build(reorder.Reorder(), cpu, src, dst)
        moved = f"{src.layout} to {dst.layout}"
        return Step(item.name, "reorder", moved, item.name, program, number(item.src), None,
                    number(item.dst))  # fmt: skip
    task, form = item.task, item.form
    schedules = [form.algorithm]
    if isinstance(task.node.op, Conv):
        schedules += forms.choices(task, form.reads[0], form.writes)
    reads = [tensor.placement for tensor in item.reads]
    kernel = build(graph, task, schedules, cpu, reads, dst)
    second = number(item.reads[1]) if len(item.reads) > 1 else None
    return Step(
        name=task.node.name,
        work=task.node.work,
        algorithm=kernel.algorithm,
        output=task.output,
        program=kernel.program,
        src=number(item.reads[0]),
        add=second,
        dst=number(item.dst),
        weights=kernel.weights,
        bias=kernel.bias,
        seconds=form.seconds,
    )


def _lifetimes(
    steps: Sequence[Step], roots: Mapping[int, _Tensor], given: list[int], wanted: list[int]
) -> tuple[Buffer, ...]:
    """From the first step that writes a buffer to the last that reads it."""
    spans: dict[int, tuple[int, int]] = dict.fromkeys(given, (0, 0))
    for i, step in enumerate(steps):
        for x in (step.src, step.add, step.dst):
            if x is not None:
                spans[x] = spans.get(x, (i, i))[0], i
    for x in wanted:
        spans[x] = spans[x][0], len(steps)
    return tuple(
        Buffer(4 * (tensor.placement.size + READ_SLACK), *spans[x]) for x, tensor in roots.items()
    )


def _port(graph: Graph, name: str, tensor: _Tensor, number: _Number) -> Port:
    return Port(name, graph.shape(name), number(tensor), tensor.placement)

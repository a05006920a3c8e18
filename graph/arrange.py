"""Where the tensors of a network lie, and what has to be moved for that.

Tensors that are ranges of others' channels, or other shapes of the same memory, are views.
Every buffer has as wide a halo as any of its readers needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graph.forms import Form
from graph.model import Graph
from graph.ops import Concat, Conv, Identity, Reshape, Slice
from graph.problems import conv_problem
from graph.tasks import Shape4, Task, is_range, shape4
from kernels.core.layout import Halo, Layout, Placement

NO_HALO: Halo = (0, 0, 0, 0)


@dataclass(eq=False)
class Tensor:
    """A tensor in one layout: a buffer of its own, or a view of another one.

    A view is a range of the parent's channels, or the parent's memory under another shape
    (`recast`), which only a buffer without gaps offers: the root is then `rigid`.
    """

    shape: Shape4
    layout: Layout
    parent: Tensor | None = None
    first: int = 0
    recast: bool = False
    rigid: bool = False
    halo: Halo = NO_HALO
    given: bool = False  # an input of the network
    number: int = -1

    @property
    def root(self) -> Tensor:
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


@dataclass
class Move:
    """A tensor to be copied into another; part of the task that needs it."""

    name: str
    src: Tensor
    dst: Tensor


@dataclass
class Run:
    """A task to be computed by a kernel."""

    task: Task
    form: Form
    reads: list[Tensor]
    dst: Tensor


@dataclass
class Piece:
    """An input of a concatenation to be copied into the result from `start` on; or a constant."""

    task: Task
    form: Form
    name: str
    src: Tensor | None
    dst: Tensor
    axis: int
    start: int


@dataclass
class Arranger:
    graph: Graph
    there: dict[str, list[Tensor]] = field(default_factory=dict)
    work: list[Move | Run | Piece] = field(default_factory=list)

    def new(self, name: str, layout: Layout, given: bool = False) -> Tensor:
        """A tensor in a buffer of its own."""
        tensor = Tensor(shape4(self.graph.shape(name)), layout, given=given)
        self.there.setdefault(name, []).append(tensor)
        return tensor

    def in_layout(self, name: str, layout: Layout) -> Tensor:
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
        self.work.append(Move(name, source, moved))
        return moved

    def recast(self, source: Tensor, shape: Shape4, layout: Layout) -> Tensor | None:
        """A view of the memory under another shape, if it has neither gaps nor foreign channels."""
        root = source.root
        direct = source is root or source.recast
        if not direct or root.halo != NO_HALO:
            return None
        root.rigid = True
        return Tensor(shape, layout, parent=root, recast=True)

    def task(self, task: Task, form: Form) -> None:
        wanted = zip(task.reads, form.reads, strict=True)
        reads = [self.in_layout(x, layout) for x, layout in wanted]
        match task.node.op:
            case Slice(starts=starts) if is_range(self.graph, task):
                self._slice(task, reads[0], starts[1])
            case Concat(axis=1) if len(reads) == len(task.node.inputs):
                self._concat(task, reads, form.writes)
            case Concat(axis=axis):
                self._pieces(task, reads, form, axis)
            case Reshape() | Identity():
                self._reshape(task, reads[0])
            case _:
                self._run(task, form, reads)

    def _slice(self, task: Task, source: Tensor, first: int) -> None:
        if source.recast:
            source = self._copied(task.reads[0], source)
        shape = shape4(self.graph.shape(task.output))
        view = Tensor(shape, source.layout, parent=source, first=first)
        self.there[task.output] = [view]

    def _concat(self, task: Task, reads: Sequence[Tensor], layout: Layout) -> None:
        whole, first = self.new(task.output, layout), 0
        for name, source in zip(task.reads, reads, strict=True):
            root = source.root
            adoptable = source is root and not root.rigid and not root.given and root is not whole
            if adoptable:
                whole.widen(source.halo)
                source.parent, source.first, source.halo = whole, first, NO_HALO
            else:
                part = Tensor(source.shape, layout, parent=whole, first=first)
                self.work.append(Move(name, source, part))
            first += source.shape[1]

    def _pieces(self, task: Task, reads: list[Tensor], form: Form, axis: int) -> None:
        """A concatenation along another axis than that of channels, or with constant parts."""
        whole, start, left = self.new(task.output, form.writes), 0, list(reads)
        for name in task.node.inputs:
            source = None if name in self.graph.constants else left.pop(0)
            self.work.append(Piece(task, form, name, source, whole, axis, start))
            start += self.graph.shape(name)[axis]

    def _reshape(self, task: Task, source: Tensor) -> None:
        shape = shape4(self.graph.shape(task.output))
        if shape == source.shape:
            self.there[task.output] = [source]
            return
        view = self.recast(source, shape, source.layout)
        if view is None:
            view = self.recast(self._copied(task.reads[0], source), shape, source.layout)
        assert view
        self.there[task.output] = [view]

    def _run(self, task: Task, form: Form, reads: list[Tensor]) -> None:
        if isinstance(task.node.op, Conv):
            padding = conv_problem(self.graph, task.node).padding
            if not reads[0].widen(padding):
                reads[0] = self._copied(task.reads[0], reads[0])
                reads[0].widen(padding)
        dst = self.new(task.output, form.writes)
        self.work.append(Run(task, form, reads, dst))

    def _copied(self, name: str, source: Tensor) -> Tensor:
        """The same in a buffer of its own."""
        copy = Tensor(source.shape, source.layout)
        self.work.append(Move(name, source, copy))
        return copy


def _alike(tensor: Tensor, layout: Layout) -> bool:
    """Whether the tensor lies in memory as it would in this layout."""
    n, c, h, w = tensor.shape
    whole = all(x.blocked == 0 or c % x.blocked == 0 for x in (tensor.layout, layout))
    return h == w == 1 and (n == 1 or whole)

"""Where the tensors of a network lie, and what has to be moved for that.

Tensors that are ranges of others' channels, or other shapes of the same memory, are views.
Every buffer has as wide a halo as any of its readers needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import Concat, Conv, Identity, Reshape, Slice, Transpose
from fastrun.graph.core.problems import conv_problem
from fastrun.graph.core.shapes import Shape4, is_range, same_memory, shape4
from fastrun.graph.plan.forms import Form, source_layout
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.layout import NHWC, Halo, Layout, Placement

NO_HALO: Halo = (0, 0, 0, 0)


@dataclass(eq=False)
class Tensor:
    """A tensor in one layout: a buffer of its own, or a view of another one.

    A view is a range of the parent's channels, or the parent's memory under another shape
    (`recast`), which only a buffer without gaps offers: the root is then `rigid`. Where one
    kernel picks channels from several tensors, their roots are `twins`, of equal strides.
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
    twins: list[Tensor] = field(default_factory=list)

    @property
    def root(self) -> Tensor:
        """The tensor whose buffer this one lies in."""
        return self.parent.root if self.parent else self

    @property
    def placement(self) -> Placement:
        """Where it lies in the root's buffer, once halos are known."""
        if self.parent is None:
            room = max(tensor.shape[1] for tensor in self.family)
            whole = room if room > self.shape[1] else 0
            return Placement(self.layout, *self.shape, self.halo, whole)
        if self.recast:
            return Placement(self.layout, *self.shape)
        return self.parent.placement.part(self.first, self.shape[1])

    @property
    def family(self) -> list[Tensor]:
        """The roots whose strides are the same as those of this one's root."""
        return self.root.twins or [self.root]

    def widen(self, halo: Halo) -> bool:
        """Make the halo at least this wide; says whether that is possible."""
        if self.root.rigid:
            return halo == NO_HALO
        for tensor in self.family:
            tensor.halo = tuple(map(max, tensor.halo, halo))  # type: ignore[assignment]
        return True

    def twin(self, other: Tensor) -> None:
        """Give both roots, which are not rigid, the same strides."""
        family = [*dict.fromkeys([*self.family, *other.family])]
        halo = tuple(map(max, self.root.halo, other.root.halo))
        for tensor in family:
            tensor.twins, tensor.halo = family, halo  # type: ignore[assignment]


@dataclass
class Move:
    """A tensor to be copied into another; part of the task that needs it.

    Without `joins` the next item, which depends on it in nothing, may begin before it ends.
    """

    name: str
    src: Tensor
    dst: Tensor
    joins: bool = True


@dataclass
class Run:
    """A task to be computed by a kernel; `picked` if the input is several tensors, these.

    It may run `behind` another in one kernel: nobody else reads what that one computes.
    """

    task: Task
    form: Form
    reads: list[Tensor]
    dst: Tensor
    picked: Sequence[Tensor] = ()
    behind: Run | None = None


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
    """Places the tensors of a network, task by task.

    `there` holds every tensor in the layouts that it has by now, `work` what has to be done.
    """

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
        if not direct or root.halo != NO_HALO or root.twins:
            return None
        root.rigid = True
        return Tensor(shape, layout, parent=root, recast=True)

    def task(self, task: Task, form: Form) -> None:
        """Have the task done in this form, on inputs that are moved where they do not lie so."""
        wanted = zip(task.reads, form.reads, strict=True)
        reads = [self.in_layout(x, layout) for x, layout in wanted]
        match task.node.op:
            case Slice(starts=starts) if is_range(self.graph, task.node):
                self._slice(task, reads[0], starts[1])
            case Concat(axis=1) if len(reads) == len(task.node.inputs):
                self._concat(task.output, task.reads, reads, form.writes)
            case Concat(axis=axis):
                self._pieces(task, reads, form, axis)
            case Reshape() | Identity():
                self._reshape(task, reads[0], reads[0].layout)
            case Transpose(order=order) if same_memory(order, form.reads[0], form.writes):
                self._reshape(task, reads[0], form.writes)
            case _:
                self._run(task, form, reads)

    def _slice(self, task: Task, source: Tensor, first: int) -> None:
        if source.recast:
            source = self._copied(task.reads[0], source)
        shape = shape4(self.graph.shape(task.output))
        view = Tensor(shape, source.layout, parent=source, first=first)
        self.there[task.output] = [view]

    def _concat(
        self, output: str, names: Sequence[str], reads: Sequence[Tensor], layout: Layout
    ) -> Tensor:
        whole, first = self.new(output, layout), 0
        moves: list[Move] = []
        for name, source in zip(names, reads, strict=True):
            root = source.root
            free = not (root.rigid or root.given or root.twins)
            if source is root and free and root is not whole:
                whole.widen(source.halo)
                source.parent, source.first, source.halo = whole, first, NO_HALO
            else:
                part = Tensor(source.shape, layout, parent=whole, first=first)
                moves.append(Move(name, source, part, joins=False))
            first += source.shape[1]
        if moves:
            moves[-1].joins = True
        self.work += moves
        return whole

    def _pieces(self, task: Task, reads: list[Tensor], form: Form, axis: int) -> None:
        """A concatenation along another axis than that of channels, or with constant parts."""
        whole, start, left = self.new(task.output, form.writes), 0, list(reads)
        for name in task.node.inputs:
            source = None if name in self.graph.constants else left.pop(0)
            self.work.append(Piece(task, form, name, source, whole, axis, start))
            start += self.graph.shape(name)[axis]

    def _reshape(self, task: Task, source: Tensor, layout: Layout) -> None:
        """The output is the source's memory, seen otherwise."""
        shape = shape4(self.graph.shape(task.output))
        if (shape, layout) == (source.shape, source.layout):
            self.there[task.output] = [source]
            return
        view = self.recast(source, shape, layout)
        if view is None:
            view = self.recast(self._copied(task.reads[0], source), shape, layout)
        assert view
        self.there[task.output] = [view]

    def _run(self, task: Task, form: Form, reads: list[Tensor]) -> None:
        picked: list[Tensor] = []
        if isinstance(task.node.op, Conv):
            parts = reads[: task.parts]
            if len(parts) > 1 and source_layout(form) != NHWC:
                parts = [self._joined(task, parts, form)]
            parts = self._padded(task, parts)
            picked = parts if len(parts) > 1 else []
            reads = [parts[0], *reads[task.parts :]]
        dst = self.new(task.output, form.writes)
        behind = self._taken(reads[0]) if form.rows else None
        self.work.append(Run(task, form, reads, dst, picked, behind))

    def _taken(self, tensor: Tensor) -> Run | None:
        """The run that alone computes a tensor, taken off the work; None if there is none."""
        for i, item in enumerate(self.work):
            if isinstance(item, Run) and item.dst is tensor and not item.behind:
                del self.work[i]
                return item
        return None

    def _joined(self, task: Task, parts: list[Tensor], form: Form) -> Tensor:
        """The parts of a convolution's input put together, once for all who read them."""
        name, layout = task.node.inputs[0], source_layout(form)
        there = {tensor.layout for tensor in self.there.get(name, [])}
        if not there & {layout, form.reads[0]}:
            self._concat(name, task.reads[: task.parts], parts, form.reads[0])
        return self.in_layout(name, layout)

    def _padded(self, task: Task, parts: list[Tensor]) -> list[Tensor]:
        """The parts of a convolution's input with room for its padding, and of equal strides."""
        padding = conv_problem(self.graph, task.node).padding
        for i, part in enumerate(parts):
            if not part.widen(padding) or (len(parts) > 1 and part.root.rigid):
                parts[i] = self._copied(task.reads[i], part)
                parts[i].widen(padding)
            if i:
                parts[0].twin(parts[i])
        return parts

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

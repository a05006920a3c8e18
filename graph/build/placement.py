"""Decides in which buffer each tensor of a network lies, and which tensors are copied.

A tensor is a view if it is a range of another tensor's channels, or another shape of its memory.
The halo of a buffer is as wide as the widest that a reader needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastrun.graph.core.grid import Grid
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import (
    Attention,
    Concat,
    Conv,
    Identity,
    Numpy,
    Reshape,
    Slice,
    Transpose,
)
from fastrun.graph.core.precision import byte_grid
from fastrun.graph.core.problems import conv_problem
from fastrun.graph.core.shapes import Shape4, is_range, same_memory, shape4
from fastrun.graph.plan.form import Form, source_layout
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.dtype import U8
from fastrun.kernels.core.layout import NHWC, Halo, Layout, Placement

NO_HALO: Halo = (0, 0, 0, 0)


@dataclass(eq=False)
class Placed:
    """A tensor in one layout: a buffer of its own, or a view of another one.

    A view is a range of the parent's channels, from `first` on, or the parent's memory in another
    shape (`recast`). Recasting needs a buffer without gaps, so the root becomes `rigid`: it gets
    no halo. If one kernel gathers channels from several tensors, their roots are `twins`: they
    have equal strides. `given` marks the inputs of the network. Bytes lie
    on a `grid`.
    """

    shape: Shape4
    layout: Layout
    grid: Grid | None = None
    parent: Placed | None = None
    first: int = 0
    recast: bool = False
    rigid: bool = False
    halo: Halo = NO_HALO
    given: bool = False
    number: int = -1
    twins: list[Placed] = field(default_factory=list)

    @property
    def root(self) -> Placed:
        """The tensor whose buffer this one lies in."""
        return self.parent.root if self.parent else self

    @property
    def placement(self) -> Placement:
        """Where it lies in the root's buffer; final when all tasks are placed."""
        if self.parent is None:
            room = max(tensor.shape[1] for tensor in self.family)
            whole = room if room > self.shape[1] else 0
            return Placement(self.layout, *self.shape, self.halo, whole, zero=self._zero)
        if self.recast:
            return Placement(self.layout, *self.shape, zero=self._zero)
        return self.parent.placement.part(self.first, self.shape[1])

    @property
    def _zero(self) -> int:
        return int(self.grid.zero) if self.grid else 0

    @property
    def family(self) -> list[Placed]:
        """The root and its twins."""
        return self.root.twins or [self.root]

    def widen(self, halo: Halo) -> bool:
        """Make the root's halo at least this wide. Returns whether that is possible."""
        if self.root.rigid:
            return halo == NO_HALO
        for tensor in self.family:
            tensor.halo = tuple(map(max, tensor.halo, halo))  # type: ignore[assignment]
        return True

    def twin(self, other: Placed) -> None:
        """Give both roots the same strides; neither may be rigid."""
        family = [*dict.fromkeys([*self.family, *other.family])]
        halo = tuple(map(max, self.root.halo, other.root.halo))
        for tensor in family:
            tensor.twins, tensor.halo = family, halo  # type: ignore[assignment]


@dataclass
class Move:
    """Copy one tensor into another, in its layout, element type and grid.

    Without `joins` the next item does not depend on the copy and may begin before it ends.
    """

    name: str
    src: Placed
    dst: Placed
    joins: bool = True


@dataclass
class Compute:
    """Run the kernel of a task.

    If its input is several tensors, they are `gathered` and `reads` has the first of them. With
    `behind`, the kernel also does that task, whose result only this one reads.
    """

    task: Task
    form: Form
    reads: list[Placed]
    dst: Placed
    gathered: Sequence[Placed] = ()
    behind: Compute | None = None


@dataclass
class Piece:
    """Copy an input of a concatenation, or a constant (no `src`), into the result from `start`."""

    task: Task
    form: Form
    name: str
    src: Placed | None
    dst: Placed
    axis: int
    start: int


@dataclass
class Calculate:
    """Let NumPy compute a node from tensors in the arena and from others, which are not in it.

    `reads` and `results` have those in the arena, by name.
    """

    task: Task
    form: Form
    reads: dict[str, Placed]
    results: dict[str, Placed]


@dataclass
class Placer:
    """Places the tensors of a network, task by task.

    `there` has each tensor by name, once for every layout in which it exists so far. `work` has
    the copies and kernels so far, in their order.
    """

    graph: Graph
    there: dict[str, list[Placed]] = field(default_factory=dict)
    work: list[Move | Compute | Piece | Calculate] = field(default_factory=list)

    def new(self, name: str, layout: Layout, given: bool = False) -> Placed:
        """A tensor in a buffer of its own."""
        tensor = self._placed(name, layout, given)
        self.there.setdefault(name, []).append(tensor)
        return tensor

    def _placed(self, name: str, layout: Layout, given: bool = False) -> Placed:
        grid = byte_grid(self.graph, name) if layout.dtype is U8 else None
        return Placed(shape4(self.graph.shape(name)), layout, grid, given=given)

    def in_layout(self, name: str, layout: Layout) -> Placed:
        """The tensor in this layout; a move to it is added if there is none yet."""
        for tensor in self.there[name]:
            if tensor.layout == layout:
                return tensor
        # A tensor of the same type if there is one, else the one that was computed.
        source = min(self.there[name], key=lambda x: x.layout.dtype is not layout.dtype)
        if _alike(source, layout):
            view = self.recast(source, source.shape, layout)
            if view:
                self.there[name].append(view)
                return view
        moved = self.new(name, layout)
        self.work.append(Move(name, source, moved))
        return moved

    def recast(self, source: Placed, shape: Shape4, layout: Layout) -> Placed | None:
        """A view of the memory in another shape; None if it has gaps or other tensors' channels."""
        root = source.root
        direct = source is root or source.recast
        if not direct or root.halo != NO_HALO or root.twins:
            return None
        root.rigid = True
        return Placed(shape, layout, source.grid, parent=root, recast=True)

    def task(self, task: Task, form: Form) -> None:
        """Add the work of a task in this form, and the moves of inputs in other layouts."""
        wanted = zip(task.reads, form.reads, strict=True)
        reads = [self.in_layout(x, layout) for x, layout in wanted]
        match task.node.op:
            case Numpy():
                written = filter(self.graph.is_native, task.node.outputs)
                results = {x: self.new(x, form.writes) for x in written}
                named = dict(zip(task.reads, reads, strict=True))
                self.work.append(Calculate(task, form, named, results))
            case Slice(starts=starts) if is_range(self.graph, task.node):
                self._slice(task, form, reads[0], starts[1])
            case Concat(axis=1) if len(reads) == len(task.node.inputs):
                self._concat(task.output, task.reads, reads, form.writes)
            case Concat(axis=axis):
                self._pieces(task, reads, form, axis)
            case Reshape() | Identity():
                self._reshape(task, form, reads[0], reads[0].layout)
            case Transpose(order=order) if same_memory(order, form.reads[0], form.writes):
                self._reshape(task, form, reads[0], form.writes.of(form.reads[0].dtype))
            case _:
                self._compute(task, form, reads)

    def _found(self, task: Task, form: Form, view: Placed) -> None:
        """Let a tensor be a view of another one, or a copy if it lies on another grid."""
        name = task.output
        if view.grid == (byte_grid(self.graph, name) if form.writes.dtype is U8 else None):
            self.there[name] = [view]
        else:
            self.work.append(Move(name, view, self.new(name, form.writes)))

    def _slice(self, task: Task, form: Form, source: Placed, first: int) -> None:
        if source.recast:
            source = self._copied(task.reads[0], source)
        shape = shape4(self.graph.shape(task.output))
        view = Placed(shape, source.layout, source.grid, parent=source, first=first)
        self._found(task, form, view)

    def _concat(
        self, output: str, names: Sequence[str], reads: Sequence[Placed], layout: Layout
    ) -> Placed:
        whole, first = self.new(output, layout), 0
        moves: list[Move] = []
        for name, source in zip(names, reads, strict=True):
            root = source.root
            free = not (root.rigid or root.given or root.twins) and source.grid == whole.grid
            if source is root and free and root is not whole:
                whole.widen(source.halo)
                source.parent, source.first, source.halo = whole, first, NO_HALO
            else:
                part = Placed(source.shape, layout, whole.grid, parent=whole, first=first)
                moves.append(Move(name, source, part, joins=False))
            first += source.shape[1]
        if moves:
            moves[-1].joins = True
        self.work += moves
        return whole

    def _pieces(self, task: Task, reads: list[Placed], form: Form, axis: int) -> None:
        """A concatenation along an axis other than the channels, or one with constant parts."""
        whole, start, left = self._left(task, form), 0, list(reads)
        for name in task.node.inputs:
            source = None if name in self.graph.constants else left.pop(0)
            self.work.append(Piece(task, form, name, source, whole, axis, start))
            start += self.graph.shape(name)[axis]
        self._quantise(task, form, whole)

    def _reshape(self, task: Task, form: Form, source: Placed, layout: Layout) -> None:
        """The output is a view of the source's memory."""
        shape = shape4(self.graph.shape(task.output))
        if (shape, layout) == (source.shape, source.layout):
            self._found(task, form, source)
            return
        view = self.recast(source, shape, layout)
        if view is None:
            view = self.recast(self._copied(task.reads[0], source), shape, layout)
        assert view
        self._found(task, form, view)

    def _compute(self, task: Task, form: Form, reads: list[Placed]) -> None:
        gathered: list[Placed] = []
        if isinstance(task.node.op, Conv):
            parts = reads[: task.parts]
            # Kernels of float32 gather channels.
            if len(parts) > 1 and source_layout(form) != NHWC:
                parts = [self._joined(task, parts, form)]
            parts = self._padded(task, parts)
            gathered = parts if len(parts) > 1 else []
            reads = [parts[0], *reads[task.parts :]]
        dst = self._left(task, form)
        if isinstance(task.node.op, Attention):
            reads = [self._in_a_row(x, part) for x, part in zip(task.reads, reads, strict=True)]
            dst.root.rigid = True
        behind = self._taken(reads[0]) if form.rows else None
        self.work.append(Compute(task, form, reads, dst, gathered, behind))
        self._quantise(task, form, dst)

    def _left(self, task: Task, form: Form) -> Placed:
        """The tensor that the kernels of a task leave, which may still have to be quantised."""
        if form.leaves == form.writes:
            return self.new(task.output, form.writes)
        return self._placed(task.output, form.leaves)

    def _quantise(self, task: Task, form: Form, left: Placed) -> None:
        if form.leaves != form.writes:
            self.work.append(Move(task.output, left, self.new(task.output, form.writes)))

    def _taken(self, tensor: Placed) -> Compute | None:
        """Take the kernel that computes this tensor off the work; None if it does another too."""
        for i, item in enumerate(self.work):
            if isinstance(item, Compute) and item.dst is tensor and not item.behind:
                del self.work[i]
                return item
        return None

    def _joined(self, task: Task, parts: list[Placed], form: Form) -> Placed:
        """The input of a convolution, put together from its parts once for all readers."""
        name, layout = task.node.inputs[0], source_layout(form)
        there = {tensor.layout for tensor in self.there.get(name, [])}
        if not there & {layout, form.reads[0]}:
            self._concat(name, task.reads[: task.parts], parts, form.reads[0])
        return self.in_layout(name, layout)

    def _padded(self, task: Task, parts: list[Placed]) -> list[Placed]:
        """The parts of a convolution's input, with halos for its padding and equal strides."""
        padding = conv_problem(self.graph, task.node).padding
        for i, part in enumerate(parts):
            if not part.widen(padding) or (len(parts) > 1 and part.root.rigid):
                parts[i] = self._copied(task.reads[i], part)
                parts[i].widen(padding)
            if i:
                parts[0].twin(parts[i])
        return parts

    def _in_a_row(self, name: str, tensor: Placed) -> Placed:
        """The tensor, or a copy of it, with rows that never get a gap between them."""
        if tensor.root.halo != NO_HALO or tensor.root.twins:
            tensor = self._copied(name, tensor)
        tensor.root.rigid = True
        return tensor

    def _copied(self, name: str, source: Placed) -> Placed:
        """A copy of the tensor in a buffer of its own."""
        copy = Placed(source.shape, source.layout, source.grid)
        self.work.append(Move(name, source, copy))
        return copy


def _alike(tensor: Placed, layout: Layout) -> bool:
    """Whether the tensor's memory is the same in this layout: one pixel, and whole blocks."""
    n, c, h, w = tensor.shape
    whole = all(x.blocked == 0 or c % x.blocked == 0 for x in (tensor.layout, layout))
    same = tensor.layout.dtype is layout.dtype
    return same and h == w == 1 and (n == 1 or whole)

"""The steps of a network: a program for each task and each move, and how long each buffer lives."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastrun.graph.build import strided
from fastrun.graph.build.bands import fuse
from fastrun.graph.build.built import Built
from fastrun.graph.build.kernels import build
from fastrun.graph.build.memory import Lifetime
from fastrun.graph.build.moves import moving, piece
from fastrun.graph.build.placement import Calculate, Compute, Move, Piece, Placed, Placer
from fastrun.graph.core.lookups import Indices, indices
from fastrun.graph.core.model import Array, Node, Tensor
from fastrun.graph.core.ops import Conv
from fastrun.graph.core.work import flops
from fastrun.graph.plan.bands import partners
from fastrun.graph.plan.form import Form, layouts_text
from fastrun.graph.plan.forms import Forms
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.layout import NCHW, READ_SLACK, Placement
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import ScheduleError
from fastrun.kernels.native.cache import ObjectCache
from fastrun.kernels.ops import halo, movement

# The share of a buffer from which on its halo is kept from run to run instead of being zeroed in
# each. That takes memory: only tensors that lie alike share it.
KEPT = 0.5


@dataclass(frozen=True)
class Port:
    """Where a tensor lies, and its shape in the graph."""

    name: str
    shape: tuple[int, ...]
    buffer: int
    placement: Placement


@dataclass(frozen=True)
class Step:
    """A program and the buffers it works on, by number; None is an operand that it does not have.

    `name` is the node's name, `work` what the node does, `algorithm` the kernel that does it and
    `layouts` what the kernel reads and writes. `output` is the tensor computed. Without `joins`
    the next step may begin before this one ends. If the program gathers its input channels,
    `gathered` has for each the number of its buffer and its offset there in floats, less the
    offset of the first channel of `src`. `forms` are the forms of the tasks done, by output, with
    the algorithms that could be built. `result` is where `output` lies after a step that computes
    all of it. `flops` are the operations of the direct method, 0 for work
    other than products; `nbytes` what is read and written at least: operands, weights and result.
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
    gathered: tuple[tuple[int, int], ...] = ()
    forms: Mapping[str, Form] = field(default_factory=dict)
    result: Port | None = None
    flops: int = 0
    nbytes: int = 0

    @property
    def computes(self) -> bool:
        """Whether the step is a node's own work and does not only move data for it."""
        return self.work not in ("reorder", "halo")

    @property
    def buffers(self) -> Sequence[int]:
        """The numbers of its buffers."""
        named = (self.src, self.add, self.dst, *(buffer for buffer, _ in self.gathered))
        return [x for x in named if x is not None]

    def packed(self) -> Array:
        """The weights as the program reads them, flat; empty if it reads none."""
        given = np.zeros(0, np.float32) if self.weights is None else self.weights
        if given.dtype.itemsize > 1:
            given = given.astype(np.float32, copy=False)
        return np.ascontiguousarray(self.program.pack_weights(np.ascontiguousarray(given))).reshape(
            -1
        )


@dataclass(frozen=True)
class NumpyStep:
    """A node that NumPy computes between programs.

    `reads` has those of its operands that lie in buffers, `writes` those of its results, by name.
    Other values are arrays of any type and shape that pass from one such step to the next;
    `constants` has those that are constant, `last` names those that no later step reads.
    `tensors` describes the results as far as they are known. The other fields are those of `Step`.
    """

    name: str
    work: str
    layouts: str
    output: str
    node: Node
    reads: Mapping[str, Port]
    writes: Mapping[str, Port]
    constants: Mapping[str, Array]
    tensors: Mapping[str, Tensor]
    last: tuple[str, ...] = ()
    seconds: float = 0.0
    forms: Mapping[str, Form] = field(default_factory=dict)
    algorithm: str = "numpy"
    computes: bool = True
    flops: int = 0
    nbytes: int = 0

    @property
    def buffers(self) -> Sequence[int]:
        """The numbers of its buffers."""
        return [port.buffer for port in (*self.reads.values(), *self.writes.values())]

    @property
    def result(self) -> Port | None:
        """Where `output` lies after the step, if it is in a buffer."""
        return self.writes.get(self.output)


@dataclass(frozen=True)
class Arrangement:
    """A network as a list of steps over buffers, and its inputs and outputs in their order.

    `inputs` and `outputs` are those in buffers, `loose_inputs` and `loose_outputs` those that only
    NumPy reads or computes: arrays of any element type. The shape of a loose output may be unknown:
    None.

    `whole` are inputs that must have the model's type; `indices` says which numbers those may have
    that kernels take as indices.
    `constants` are the outputs that depend on no input, `unread` the inputs that nothing reads,
    `outside` the model's element types of the inputs and outputs that are not float32 there.
    """

    steps: tuple[Step | NumpyStep, ...]
    buffers: tuple[Lifetime, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: Mapping[str, Array]
    unread: tuple[str, ...] = ()
    outside: Mapping[str, np.dtype[Any]] = field(default_factory=dict)
    loose_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    loose_outputs: Mapping[str, Tensor | None] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    indices: Mapping[str, Indices] = field(default_factory=dict)

    @property
    def kernels(self) -> tuple[Step, ...]:
        """The steps that are programs."""
        return tuple(step for step in self.steps if isinstance(step, Step))

    @property
    def ports(self) -> Mapping[str, tuple[int, Port]]:
        """The inputs, and the tensors that a step computes whole, with the steps up to them."""
        results = ((i, step.result) for i, step in enumerate(self.steps, 1))
        found = {port.name: (i, port) for i, port in results if port}
        return {port.name: (0, port) for port in self.inputs} | found

    @property
    def ir_hash(self) -> str:
        """Thirty-two hex digits that identify the code of all steps."""
        code = "".join(step.program.ir_hash for step in self.kernels)
        return hashlib.sha256(code.encode()).hexdigest()[:32]


def arrange(forms: Forms, chosen: Mapping[str, Form], cpu: Cpu) -> Arrangement:
    """The steps of a network whose tasks run in the forms `chosen`, by output.

    Raises:
        UnsupportedError: a task has no kernel.
    """
    graph = forms.graph
    placer = Placer(graph)
    for name in filter(graph.is_native, graph.inputs):
        placer.new(name, NCHW, given=True)
    behind = partners(graph, forms.tasks)
    for task in forms.tasks:
        form = chosen[task.output]
        placer.task(task, form if task.output in behind else replace(form, rows=0))
    constants = {x: graph.constants[x] for x in graph.outputs if x in graph.constants}
    outputs = {x: placer.in_layout(x, NCHW) for x in graph.outputs if graph.is_native(x)}
    inputs = {x: placer.there[x][0] for x in graph.inputs if graph.is_native(x)}
    writer = _Writer(forms, cpu)
    zeroed = [step for tensor in inputs.values() for step in writer.zeroed(tensor)]
    if zeroed:
        zeroed[-1] = replace(zeroed[-1], joins=True)
    steps: list[Step | NumpyStep] = [*zeroed]
    for item in placer.work:
        written = item.results.values() if isinstance(item, Calculate) else [item.dst]
        for tensor in written:
            if tensor.root.number < 0:
                steps += writer.zeroed(tensor.root)
        steps += writer.steps(item)
    computed = [x for x in graph.outputs if x not in constants]
    cache = ObjectCache()
    steps = [
        replace(step, program=cache.named(step.program)) if isinstance(step, Step) else step
        for step in steps
    ]
    return Arrangement(
        tuple(_forgetting(steps, graph.outputs)),
        writer.lifetimes(steps, inputs.values(), outputs.values()),
        tuple(writer.port(x, tensor) for x, tensor in inputs.items()),
        tuple(writer.port(x, tensor) for x, tensor in outputs.items()),
        constants,
        graph.unread,
        graph.outside,
        {x: graph.tensors[x] for x in graph.inputs if x not in inputs},
        {x: graph.tensors.get(x) for x in computed if x not in outputs},
        graph.whole,
        indices(graph),
    )


def _forgetting(
    steps: Sequence[Step | NumpyStep], kept: Iterable[str]
) -> Iterable[Step | NumpyStep]:
    """The steps; those of NumPy know which values outside of buffers nothing reads after them."""
    seen = {*kept}
    found: list[Step | NumpyStep] = []
    for step in reversed(steps):
        if isinstance(step, NumpyStep):
            names = {*step.node.inputs, *step.node.outputs}
            loose = names - step.reads.keys() - step.writes.keys() - step.constants.keys() - {""}
            step = replace(step, last=tuple(sorted(loose - seen)))
            seen |= loose
        found.append(step)
    return reversed(found)


class _Writer:
    """Turns placed work into steps, and numbers the buffers in the order of their first use."""

    def __init__(self, forms: Forms, cpu: Cpu) -> None:
        self._forms, self._graph, self._cpu = forms, forms.graph, cpu
        self._roots: list[Placed] = []

    def _number(self, tensor: Placed) -> int:
        """The number of the buffer that a tensor lies in."""
        root = tensor.root
        if root.number < 0:
            root.number = len(self._roots)
            self._roots.append(root)
        return root.number

    def port(self, name: str, tensor: Placed) -> Port:
        """The port of an input or output."""
        return Port(name, self._graph.shape(name), self._number(tensor), tensor.placement)

    def zeroed(self, tensor: Placed) -> Iterable[Step]:
        """The step that zeroes a halo that is not kept. Steps that write pixels need not wait."""
        where = replace(tensor.placement, c=tensor.placement.buffer_c, whole=0)
        number = self._number(tensor)
        if any(where.halo) and not _kept(tensor):
            program = halo.build(halo.ZeroHalo(), self._cpu, where, where)
            layouts = f"{where.layout}>{where.layout}"
            yield Step("", "halo", "zero", layouts, "", program, number, None, number, joins=False)

    def steps(self, item: Move | Compute | Piece | Calculate) -> Sequence[Step | NumpyStep]:
        """One step for an item of work; two if a pair of tasks cannot be one kernel."""
        if isinstance(item, Calculate):
            return [self._calculated(item)]
        if isinstance(item, Move):
            return [self._move(item)]
        if isinstance(item, Piece):
            return [self._piece(item)]
        return self._pair(item.behind, item) if item.behind else [self._alone(item)]

    def _move(self, item: Move) -> Step:
        before, dst = item.src.placement, item.dst.placement
        kernel = moving(self._cpu, before, dst, item.src.grid, item.dst.grid)
        layouts = f"{before.layout}>{dst.layout}"
        seconds = self._forms.moving(item.src.shape, before.layout, dst.layout)
        src, number = self._number(item.src), self._number(item.dst)
        return Step(
            name=item.name,
            work="reorder",
            algorithm=kernel.algorithm,
            layouts=layouts,
            output=item.name,
            program=kernel.program,
            src=src,
            add=None,
            dst=number,
            weights=kernel.weights,
            bias=kernel.bias,
            seconds=seconds,
            joins=item.joins,
            nbytes=_bytes(before, dst),
        )

    def _piece(self, item: Piece) -> Step:
        shape, dst = self._graph.shape(item.name), item.dst
        whole = strided.view(dst.placement, self._graph.shape(item.task.output))
        part = whole.part(item.axis, item.start, shape[item.axis])
        if item.src:
            src = strided.view(item.src.placement, shape)
            kernel = piece(self._cpu, src, part, item.src.grid, dst.grid)
        else:
            value = self._graph.constants[item.name]
            value = dst.grid.stored(value) if dst.grid else value
            flat = replace(Strided.row_major(shape), dtype=part.dtype)
            program = movement.copy(self._cpu, flat, part, constant=True)
            kernel = Built(program, "copy", value)
        return Step(
            name=item.task.node.name,
            work=item.task.work,
            algorithm="copy",
            layouts=layouts_text(item.form),
            output=item.task.output,
            program=kernel.program,
            src=self._number(item.src or item.dst),
            add=None,
            dst=self._number(item.dst),
            weights=kernel.weights,
            nbytes=2 * part.dtype.bytes(math.prod(shape)),
        )

    def _calculated(self, item: Calculate) -> NumpyStep:
        node, graph = item.task.node, self._graph
        return NumpyStep(
            name=node.name,
            work=node.work,
            layouts=layouts_text(item.form),
            output=node.output,
            node=node,
            reads={x: self.port(x, tensor) for x, tensor in item.reads.items()},
            writes={x: self.port(x, tensor) for x, tensor in item.results.items()},
            constants={x: graph.constants[x] for x in node.inputs if x in graph.constants},
            tensors={x: graph.tensors[x] for x in node.outputs if x in graph.tensors},
            seconds=item.form.seconds,
            forms={node.output: item.form},
        )

    def _alone(self, item: Compute) -> Step:
        src, *others = item.reads
        step = self._computing(item, self._built(item), src, others)
        gathered: list[tuple[int, int]] = []
        for tensor in item.gathered:
            first = tensor.placement.origin - src.root.placement.origin
            gathered += [(self._number(tensor), first + c) for c in range(tensor.shape[1])]
        # A third operand lies where a table says, which holds the beginning of its buffer.
        gathered += [(self._number(tensor), 0) for tensor in others[1:] if not item.gathered]
        return replace(step, gathered=tuple(gathered))

    def _pair(self, first: Compute, second: Compute) -> list[Step]:
        """One step for two tasks, or a step for each if they cannot be one kernel."""
        kernels = self._built(first), self._built(second)
        src, *residuals = first.reads + second.reads[1:]
        dst = second.dst.placement
        io = Io(src.placement, dst, residuals[0].placement if residuals else dst)
        tasks, rows = (first.task, second.task), second.form.rows
        try:
            forms, mid = (first.form, second.form), first.dst.placement
            both = fuse(self._graph, tasks, forms, kernels, rows, self._cpu, io, mid)
        except ScheduleError:
            alone = replace(second, form=replace(second.form, rows=0), behind=None)
            return [*self.zeroed(first.dst), self._alone(first), self._alone(alone)]
        parts = list(zip((first, second), kernels, strict=True))
        return [
            replace(
                self._computing(second, both, src, residuals),
                name=", ".join(task.node.name for task in tasks),
                work=" then ".join(task.work for task in tasks),
                layouts=f"{layouts_text(first.form)}>{second.form.writes}",
                seconds=first.form.seconds + second.form.seconds,
                flops=sum(flops(self._graph, task.node) for task in tasks),
                forms={item.task.output: _as_built(item, kernel) for item, kernel in parts},
            )
        ]

    def _built(self, item: Compute) -> Built:
        task, form = item.task, item.form
        schedules = [form.algorithm]
        if isinstance(task.node.op, Conv):
            schedules += self._forms.choices(task, form)
        reads = [tensor.placement for tensor in item.reads]
        if item.gathered:
            reads[0] = item.reads[0].root.placement
        dst, gathered = item.dst.placement, bool(item.gathered)
        return build(self._graph, task, form, schedules, self._cpu, reads, dst, gathered)

    def _computing(
        self, item: Compute, kernel: Built, src: Placed, others: Sequence[Placed]
    ) -> Step:
        return Step(
            name=item.task.node.name,
            work=item.task.work,
            algorithm=kernel.algorithm,
            layouts=layouts_text(item.form),
            output=item.task.output,
            program=kernel.program,
            src=self._number(src),
            add=self._number(others[0]) if others else None,
            dst=self._number(item.dst),
            weights=kernel.weights,
            bias=kernel.bias,
            seconds=item.form.seconds,
            forms={item.task.output: _as_built(item, kernel)},
            result=self.port(item.task.output, item.dst),
            flops=sum(flops(self._graph, node) for node in item.task.nodes),
            nbytes=_bytes(src.placement, item.dst.placement, *(x.placement for x in others))
            + (0 if kernel.weights is None else kernel.weights.nbytes),
        )

    def lifetimes(
        self,
        steps: Sequence[Step | NumpyStep],
        inputs: Iterable[Placed],
        outputs: Iterable[Placed],
    ) -> tuple[Lifetime, ...]:
        """The lifetimes of all buffers, from the first step that writes each to its last reader."""
        # Inputs stay, so that a second run of the same inputs computes the same. Other numbers in
        # their place may be none that NumPy steps can compute with, or subnormal: a processor may
        # take ten times as long for these.
        spans = {self._number(x): (0, len(steps)) for x in inputs}
        for i, step in enumerate(steps):
            for x in step.buffers:
                first, last = spans.get(x, (i, i))
                spans[x] = first, max(last, i)
        for x in map(self._number, outputs):
            spans[x] = spans[x][0], len(steps)
        places = [root.placement for root in self._roots]
        sizes = [place.dtype.bytes(place.size + READ_SLACK) for place in places]
        kept = [place if _kept(root) else None
                for root, place in zip(self._roots, places, strict=True)]  # fmt: skip
        return tuple(Lifetime(size, *spans[x], kept[x]) for x, size in enumerate(sizes))


def _kept(tensor: Placed) -> bool:
    """Whether the halo of a tensor stays zero from run to run.

    Memory begins with zeros. That of the network's inputs may be the caller's.
    """
    where = tensor.placement
    pixels = where.h * where.w
    whole = where.block_stride // where.x_stride
    return any(where.halo) and not (tensor.given or where.zero) and whole - pixels > KEPT * whole


def _bytes(*places: Placement) -> int:
    """The bytes of tensors, without halos."""
    return sum(x.dtype.bytes(x.n * x.c * x.h * x.w) for x in places)


def _as_built(item: Compute, kernel: Built) -> Form:
    """The form with the schedule that could be built."""
    conv = isinstance(item.task.node.op, Conv)
    return replace(item.form, algorithm=kernel.algorithm) if conv else item.form

"""Decides in which layouts and by what each task can run, and how long that should take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import (
    Affine,
    Binary,
    ChannelShuffle,
    Clip,
    Concat,
    Conv,
    Gemm,
    Identity,
    Pad,
    Pool,
    Reduce,
    Reshape,
    Resize,
    Slice,
    Transpose,
    Unary,
)
from fastrun.graph.core.problems import conv_problem
from fastrun.graph.core.shapes import Shape4, is_range, same_memory, shape4
from fastrun.graph.plan.choices import Choice, Choose
from fastrun.graph.plan.kinds import is_dense, is_global_pool, is_spatial
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import NCHW, NHWC, Layout, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule

# Guesses for work that only moves data.
STREAMING = 15e9  # bytes per second, read and written, with their order kept
REORDERING = 8e9  # the same, with their order changed
STEP = 1e-6  # seconds of a barrier, which every step has


@dataclass(frozen=True)
class Form:
    """One way to run a task: the layouts it reads and writes, what runs, expected seconds.

    `algorithm` is the text of a convolution's schedule, or the name of another operator. If
    `rows` is not 0, the task runs in one kernel with the convolution it reads, `rows` rows at a
    time.
    """

    reads: tuple[Layout, ...]
    writes: Layout
    algorithm: str
    seconds: float
    rows: int = 0


def layouts_text(form: Form) -> str:
    """`NCHW,NHWC>NHWC`: what a form reads and writes."""
    return f"{','.join(map(str, form.reads))}>{form.writes}"


def source_layout(form: Form) -> Layout:
    """The layout that a convolution's kernel reads. Parts of its input may lie in another one."""
    _, schedule = parse_schedule(form.algorithm)
    return layout_pair(schedule.layout)[0]


# Seconds that moving a tensor of this shape from one layout to another takes.
MoveCost = Callable[[Shape4, Layout, Layout], float]


def _guessed_move(shape: Shape4, src: Layout, dst: Layout) -> float:
    return STEP + 2 * F32.bytes(math.prod(shape)) / REORDERING


def _guessed_stream(size: int) -> float:
    return STEP + size / STREAMING


@dataclass(frozen=True)
class Costs:
    """Seconds of work that only moves data; by default guesses.

    `move` moves a tensor to another layout, `stream` reads and writes a number of bytes in all.
    """

    move: MoveCost = _guessed_move
    stream: Callable[[int], float] = _guessed_stream


GUESSED = Costs()


class Forms:
    """The forms of a network's tasks.

    `choose` is called once for each distinct problem. Layouts with blocks are considered only if
    a convolution uses them.
    """

    def __init__(
        self, graph: Graph, tasks: Sequence[Task], choose: Choose, costs: Costs = GUESSED
    ) -> None:
        self.graph, self.tasks, self._costs = graph, tasks, costs
        self._choices: dict[ConvProblem, list[Choice]] = {}
        for task in tasks:
            if isinstance(task.node.op, Conv):
                problem = conv_problem(graph, task.node)
                if problem not in self._choices:
                    self._choices[problem] = sorted(choose(problem), key=lambda c: c.seconds)
        found = {x for cs in self._choices.values() for c in cs for x in (c.src, c.dst)}
        self.layouts = (NCHW, NHWC, *sorted(found - {NCHW, NHWC}, key=str))

    def choices(self, task: Task, src: Layout, dst: Layout) -> list[str]:
        """The schedules of a convolution that read and write these layouts, fastest first."""
        choices = self._choices[conv_problem(self.graph, task.node)]
        return [c.schedule for c in choices if (c.src, c.dst) == (src, dst)]

    def moving(self, shape: Shape4, src: Layout, dst: Layout) -> float:
        """Seconds that moving a tensor from one layout to another should take."""
        return self._costs.move(shape, src, dst)

    def of(self, task: Task) -> list[Form]:
        """All forms of a task, at least one.

        Raises:
            UnsupportedError: there is no kernel for this operator or this use of it.
        """
        found = self.possible(task)
        if not found:
            raise UnsupportedError(
                f"node {task.node.label} cannot be run: there is no kernel for its operands"
            )
        return found

    def possible(self, task: Task) -> list[Form]:
        """All forms of a task; there may be none."""
        op, name = task.node.op, task.node.work
        streaming = self._costs.stream(sum(map(self._bytes, (*task.reads, task.output))))

        def alike(layouts: Sequence[Layout], seconds: float = streaming) -> list[Form]:
            return [Form((x,) * len(task.reads), x, name, seconds) for x in layouts]

        plain = (NCHW, NHWC)

        def across(seconds: float) -> list[Form]:
            """Every plain layout for reading, with every plain layout for writing."""
            shape = shape4(self.graph.shape(task.output))
            return [
                Form((x,) * len(task.reads), y, name, seconds + (x != y) * self.moving(shape, x, y))
                for x in plain
                for y in plain
            ]

        match op:
            case Conv():
                return self._convolutions(task)
            case Transpose(order=order):
                moved = across(2 * streaming)
                return [
                    replace(f, seconds=0.0) if same_memory(order, f.reads[0], f.writes) else f
                    for f in moved
                ]
            case Gemm() if is_dense(self.graph, task):
                return [
                    Form((x,), NCHW, name, self._costs.stream(self._weight_bytes(task)))
                    for x in self.layouts
                    if self._whole_blocks(task.reads[0], x)
                ]
            case Reduce() if not is_global_pool(self.graph, task):
                return across(2 * streaming)
            case Pool() | Reduce() | Unary() | Clip() | Affine():
                return alike(self.layouts)
            case Binary():
                return alike(self._broadcastable(task))
            case ChannelShuffle() if len(task.reads) == 2:
                return alike([NHWC], 2 * streaming)
            case Concat():
                return alike(self._concatenable(task, op.axis), STEP)
            case Slice() if is_range(self.graph, task.node):
                return alike(self._aligned([op.starts[1]]), 0.0)
            case Resize() | Pad() if is_spatial(op):
                blocked = [x for x in self.layouts if x.blocked]
                return across(2 * streaming) + alike(blocked, 2 * streaming)
            case Identity() | Reshape():
                same = shape4(self.graph.shape(task.reads[0])) == shape4(
                    self.graph.shape(task.output)
                )
                return alike(self.layouts if same else [NCHW], 0.0)
        return across(2 * streaming)

    def _convolutions(self, task: Task) -> list[Form]:
        """The fastest choice for each pair of layouts."""
        found: dict[tuple[Layout, Layout], Form] = {}
        for choice in self._choices[conv_problem(self.graph, task.node)]:
            gathers = task.parts > 1 and choice.src == NHWC
            if gathers and not parse_schedule(choice.schedule)[0].gathers:
                continue
            if (choice.src, choice.dst) not in found:
                found[choice.src, choice.dst] = self.convolution(task, choice)
        return list(found.values())

    def convolution(self, task: Task, choice: Choice) -> Form:
        """The form of a convolution that runs by this choice.

        In NHWC a kernel gathers the channels of its input from the parts. In other layouts the
        parts are put together first: in NHWC, if a part would begin inside a block of the whole.
        """
        src, dst = choice.src, choice.dst
        name, residual = task.node.inputs[0], len(task.reads) - task.parts
        part = src if src in self._together(task.reads[: task.parts]) else NHWC
        seconds = choice.seconds
        if task.parts > 1 and src != NHWC:
            seconds += self._costs.stream(2 * self._bytes(name))
        if part != src:
            seconds += self._costs.move(shape4(self.graph.shape(name)), part, src)
        reads = (*[part] * task.parts, *[dst] * residual)
        return Form(reads, dst, choice.schedule, seconds)

    def _aligned(self, starts: Sequence[int]) -> list[Layout]:
        """The layouts in which ranges of channels may begin at `starts`."""
        return [x for x in self.layouts if not x.blocked or not any(s % x.blocked for s in starts)]

    def _broadcastable(self, task: Task) -> Sequence[Layout]:
        """All layouts, or only the plain ones if an operand broadcasts along the channels."""
        shape = self.graph.shape(task.output)
        mine = [self.graph.shape(x) for x in task.reads]
        plain = [x for x in self.layouts if not x.blocked]
        if any(x != shape and (len(x) != len(shape) or len(x) > 4) for x in mine):
            return plain
        constants = [self.graph.shape(x) for x in task.node.inputs if x in self.graph.constants]
        if any(len(x) > 4 and max(x[2:]) > 1 for x in constants):
            return plain
        return self.layouts if all(shape4(x)[1] == shape4(shape)[1] for x in mine) else plain

    def _concatenable(self, task: Task, axis: int) -> Sequence[Layout]:
        """The layouts in which parts along an axis can be put together.

        Parts along the channels are views in every layout; other parts are strided copies.
        """
        if axis != 1 or len(task.reads) != len(task.node.inputs):
            return [x for x in self.layouts if not x.blocked]
        return self._together(task.reads)

    def _together(self, names: Sequence[str]) -> list[Layout]:
        """The layouts in which these tensors can be ranges of one tensor's channels."""
        sizes = [shape4(self.graph.shape(x))[1] for x in names]
        return self._aligned(list(accumulate(sizes, initial=0))[:-1])

    def _whole_blocks(self, name: str, layout: Layout) -> bool:
        return not layout.blocked or shape4(self.graph.shape(name))[1] % layout.blocked == 0

    def _bytes(self, name: str) -> int:
        return self.graph.tensor(name).nbytes

    def _weight_bytes(self, task: Task) -> int:
        constants = self.graph.constants
        return sum(constants[x].nbytes for x in task.node.inputs if x in constants)

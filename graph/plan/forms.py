"""In which layouts each task can be run, by what, and how long that should take."""

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
from fastrun.kernels.core.layout import NCHW, NHWC, Layout, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule

# Guesses of the bytes per second that are read and written: with the order kept, and with it
# changed. A step costs at least its barrier.
STREAMING, REORDERING, STEP = 15e9, 8e9, 1e-6


@dataclass(frozen=True)
class Form:
    """One way to run a task: the layouts it reads and writes, what runs, expected seconds.

    `algorithm` is a schedule's text for a convolution and the operator's name for the rest. With
    `rows` the task runs behind the convolution it reads, in one kernel, so many rows at a time.
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
    """The layout that a convolution's kernel reads, which parts of its input need not have."""
    _, schedule = parse_schedule(form.algorithm)
    return layout_pair(schedule.layout)[0]


# Seconds to bring a tensor of this shape from one layout into another.
MoveCost = Callable[[Shape4, Layout, Layout], float]


def _guessed_move(shape: Shape4, src: Layout, dst: Layout) -> float:
    return STEP + 8 * math.prod(shape) / REORDERING


def _guessed_stream(size: int) -> float:
    return STEP + size / STREAMING


@dataclass(frozen=True)
class Costs:
    """Seconds of work that only moves data; guesses, until somebody has measured.

    `move` brings a tensor into another layout, `stream` reads and writes so many bytes in all.
    """

    move: MoveCost = _guessed_move
    stream: Callable[[int], float] = _guessed_stream


GUESSED = Costs()


class Forms:
    """The forms of a network's tasks.

    `choose` is asked once per distinct problem. Layouts that no convolution uses are not
    considered anywhere.
    """

    def __init__(
        self, graph: Graph, tasks: Sequence[Task], choose: Choose, costs: Costs = GUESSED
    ) -> None:
        self.graph, self._costs = graph, costs
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
        """Seconds that bringing a tensor from one layout into another should take."""
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
        """All forms of a task, if there are any."""
        op, name = task.node.op, task.node.work
        values = sum(self._values(x) for x in (*task.reads, task.output))
        streaming = self._costs.stream(4 * values)

        def alike(layouts: Sequence[Layout], seconds: float = streaming) -> list[Form]:
            return [Form((x,) * len(task.reads), x, name, seconds) for x in layouts]

        plain = (NCHW, NHWC)

        def across(seconds: float) -> list[Form]:
            """Any of the plain layouts for what is read, any for what is written."""
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
                    Form((x,), NCHW, name, self._costs.stream(4 * self._weights(task)))
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
            picks = task.parts > 1 and choice.src == NHWC
            if picks and not parse_schedule(choice.schedule)[0].picks:
                continue
            if (choice.src, choice.dst) not in found:
                found[choice.src, choice.dst] = self.convolution(task, choice)
        return list(found.values())

    def convolution(self, task: Task, choice: Choice) -> Form:
        """The form of a convolution that runs by this choice.

        Parts of an input are picked from in NHWC; for other layouts they are put together first,
        in NHWC where channel blocks of theirs would not begin at blocks of the whole.
        """
        src, dst = choice.src, choice.dst
        name, residual = task.node.inputs[0], len(task.reads) - task.parts
        part = src if src in self._together(task.reads[: task.parts]) else NHWC
        seconds = choice.seconds
        if task.parts > 1 and src != NHWC:
            seconds += self._costs.stream(8 * self._values(name))
        if part != src:
            seconds += self._costs.move(shape4(self.graph.shape(name)), part, src)
        reads = (*[part] * task.parts, *[dst] * residual)
        return Form(reads, dst, choice.schedule, seconds)

    def _aligned(self, starts: Sequence[int]) -> list[Layout]:
        """The layouts in which ranges of channels may begin at `starts`."""
        return [x for x in self.layouts if not x.blocked or not any(s % x.blocked for s in starts)]

    def _broadcastable(self, task: Task) -> Sequence[Layout]:
        """Channels may lie in blocks where no operand has one channel for all of them."""
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
        """Ranges of channels are parts in every layout; any other part is a strided copy."""
        if axis != 1 or len(task.reads) != len(task.node.inputs):
            return [x for x in self.layouts if not x.blocked]
        return self._together(task.reads)

    def _together(self, names: Sequence[str]) -> list[Layout]:
        """The layouts in which these tensors can be ranges of channels of one."""
        sizes = [shape4(self.graph.shape(x))[1] for x in names]
        return self._aligned(list(accumulate(sizes, initial=0))[:-1])

    def _whole_blocks(self, name: str, layout: Layout) -> bool:
        return not layout.blocked or shape4(self.graph.shape(name))[1] % layout.blocked == 0

    def _values(self, name: str) -> int:
        n, c, h, w = shape4(self.graph.shape(name))
        return n * c * h * w

    def _weights(self, task: Task) -> int:
        return sum(
            self.graph.constants[x].size
            for x in task.node.inputs
            if x not in task.reads and x in self.graph.constants
        )

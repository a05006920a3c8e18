"""In which layouts each task can be run, by what, and how long that should take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from graph.choices import Choice, Choose
from graph.errors import UnsupportedError
from graph.model import Graph
from graph.ops import (
    Affine,
    Binary,
    ChannelShuffle,
    Clip,
    Concat,
    Conv,
    Gemm,
    Identity,
    Pool,
    Reduce,
    Reshape,
    Slice,
    Softmax,
    Unary,
)
from graph.problems import conv_problem
from graph.tasks import Shape4, Task, shape4
from kernels.core.layout import NCHW, NHWC, Layout
from kernels.core.problem import ConvProblem

# Bytes per second of work that is all moving: with the order kept, and with it changed. Beside
# convolutions these matter little; a step costs at least its barrier.
STREAMING, REORDERING, STEP = 15e9, 8e9, 1e-6


@dataclass(frozen=True)
class Form:
    """One way to run a task: the layouts it reads and writes, what runs, expected seconds.

    `algorithm` is a schedule's text for a convolution and the operator's name for the rest.
    """

    reads: tuple[Layout, ...]
    writes: Layout
    algorithm: str
    seconds: float


# What it costs to bring a tensor of this shape from one layout into another.
MoveCost = Callable[[Shape4, Layout, Layout], float]


def move_seconds(shape: Shape4, src: Layout, dst: Layout) -> float:
    """A guess by bandwidth; single pixels lie alike in every layout."""
    n, c, h, w = shape
    return 0.0 if h == w == 1 else STEP + 8 * n * c * h * w / REORDERING


class Forms:
    """The forms of a network's tasks.

    `choose` is asked once per distinct problem. Layouts that no convolution uses are not
    considered anywhere.
    """

    def __init__(self, graph: Graph, tasks: Sequence[Task], choose: Choose) -> None:
        self.graph = graph
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

    def of(self, task: Task) -> list[Form]:
        """All forms of a task, at least one.

        Raises:
            UnsupportedError: there is no kernel for this operator or this use of it.
        """
        found = self._of(task)
        if not found:
            raise UnsupportedError(
                f"node {task.node.label} cannot be run: there is no kernel for its operands"
            )
        return found

    def _of(self, task: Task) -> list[Form]:
        op, name = task.node.op, task.node.work
        values = sum(self._values(x) for x in (*task.reads, task.output))
        streaming = STEP + 4 * values / STREAMING

        def alike(layouts: Sequence[Layout], seconds: float = streaming) -> list[Form]:
            return [Form((x,) * len(task.reads), x, name, seconds) for x in layouts]

        match op:
            case Conv():
                return self._convolutions(task)
            case Gemm():
                return [
                    Form((x,), NCHW, name, STEP + 4 * self._weights(task) / STREAMING)
                    for x in self.layouts
                    if len(task.reads) == 1 and self._whole_blocks(task.reads[0], x)
                ]
            case Reduce(axes=axes):
                rank = len(self.graph.shape(task.reads[0]))
                windows = op.function in ("mean", "max") and axes == tuple(range(2, rank))
                return alike(self.layouts if windows and rank in (3, 4) else [])
            case Pool() | Unary() | Clip():
                return alike(self.layouts)
            case Affine():
                return alike([NCHW, NHWC])
            case Binary():
                return alike(self._broadcastable(task))
            case ChannelShuffle():
                return alike([NHWC] if len(task.reads) == 2 else [NCHW], 2 * streaming)
            case Concat(axis=1):
                sizes = [shape4(self.graph.shape(x))[1] for x in task.node.inputs]
                return alike(self._aligned(list(accumulate(sizes, initial=0))[:-1]), STEP)
            case Slice(starts=starts, steps=steps):
                shape, out = self.graph.shape(task.reads[0]), self.graph.shape(task.output)
                others = [a == b for a, b in zip(shape, out, strict=True)]
                whole = all(others[:1] + others[2:]) and steps[1:2] == (1,)
                return alike(self._aligned([starts[1]]) if whole else [], 0.0)
            case Softmax(axis=1, log=False):
                pixels = shape4(self.graph.shape(task.output))[2:]
                return alike([NCHW] if pixels == (1, 1) else [])
            case Identity() | Reshape():
                same = shape4(self.graph.shape(task.reads[0])) == shape4(
                    self.graph.shape(task.output)
                )
                return alike(self.layouts if same else [NCHW], 0.0)
        return []

    def _convolutions(self, task: Task) -> list[Form]:
        fastest: dict[tuple[Layout, Layout], Choice] = {}
        for choice in self._choices[conv_problem(self.graph, task.node)]:
            fastest.setdefault((choice.src, choice.dst), choice)
        residual = len(task.reads) - 1
        return [
            Form((src, *[dst] * residual), dst, choice.schedule, choice.seconds)
            for (src, dst), choice in fastest.items()
        ]

    def _aligned(self, starts: Sequence[int]) -> list[Layout]:
        """The layouts in which ranges of channels may begin at `starts`."""
        return [x for x in self.layouts if not x.blocked or not any(s % x.blocked for s in starts)]

    def _broadcastable(self, task: Task) -> Sequence[Layout]:
        """Where an operand has one channel for all, channels must not lie in padded blocks."""
        shape = self.graph.shape(task.output)
        mine = [self.graph.shape(x) for x in task.reads]
        if any(x != shape and (len(x) != len(shape) or len(x) > 4) for x in mine):
            return []
        if all(shape4(x)[1] == shape4(shape)[1] for x in mine):
            return self.layouts
        return [x for x in self.layouts if not x.blocked]

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

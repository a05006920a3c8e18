"""A form: one way to run a task. And what moving data costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from fastrun.graph.core.model import Graph
from fastrun.graph.core.problems import conv_problem
from fastrun.graph.core.shapes import Shape4
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.dtype import BY_NAME, F32, U8
from fastrun.kernels.core.layout import Layout, layout_pair
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.registry import parse_schedule

# Guesses for work that only moves data.
STREAMING = 15e9  # bytes per second, read and written, with their order kept
REORDERING = 8e9  # the same, with their order changed
PASSING = 100e9  # bytes per second from one core to L3 and on to the reader
STEP = 1e-6  # seconds of a barrier, which every step has
# Guesses for NumPy, between kernels.
NUMPY_CALL = 50e-6  # seconds of a call, copies included
NUMPY_STREAMING = 1e9  # bytes per second


@dataclass(frozen=True)
class Form:
    """One way to run a task: the layouts it reads and writes, what runs, expected seconds.

    `algorithm` is the text of a schedule, or the name of an operator without. `types`
    are those of the kernel: "" for float32, for convolutions and dense layers those of their
    problem, "u8" for other operators on bytes. If a kernel of float32 leaves a tensor that the
    task `writes` in u8, it is quantised behind it. If `rows` is not 0, the task runs in one kernel
    with the convolution it reads, `rows` rows at a time.
    """

    reads: tuple[Layout, ...]
    writes: Layout
    algorithm: str
    seconds: float
    rows: int = 0
    types: str = ""

    @property
    def leaves(self) -> Layout:
        """The layout in which the kernel leaves the result, before it is quantised."""
        return self.writes.of(BY_NAME.get(self.types.rpartition(">")[2], F32))

    @property
    def integers(self) -> bool:
        """Whether it is a convolution of integers."""
        return self.types.startswith("u8s")

    @property
    def touches_bytes(self) -> bool:
        """Whether it reads or writes bytes."""
        return U8 in {layout.dtype for layout in (*self.reads, self.writes)}


def layouts_text(form: Form) -> str:
    """`NCHW,NHWC>NHWC`: what a form reads and writes."""
    return f"{','.join(map(str, form.reads))}>{form.writes}"


def source_layout(form: Form) -> Layout:
    """The layout that a convolution's kernel reads. Parts of its input may lie in another one."""
    _, schedule = parse_schedule(form.algorithm)
    return layout_pair(schedule.layout)[0].of(form.reads[0].dtype)


def typed_problem(graph: Graph, task: Task, form: Form) -> ConvProblem:
    """The problem that a convolution computes in a form."""
    return replace(conv_problem(graph, task.node), types=form.types)


# Seconds that moving a tensor of this shape from one layout to another takes.
MoveCost = Callable[[Shape4, Layout, Layout], float]


def _guessed_move(shape: Shape4, src: Layout, dst: Layout) -> float:
    size = math.prod(shape)
    return STEP + (src.dtype.bytes(size) + dst.dtype.bytes(size)) / REORDERING


def _guessed_stream(size: int) -> float:
    return STEP + size / STREAMING


@dataclass(frozen=True)
class Costs:
    """Seconds of work that only moves data; by default guesses.

    `move` moves a tensor to another layout, `stream` reads and writes a number of bytes in all.
    `passing` is the bytes per second at which a result that leaves L2 goes to its reader through L3
    or to another core; a result larger than L3 takes longer.
    """

    move: MoveCost = _guessed_move
    stream: Callable[[int], float] = _guessed_stream
    passing: float = PASSING


GUESSED = Costs()

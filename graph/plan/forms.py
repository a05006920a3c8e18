"""Decides in which layouts and by what each task can run, and how long that should take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from fastrun.graph.core.errors import UnsupportedError
from fastrun.graph.core.model import Graph
from fastrun.graph.core.ops import (
    Affine,
    Attention,
    Binary,
    ByteFunction,
    ChannelShuffle,
    Clip,
    Concat,
    Conv,
    DepthwiseVolume,
    Gather,
    GatherElements,
    GatherND,
    Gemm,
    GridSample,
    GroupNorm,
    Identity,
    LayerNorm,
    Numpy,
    Pad,
    Pool,
    Recurrent,
    Reduce,
    Reshape,
    Resize,
    Rotary,
    Slice,
    Transpose,
    Unary,
    Where,
)
from fastrun.graph.core.precision import byte_grid, exact_grid
from fastrun.graph.core.problems import attention_problem, conv_problems
from fastrun.graph.core.shapes import Shape4, same_memory, shape4
from fastrun.graph.plan.byte_kernels import ByteKernel, byte_kernels
from fastrun.graph.plan.choices import Choice, Choose
from fastrun.graph.plan.form import (
    GUESSED,
    NUMPY_CALL,
    NUMPY_STREAMING,
    STEP,
    Costs,
    Form,
    source_layout,
    typed_problem,
)
from fastrun.graph.plan.kinds import is_dense, is_global_pool, is_lookup, is_spatial, is_view
from fastrun.graph.plan.tasks import Task
from fastrun.kernels.core.attention import Problem
from fastrun.kernels.core.dtype import F16, F32, U8
from fastrun.kernels.core.layout import NCHW, NHWC, Layout
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.rounding import Roundings, no_rounding
from fastrun.kernels.core.types import Types
from fastrun.kernels.registry import parse_schedule

# Time of volumes in NHWC, as a multiple of that in blocks, where vectors begin inside cache lines
# (Intel Xeon with AMX).
_RAGGED = 1.4


@dataclass(frozen=True)
class Offers:
    """What may run tasks that have schedules or weights.

    `choose` is called once for each distinct problem. `rounded` says for a convolution of float32,
    or a dense or recurrent layer seen as one, as which types it may also run. With `several` a
    convolution has all choices for its layouts, not only the fastest.
    """

    choose: Choose
    rounded: Roundings = no_rounding
    several: bool = False


class Forms:
    """The forms of a network's tasks.

    Layouts with blocks are considered only if a convolution may use them, or a `planned` form does.
    """

    def __init__(
        self,
        graph: Graph,
        tasks: Sequence[Task],
        offers: Offers,
        costs: Costs = GUESSED,
        planned: Iterable[Form] = (),
    ) -> None:
        self.graph, self.tasks, self._offers, self._costs = graph, tasks, offers, costs
        self._choices: dict[Problem, list[Choice]] = {}
        for task in tasks:
            for problem in self._posed(task):
                if problem not in self._choices:
                    self._choices[problem] = sorted(offers.choose(problem), key=lambda c: c.seconds)
        found = {x for cs in self._choices.values() for c in cs for x in (c.src, c.dst)}
        used = [x for form in planned for x in (*form.reads, form.writes)]
        found |= {x.order for x in used}
        self.layouts = (NCHW, NHWC, *sorted(found - {NCHW, NHWC}, key=str))
        of_bytes = (c for p, cs in self._choices.items() if p.precision.integer for c in cs)
        orders = {x for c in of_bytes for x in (c.src, c.dst)}
        orders |= {x.order for x in used if x.dtype is U8}
        self._byte_orders = [x for x in self.layouts if x in orders or not x.blocked]

    def _posed(self, task: Task) -> Sequence[Problem]:
        """The problems of a task that has schedules."""
        match task.node.op:
            case Conv():
                return self.problems(task)
            case Attention():
                return [attention_problem(self.graph, task.node)]
        return ()

    def choices(self, task: Task, form: Form) -> list[str]:
        """The schedules of a task in the layouts and types of a form, fastest first."""
        if not isinstance(task.node.op, Conv):
            return [c.schedule for p in self._posed(task) for c in self._choices[p]]
        pair = source_layout(form).order, form.writes.order
        choices = self._choices.get(typed_problem(self.graph, task, form), ())
        return [c.schedule for c in choices if (c.src, c.dst) == pair]

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
        if isinstance(task.node.op, Conv):
            return self._convolutions(task)
        if isinstance(task.node.op, Numpy):
            return [self._by_numpy(task)]
        if is_view(self.graph, task):
            return self._views(task)
        floats, kernels = self._floats(task), [*byte_kernels(self.graph, task)]
        typed = (self._typed(task, form, kernel) for form in floats for kernel in kernels)
        if isinstance(task.node.op, ByteFunction):
            return [*filter(None, typed)]
        return [*(self._quantised(task, form) for form in floats), *filter(None, typed)]

    def _by_numpy(self, task: Task) -> Form:
        """The form of a task that NumPy computes: it reads and writes in ONNX's order of axes."""
        values = {*task.node.inputs, *task.node.outputs} & self.graph.tensors.keys()
        seconds = NUMPY_CALL + sum(map(self._bytes, sorted(values))) / NUMPY_STREAMING
        return Form((NCHW,) * len(task.reads), NCHW, task.work, seconds)

    def _floats(self, task: Task) -> list[Form]:
        """The forms of an operator's kernels of float32."""
        op, name = task.node.op, task.work
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
            case Transpose(order=order):
                moved = across(2 * streaming)
                return [
                    replace(f, seconds=0.0) if same_memory(order, f.reads[0], f.writes) else f
                    for f in moved
                ]
            case Gemm() if is_dense(self.graph, task):
                return [
                    Form((x,), NCHW, name, self._costs.stream(size), types=types)
                    for x in self.layouts
                    if self._whole_blocks(task.reads[0], x)
                    for types, size in self._dense_bytes(task).items()
                ]
            case Reduce() if not is_global_pool(self.graph, task):
                return across(2 * streaming)
            case _ if task.before:
                return alike(self._broadcastable(task))
            case Pool() | Reduce() | Unary() | Clip() | Affine() | ByteFunction():
                return alike(self.layouts)
            case DepthwiseVolume():
                blocks, channels = (
                    [x for x in self.layouts if x.blocked],
                    self._channels(task.output),
                )
                ragged = any(channels % x.blocked for x in blocks)
                inside = 2 * streaming * (_RAGGED if ragged else 1.0)
                return alike(blocks, 2 * streaming) + alike([NHWC], inside)
            case GroupNorm():
                return alike(self.layouts, 2 * streaming)
            case Gather() | GatherElements() | GatherND() if is_lookup(self.graph, task):
                return alike([NCHW], 2 * streaming)
            case Attention():
                masks = int(task.reads[-1] == task.node.input(2))
                reads = (NHWC,) * (len(task.reads) - masks) + (NCHW,) * masks
                choices = [c for p in self._posed(task) for c in self._choices[p]]
                kept = choices if self._offers.several else choices[:1]
                found = [Form(reads, NHWC, c.schedule, c.seconds) for c in kept]
                return found or [Form(reads, NHWC, name, 2 * streaming)]
            case Rotary():
                return alike([NHWC])
            case Recurrent():
                steps, images, sums = self.graph.shape(task.reads[0])
                hidden = self.graph.shape(task.output)[-1]
                problem = ConvProblem(images, hidden, 1, 1, sums, (1, 1))
                return [
                    replace(form, types=types)
                    for types, size in self._weight_types(task, problem).items()
                    for form in alike([NCHW], self._costs.stream(steps * size))
                ]
            case GridSample():
                image = task.node.inputs[0]
                return [
                    Form(
                        tuple(x if r == image else NCHW for r in task.reads), x, name, 2 * streaming
                    )
                    for x in plain
                ]
            case LayerNorm():
                single = shape4(self.graph.shape(task.output))[2:] == (1, 1)
                return alike([x for x in self.layouts if single or x != NCHW])
            case Binary() | Where():
                return alike(self._broadcastable(task))
            case ChannelShuffle() if len(task.reads) == 2:
                return alike([NHWC], 2 * streaming)
            case Concat():
                return alike(plain, STEP)
            case Resize() | Pad() if is_spatial(op):
                blocked = [x for x in self.layouts if x.blocked]
                return across(2 * streaming) + alike(blocked, 2 * streaming)
        return across(2 * streaming)

    def _typed(self, task: Task, form: Form, kernel: ByteKernel) -> Form | None:
        """The form with a kernel of bytes, in the same orders of axes, if these are those of bytes.

        Its time is that of the kernel of float32, by the bytes that both move.
        """
        reads = tuple(x.of(dtype) for x, dtype in zip(form.reads, kernel.reads, strict=True))
        writes = form.writes.of(kernel.writes)
        if not {x.order for x in (*reads, writes) if x.dtype is U8} <= {*self._byte_orders}:
            return None
        names = (*task.reads, task.output)
        moved = sum(
            x.dtype.bytes(self._size(name)) for name, x in zip(names, (*reads, writes), strict=True)
        )
        share = moved / sum(map(self._bytes, names))
        return Form(reads, writes, form.algorithm, share * form.seconds, types=kernel.types)

    def _quantised(self, task: Task, form: Form) -> Form:
        """The form, with a move that quantises what it leaves if the tensor must be in u8."""
        leaves = form.leaves
        if leaves.dtype is not F32 or not exact_grid(self.graph, task.output):
            return form
        writes = leaves.of(U8)
        shape = shape4(self.graph.shape(task.output))
        return replace(
            form, writes=writes, seconds=form.seconds + self.moving(shape, leaves, writes)
        )

    def _views(self, task: Task) -> list[Form]:
        """The forms of a task that makes a view or puts tensors together."""
        op, layouts, seconds = task.node.op, [*self.layouts], 0.0
        match op:
            case Concat():
                layouts, seconds = self._together(task.reads), STEP
            case Slice():
                layouts = self._aligned([op.starts[1]])
            case Reshape() | Identity():
                # Pixels follow each other in every layout, in whatever rows they are.
                names = task.reads[0], task.output
                if len({shape4(self.graph.shape(x))[:2] for x in names}) > 1:
                    layouts = [NCHW]
        return [form for x in layouts for form in self._moves(task, x, seconds)]

    def _moves(self, task: Task, layout: Layout, seconds: float) -> list[Form]:
        """The forms of a task that makes a view, in one order of axes.

        Bytes stay bytes. What has another grid than the result, or none, is moved to it.
        """
        grid, name = byte_grid(self.graph, task.output), task.work
        before = [byte_grid(self.graph, x) for x in task.reads]
        found = []
        if not exact_grid(self.graph, task.output):
            found.append(Form((layout,) * len(before), layout, name, seconds))
        if grid and layout in self._byte_orders and (grid.exact or all(before)):
            reads = tuple(layout.of(U8) if own else layout for own in before)
            places = [*zip(task.reads, before, reads, strict=True)]
            moved = [(shape4(self.graph.shape(x)), y) for x, own, y in places if own != grid]
            # The move of a single tensor may also change the order of axes.
            only = len(moved) == len(reads) == 1
            for order in self._byte_orders if only else [layout]:
                writes = order.of(U8)
                moving = sum(self.moving(shape, y, writes) for shape, y in moved)
                found.append(Form(reads, writes, name, seconds + moving, types="u8"))
        return found

    def _convolutions(self, task: Task) -> list[Form]:
        """The fastest choice for each pair of layouts and each choice of element types."""
        found: dict[tuple[str, ...], Form] = {}
        problems = self.problems(task)
        # Guessed times are not compared with measured ones of other types.
        measured = [p for p in problems if not all(c.guessed for c in self._choices[p])]
        for problem in measured or problems:
            for choice in self._choices[problem]:
                gathers = task.parts > 1 and choice.src == NHWC and not problem.types
                if gathers and not parse_schedule(choice.schedule)[0].gathers:
                    continue
                key: tuple[str, ...] = (problem.types, str(choice.src), str(choice.dst))
                if self._offers.several:
                    key = (*key, choice.schedule)
                if key not in found:
                    found[key] = self.convolution(task, choice, problem.precision)
        return list(found.values())

    def problems(self, task: Task) -> list[ConvProblem]:
        """The problems as which a convolution may run. Gathered channels take float32 weights."""
        plain, *others = conv_problems(self.graph, task.node)
        rounded = self._offers.rounded(plain) if task.parts == 1 else ()
        return [plain, *others, *(replace(plain, types=types) for types in rounded)]

    def _dense_bytes(self, task: Task) -> dict[str, int]:
        """The types as which a dense layer may run, and how many bytes of weights it then reads."""
        images, features = self.graph.shape(task.reads[0])[0], self._size(task.reads[0])
        outputs = self._size(task.output) // images
        problem = ConvProblem(images, features // images, 1, 1, outputs, (1, 1))
        return self._weight_types(task, problem)

    def _weight_types(self, task: Task, problem: ConvProblem) -> dict[str, int]:
        """The types of weights that a task may have, and how many bytes of them it then reads.

        As a convolution it is this `problem`.
        """
        halves = [x for x in self._offers.rounded(problem) if Types.parse(x).weights is F16]
        return {types: self._weight_bytes(task, types) for types in ("", *halves)}

    def convolution(self, task: Task, choice: Choice, types: Types) -> Form:
        """The form of a convolution of these element types that runs by this choice.

        In NHWC a kernel gathers the channels of its input from the parts. In other layouts, and
        for integers, the parts are put together first: in NHWC, if a part would begin inside a
        block of the whole.
        """
        src, dst = choice.src.of(types.src), choice.dst.of(types.dst)
        name, residual = task.node.inputs[0], len(task.reads) - task.parts
        part = src if choice.src in self._together(task.reads[: task.parts]) else NHWC.of(types.src)
        seconds = choice.seconds
        if task.parts > 1 and src != NHWC:
            seconds += self._costs.stream(2 * src.dtype.bytes(self._size(name)))
        if part != src:
            seconds += self.moving(shape4(self.graph.shape(name)), part, src)
        reads = (*[part] * task.parts, *[dst] * residual)
        form = Form(reads, dst, choice.schedule, seconds, types=str(types))
        return self._quantised(task, form)

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
        given = (x for node in task.nodes for x in node.inputs if x in self.graph.constants)
        constants = [self.graph.shape(x) for x in given]
        if any(len(x) > 4 and max(x[2:]) > 1 for x in constants):
            return plain
        return self.layouts if all(shape4(x)[1] == shape4(shape)[1] for x in mine) else plain

    def _together(self, names: Sequence[str]) -> list[Layout]:
        """The layouts in which these tensors can be ranges of one tensor's channels."""
        sizes = [self._channels(x) for x in names]
        return self._aligned(list(accumulate(sizes, initial=0))[:-1])

    def _whole_blocks(self, name: str, layout: Layout) -> bool:
        return not layout.blocked or self._channels(name) % layout.blocked == 0

    def _channels(self, name: str) -> int:
        return shape4(self.graph.shape(name))[1]

    def _size(self, name: str) -> int:
        return math.prod(self.graph.shape(name))

    def _bytes(self, name: str) -> int:
        return self.graph.tensor(name).nbytes

    def _weight_bytes(self, task: Task, types: str) -> int:
        constants, dtype = self.graph.constants, Types.parse(types).weights
        return sum(dtype.bytes(constants[x].size) for x in task.node.inputs if x in constants)

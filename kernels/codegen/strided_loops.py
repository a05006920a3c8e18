"""Loops over strided tensors of one shape: few axes, long rows, tasks of equal size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module, Vec
from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.tiling import Tiles, consecutive, tile_count
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import check

# Elements of a task: enough to be worth a task, few enough to divide evenly among threads.
GRAIN = 4096


def fitted(src: Strided, shape: Ints) -> Strided:
    """`src` broadcast to `shape`.

    Raises:
        ScheduleError: the shapes do not fit.
    """
    mine = src.shape[::-1]
    fits = len(mine) <= len(shape) and all(
        a in (1, b) for a, b in zip(mine, shape[::-1], strict=False)
    )
    check(fits, f"{src.shape} cannot be broadcast to {shape}")
    return src.broadcast(shape)


def aligned(*views: Strided) -> list[Strided]:
    """The same elements in the order in which the first view has them in memory.

    Axes that continue each other in all views are merged. At least one axis remains.
    """
    first = views[0]
    axes = [axis for axis, n in enumerate(first.shape) if n != 1]
    axes.sort(key=lambda axis: -abs(first.strides[axis]))
    shape: list[int] = []
    steps: list[list[int]] = []
    for axis in axes:
        n, step = first.shape[axis], [view.strides[axis] for view in views]
        if steps and steps[-1] == [n * s for s in step]:
            shape[-1], steps[-1] = shape[-1] * n, step
        else:
            shape.append(n)
            steps.append(step)
    if not axes:
        shape, steps = [1], [[1] * len(views)]
    return [
        replace(view, shape=tuple(shape), strides=tuple(step[i] for step in steps))
        for i, view in enumerate(views)
    ]


def rows(length: int, lanes: int, unroll: int) -> list[Tiles]:
    """`length` elements in tiles of `unroll` vectors, then of one vector, then the rest."""
    many, left = divmod(length, lanes * unroll)
    return consecutive((lanes * unroll, many), (lanes, left // lanes), (left % lanes, 1))


def singly(shape: Ints) -> list[list[Tiles]]:
    """Every axis in tiles of one element."""
    return [consecutive((1, n)) for n in shape]


class Nest:
    """Loops over tiles of several axes, cut into tasks of even size; the last axis is innermost.

    `work` is how many elements are read for one place. Without a place there is no task and no
    inner tile.

        @nest.stage(module, "name")
        def write(k: Kernel, *places: Int) -> None:
            for run in nest.inner:
                with nest.loop(run) as x:
                    ...  # the elements at (*places, x), run.size of them along the last axis
    """

    def __init__(self, tiles: Sequence[list[Tiles]], work: int = 1) -> None:
        lengths = [sum(run.size * run.count for run in axis) for axis in tiles]
        grain = max(1, GRAIN // work)
        self.tiles = list(tiles) if math.prod(lengths) else [[] for _ in tiles]
        self._tasks = 0
        if not math.prod(lengths):
            return
        # The innermost axis from which on there is work for a task, and its tiles in one.
        axes = range(len(tiles))
        self._split = max((i for i in axes if math.prod(lengths[i:]) >= grain), default=0)
        per_step = math.prod(lengths[self._split + 1 :]) * tiles[self._split][0].size
        self._per_task = -(-grain // per_step)
        self._chunks = -(-tile_count(tiles[self._split]) // self._per_task)
        self._counts = [tile_count(axis) for axis in tiles[: self._split]]
        self._tasks = self._chunks * math.prod(self._counts)

    @property
    def inner(self) -> list[Tiles]:
        """The tiles of the last axis."""
        return self.tiles[-1]

    def stage(
        self, module: Module, symbol: str, stop: int = -1
    ) -> Callable[[Callable[..., None]], None]:
        """Add the stage that runs the loops; the function below writes what the inner ones do.

        It gets the kernel and the places along the axes before axis `stop`, as `outer` has them.
        """

        def add(write: Callable[..., None]) -> None:
            @module.stage(symbol, self._tasks)
            def write_loops(k: Kernel, task: Index) -> None:
                # For each axis with an open loop, and the next one: the task's tile, or its first
                # and end; and the rest of the task's number, for the axes behind.
                self._k, self._axis = k, 0
                self._left: Int = task
                self._bounds: dict[int, tuple[Int, Int, Int]] = {}
                with self.outer(stop) as places:
                    write(k, *places)

        return add

    @contextmanager
    def loop(self, tiles: Tiles) -> Iterator[Int]:
        """The loop over, or branch for, some tiles of the next axis: yields where a tile begins."""
        axis, k = self._axis, self._k
        if axis not in self._bounds:
            self._bounds[axis] = self._share(axis)
        before, (begin, end, left) = self._left, self._bounds[axis]
        within = tiles.when(k, begin) if axis < self._split else tiles.loop(k, begin, end)
        with within as place:
            self._axis, self._left = axis + 1, left
            yield place
        self._axis, self._left = axis, before
        self._bounds.pop(axis + 1, None)

    @contextmanager
    def outer(self, stop: int = -1) -> Iterator[tuple[Int, ...]]:
        """The loops of the next axes, before axis `stop`, whose tiles are of one size each."""
        with ExitStack() as loops:
            axes = [tiles for tiles in self.tiles[self._axis : stop] if tiles]
            yield tuple(loops.enter_context(self.loop(run)) for [run] in axes)

    def _share(self, axis: int) -> tuple[Int, Int, Int]:
        """What a task does of an axis: a tile, or the tiles from one number to another."""
        if axis < self._split:
            below = self._chunks * math.prod(self._counts[axis + 1 :])
            return self._left // below, 0, self._left % below
        if axis == self._split and self._chunks > 1:
            begin = self._left * self._per_task
            return begin, begin + self._per_task, 0
        return 0, 0, 0


def marked(view: Strided, axis: int) -> Strided:
    """A view with the numbers along `axis` as offsets, so that `aligned` keeps the axis apart."""
    return Strided(view.shape, tuple(int(i == axis) for i in range(len(view.shape))))


def operand(k: Kernel, name: str, view: Strided) -> Buffer:
    """An argument of the stage seen as `view`."""
    return k.argument(name, *view.strides, offset=view.offset, dtype=view.dtype)


def load_row(at: Buffer, step: int, count: int, lanes: int) -> Vec:
    """`count` elements from `at` on, `step` elements apart; the other lanes are undefined."""
    if step == 0 or lanes == 1:
        return at.strided(1).splat(0, lanes=lanes)
    if step > 0 and step * lanes <= READ_SLACK and step <= 4:
        return at.strided(1).load_strided(0, step=step, lanes=lanes)
    k, kind = at.k, vector_type(lanes, at.dtype.llvm_name)
    value = "poison"
    for i in range(count):
        one = at.strided(step).load(i, lanes=1)
        value = k.emit(f"insertelement {kind} {value}, {one.type} {one.ssa}, i32 {i}")
    return Vec(k, value, lanes, at.dtype)


def store_row(at: Buffer, step: int, count: int, value: Vec) -> None:
    """Store the first `count` lanes of `value`, `step` elements apart."""
    if step == 1:
        at.strided(1).store_first(value, count, 0)
        return
    for i in range(count):
        at.strided(step).store(at.k.shuffle(value, value, [i]) if value.lanes > 1 else value, i)

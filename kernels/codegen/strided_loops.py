"""Loops over strided tensors of one shape: few axes, long rows, tasks of even size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Module, Vec
from fastrun.kernels.codegen.emit import vector_type
from fastrun.kernels.codegen.tiling import Tiles, consecutive, dispatch, sweep, tile_count
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.strided import Ints, Strided
from fastrun.kernels.core.template import check

# Elements of a task: enough to be worth handing out, few enough to share out evenly.
GRAIN = 4096

# Where along every axis a tile begins, and how far it goes.
Body = Callable[[Kernel, tuple[Int, ...], Ints], None]


def fitted(src: Strided, shape: Ints) -> Strided:
    """`src` broadcast to `shape`.

    Raises:
        ScheduleError: it cannot be.
    """
    mine = src.shape[::-1]
    fits = len(mine) <= len(shape) and all(
        a in (1, b) for a, b in zip(mine, shape[::-1], strict=False)
    )
    check(fits, f"{src.shape} cannot be broadcast to {shape}")
    return src.broadcast(shape)


def aligned(*views: Strided) -> list[Strided]:
    """The same elements in the order in which the first view has them in memory.

    Axes that run on into each other in all views are one; there is at least one.
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
        Strided(tuple(shape), tuple(step[i] for step in steps), view.offset)
        for i, view in enumerate(views)
    ]


def rows(length: int, lanes: int, unroll: int) -> list[Tiles]:
    """`length` elements in tiles of `unroll` vectors, then of one, then what is left."""
    many, left = divmod(length, lanes * unroll)
    return consecutive((lanes * unroll, many), (lanes, left // lanes), (left % lanes, 1))


def singly(shape: Ints) -> list[list[Tiles]]:
    """Every axis in tiles of one element."""
    return [consecutive((1, n)) for n in shape]


def nest(
    module: Module, symbol: str, tiles: Sequence[Sequence[Tiles]], body: Body, work: int = 1
) -> None:
    """A stage that runs `body(k, places, sizes)` for every tile of every axis.

    The last axis is the innermost loop; `work` is how many elements are read for one place.
    Without a place the stage has no task.
    """
    grain = max(1, GRAIN // work)
    lengths = [sum(run.size * run.count for run in axis) for axis in tiles]
    if not math.prod(lengths):
        with module.stage(symbol, 0):
            return
    # The innermost axis from which on there is work for a task, and its tiles in one.
    split = max((i for i in range(len(tiles)) if math.prod(lengths[i:]) >= grain), default=0)
    per_step = math.prod(lengths[split + 1 :]) * tiles[split][0].size
    per_task = -(-grain // per_step)
    chunks = -(-tile_count(tiles[split]) // per_task)
    outer = [tile_count(axis) for axis in tiles[:split]]

    with module.stage(symbol, chunks * math.prod(outer)) as (k, task):

        def descend(axis: int, rest: Int, places: tuple[Int, ...], sizes: Ints) -> None:
            if axis == len(tiles):
                body(k, places, sizes)
                return

            def inside(run: Tiles, place: Int) -> None:
                descend(axis + 1, remainder, (*places, place), (*sizes, run.size))

            remainder: Int = 0
            if axis < split:
                below = chunks * math.prod(outer[axis + 1 :])
                number, remainder = rest // below, rest % below
                dispatch(k, tiles[axis], number, inside)
            elif axis == split:
                begin = rest * per_task if chunks > 1 else 0
                sweep(k, tiles[axis], inside, begin, begin + per_task)
            else:
                sweep(k, tiles[axis], inside)

        descend(0, task, (), ())


def marked(view: Strided, axis: int) -> Strided:
    """The number along `axis` of every element of `view`, as offsets; see `aligned`."""
    return Strided(view.shape, tuple(int(i == axis) for i in range(len(view.shape))))


def operand(k: Kernel, name: str, view: Strided) -> Buffer:
    """An argument of the stage seen as `view`."""
    return k.argument(name, *view.strides, offset=view.offset)


def load_row(at: Buffer, step: int, count: int, lanes: int) -> Vec:
    """`count` elements from `at` on, each `step` floats further; other lanes hold anything."""
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
    """The first `count` lanes of `value`, each `step` floats further."""
    if step == 1:
        at.strided(1).store_first(value, count, 0)
        return
    for i in range(count):
        at.strided(step).store(at.k.shuffle(value, value, [i]) if value.lanes > 1 else value, i)

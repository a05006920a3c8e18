"""Products of two matrices that are computed at run time, or of batches of them.

The right matrix is packed into panels of columns. The left one is read where it lies, or copied
first if its rows are not contiguous. Transposing and broadcasting only change the strides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastrun.kernels.codegen.builder import Buffer, Index, Int, Kernel, Module
from fastrun.kernels.codegen.epilogue import activate
from fastrun.kernels.codegen.strided_loops import aligned, fitted, load_row, store_row
from fastrun.kernels.codegen.sums import add_products
from fastrun.kernels.codegen.tile_choice import best_tile
from fastrun.kernels.codegen.tiling import Tiles, channel_panels, cover, tile_count
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check, check_f32
from fastrun.kernels.ops import movement

# Steps along K in straight code, and multiplications that are worth a task.
UNROLL, WORK = 4, 1 << 17


@dataclass(frozen=True)
class MatMul:
    """`activation(alpha * a @ b + beta * c)`; c is optional."""

    alpha: float = 1.0
    beta: float = 1.0
    activation: str = ""


@identified
def matmul(
    spec: MatMul,
    cpu: Cpu,
    a: Strided,
    b: Strided,
    dst: Strided,
    c: Strided | None = None,
    arguments: tuple[str, str, str] = ("src", "add", "bias"),
) -> Program:
    """Multiply the last two axes of `a` (..., m, k) and `b` (..., k, n); the others broadcast.

    `c` is broadcast to `dst`. `arguments` names the kernel's arguments that hold a, b and c.

    Raises:
        ScheduleError: the shapes do not fit, or a tensor is not of f32.
    """
    check_f32("a matrix product", a, b, dst)
    rank = min(len(a.shape), len(b.shape), len(dst.shape))
    check(rank >= 2, f"a matrix has two axes or more: {a.shape} @ {b.shape} -> {dst.shape}")
    (m, depth), n = a.shape[-2:], b.shape[-1]
    fits = b.shape[-2] == depth and dst.shape[-2:] == (m, n) and depth > 0
    check(fits, f"{a.shape} @ {b.shape} is not {dst.shape}")
    places = {name: view.buffer for name, view in zip(arguments, (a, b), strict=False)}
    io = Io(places.get("src", dst.buffer), dst.buffer, places.get("add", dst.buffer))
    c = None if c is None else fitted(c, dst.shape)
    names = dict(zip("abc", arguments, strict=True))
    if n < cpu.lanes and n < m:
        # The transposed product has longer rows.
        a, b, dst = _transposed(b), _transposed(a), _transposed(dst)
        c = None if c is None else _transposed(c)
        m, n = n, m
        names["a"], names["b"] = names["b"], names["a"]

    module, shared = Module(cpu), 0
    if a.strides[-1] != 1 and depth > 1:
        rows = Strided.row_major(a.shape)
        movement.stage(module, "copy_rows", names["a"], a, "shared", rows)
        a, names["a"], shared = rows, "shared", rows.extent
    lanes = cpu.lanes_for(n)
    vectors = -(-n // lanes)
    _, height, cols = best_tile(1, m, vectors, cpu)
    panels = channel_panels(n, lanes, cols, split_tail=True)
    if m > height or b.strides[-1] != 1:
        b = _pack(module, names["b"], b, lanes, shared)
        names["b"], shared = "shared", shared + math.prod(b.shape) * lanes
    else:
        # Vectors of columns are read where they lie; the last may be cut short.
        shape, strides = (*b.shape[:-1], vectors), (*b.strides[:-1], lanes)
        b = Strided(shape, strides, b.offset)
    _products(module, spec, names, (a, b, dst, c), cover(m, height), panels, lanes)
    workspace = F32.bytes(shared + READ_SLACK) if shared else 0
    return module.program(io, shared_bytes=workspace)


def _transposed(view: Strided) -> Strided:
    *batch, rows, columns = range(len(view.shape))
    return view.transpose((*batch, columns, rows))


def _pack(module: Module, source: str, b: Strided, lanes: int, offset: int) -> Strided:
    """Stages that copy b into `shared`, every vector of columns with its whole depth together.

    The result is indexed (batch..., k, vector).
    """
    *batch, depth, n = b.shape
    axis, vectors = len(batch) + 1, -(-n // lanes)
    packed = Strided.row_major((*batch, vectors, depth, lanes))
    order = (*range(len(batch)), len(batch) + 1, len(batch), len(batch) + 2)
    packed = replace(packed, offset=offset).transpose(order)
    full, rest = divmod(n, lanes)
    if full:
        whole = b.part(axis, 0, full * lanes).split(axis, (full, lanes))
        movement.stage(module, "pack", source, whole, "shared", packed.part(axis, 0, full))
    if rest:
        tail = b.part(axis, full * lanes, rest).split(axis, (1, rest))
        last = packed.part(axis, full, 1).part(axis + 1, 0, rest)
        movement.stage(module, "pack_tail", source, tail, "shared", last)
    return Strided(packed.shape[:-1], packed.strides[:-1], offset)


def _products(
    module: Module,
    spec: MatMul,
    names: dict[str, str],
    operands: tuple[Strided, Strided, Strided, Strided | None],
    heights: list[Tiles],
    panels: list[Tiles],
    lanes: int,
) -> None:
    """The stage that multiplies: a task is some tiles of rows by one panel of columns."""
    a, b, dst, c = operands
    depth, n = a.shape[-1], dst.shape[-1]
    out, *batches = (
        Strided(v.shape[:-2], v.strides[:-2], v.offset)
        for v in (dst, a, b, dst if c is None else c)
    )
    out, *batches = aligned(out, *(fitted(v, out.shape) for v in batches))
    counts, wide = out.shape, panels[0].size * lanes
    per_task = -(-WORK // (heights[0].size * wide * depth))
    row_tasks = -(-tile_count(heights) // per_task)
    tasks = row_tasks * tile_count(panels) * math.prod(counts)

    @module.stage("multiply", tasks)
    def write_multiply(k: Kernel, task: Index) -> None:
        chunk, rest = task % row_tasks, task // row_tasks
        number, rest = rest % tile_count(panels), rest // tile_count(panels)
        batch: list[Int] = []
        for count in reversed(counts):
            batch.insert(0, rest % count)
            rest = rest // count

        def matrix(name: str, where: Strided, image: Strided) -> Buffer:
            base = k.argument(name, *image.strides, offset=image.offset).at(*batch)
            return base.strided(*where.strides[-2:])

        left, right = (
            matrix(names[name], where, image)
            for name, where, image in zip("ab", (a, b), batches, strict=False)
        )
        target = matrix("dst", dst, out)

        for panel in panels:
            with panel.when(k, number) as vector:
                columns, begin = right.at(0, vector), chunk * per_task
                for run in heights:
                    with run.loop(k, begin, begin + per_task) as row:
                        acc = k.tile(run.size, panel.size, lanes)
                        acc.fill(k.const(0.0, lanes))
                        add_products(k, acc, left.at(row), columns, depth, UNROLL)
                        for i, j in acc:
                            last = panel is panels[-1] and j == panel.size - 1
                            count = (last and n % lanes) or lanes
                            column = (vector + j) * lanes
                            value = acc[i, j] * spec.alpha if spec.alpha != 1 else acc[i, j]
                            if c is not None:
                                at = matrix(names["c"], c, batches[2]).at(row + i, column)
                                added = load_row(at.strided(1), c.strides[-1], count, lanes)
                                value = value + (added * spec.beta if spec.beta != 1 else added)
                            value = activate(value, spec.activation)
                            store_row(target.at(row + i, column), dst.strides[-1], count, value)

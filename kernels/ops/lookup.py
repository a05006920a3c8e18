"""Entries of a table at computed indices: embeddings, Gather of what the network computes.

Whole entries along an axis or several, or an element for each index.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.kernels.codegen.builder import Index, Int, Kernel, Module, Vec
from fastrun.kernels.codegen.strided_loops import (
    Nest,
    aligned,
    load_row,
    operand,
    rows,
    singly,
    store_row,
)
from fastrun.kernels.core.cpu import Cpu
from fastrun.kernels.core.identity import identified
from fastrun.kernels.core.program import Io, Program
from fastrun.kernels.core.strided import Strided
from fastrun.kernels.core.template import check, check_f32

UNROLL = 2


@identified
def lookup(
    axis: int,
    cpu: Cpu,
    table: Strided,
    indices: Strided,
    dst: Strided,
    arguments: tuple[str, str] = ("src", "add"),
) -> Program:
    """Entries of `table` along an axis at `indices`, which are whole numbers in float32.

    The axes of the indices take the place of the axis. Negative indices count from the end. One
    that is outside, or NaN, takes the nearest entry. `arguments` names the kernel's arguments that
    hold both; a constant is in "weights", row-major.

    Raises:
        ScheduleError: the shapes do not fit, or a tensor is not of f32.
    """
    before, after = table.shape[:axis], table.shape[axis + 1 :]
    shape = (*before, *indices.shape, *after)
    _check(table, indices, dst, dst.shape == shape)
    none = (0,) * len(indices.shape)
    strides = (*table.strides[:axis], *none, *table.strides[axis + 1 :])
    places = ((0,) * len(before), indices.strides, (0,) * len(after))
    entries = Strided(shape, strides, table.offset)
    wide = Strided(shape, tuple(s for part in places for s in part), indices.offset)
    return _found([(axis, 0)], cpu, table, indices, dst, (entries, wide), arguments)


@identified
def elements(
    axis: int,
    cpu: Cpu,
    table: Strided,
    indices: Strided,
    dst: Strided,
    arguments: tuple[str, str] = ("src", "add"),
) -> Program:
    """Elements of `table`: each index says where along an axis that of its own place lies.

    Indices and `arguments` are those of `lookup`. Along other axes there may be fewer indices than
    entries.

    Raises:
        ScheduleError: the shapes do not fit, or a tensor is not of f32.
    """
    sizes = [*zip(indices.shape, table.shape, strict=False)]
    fits = len(indices.shape) == len(table.shape) and all(
        a <= b for i, (a, b) in enumerate(sizes) if i != axis
    )
    _check(table, indices, dst, fits and dst.shape == indices.shape)
    strides = (*table.strides[:axis], 0, *table.strides[axis + 1 :])
    entries = Strided(indices.shape, strides, table.offset)
    return _found([(axis, 0)], cpu, table, indices, dst, (entries, indices), arguments)


@identified
def points(
    batch: int,
    cpu: Cpu,
    table: Strided,
    indices: Strided,
    dst: Strided,
    arguments: tuple[str, str] = ("src", "add"),
) -> Program:
    """Entries of `table` at points: the last axis of the indices has a number for each of its axes.

    The first `batch` axes are those of the indices too. Indices and `arguments` are those of
    `lookup`.

    Raises:
        ScheduleError: the shapes do not fit, or a tensor is not of f32.
    """
    *lead, depth = indices.shape
    end, beside = batch + depth, len(lead) - batch
    after = table.shape[end:]
    fits = beside >= 0 and end <= len(table.shape) and table.shape[:batch] == tuple(lead[:batch])
    _check(table, indices, dst, fits and depth > 0 and dst.shape == (*lead, *after))
    strides = (*table.strides[:batch], *(0,) * beside, *table.strides[end:])
    entries = Strided(dst.shape, strides, table.offset)
    wide = Strided(dst.shape, (*indices.strides[:-1], *(0,) * len(after)), indices.offset)
    axes = [(batch + i, i * indices.strides[-1]) for i in range(depth)]
    return _found(axes, cpu, table, indices, dst, (entries, wide), arguments)


def _check(table: Strided, indices: Strided, dst: Strided, fits: bool) -> None:
    check_f32("a look-up", table, indices, dst)
    check(fits, f"{table.shape} at {indices.shape} indices is not {dst.shape}")


def _found(
    axes: Sequence[tuple[int, int]],
    cpu: Cpu,
    table: Strided,
    indices: Strided,
    dst: Strided,
    views: tuple[Strided, Strided],
    arguments: tuple[str, str],
) -> Program:
    """What lies at the indices. `views` of first entries and of indices have the result's shape.

    `axes` has the axes of the table along which indices lead, and where those of each lie.
    """
    out, entries, found = aligned(dst, *views)
    *outer, length = out.shape
    single = found.strides[-1] != 0  # each element of a row has an index of its own
    tiles = rows(length, 1 if single else cpu.lanes, 1 if single else UNROLL)
    module, nest = Module(cpu), Nest([*singly(tuple(outer)), tiles])
    read, written = entries.strides[-1], out.strides[-1]

    @nest.stage(module, "lookup")
    def write_lookup(k: Kernel, *at: Int) -> None:
        for run in nest.inner:
            with nest.loop(run) as x:
                numbers = operand(k, arguments[1], found).at(*at, x).strided(1)
                source = operand(k, arguments[0], entries).at(*at, x)
                for axis, place in axes:
                    entry = _entry(numbers.load(place, lanes=1), table.shape[axis])
                    source = source.strided(table.strides[axis]).at(entry)
                target = operand(k, "dst", out).at(*at, x).strided(written)
                lanes = cpu.lanes_for(run.size)
                for start in range(0, run.size, lanes):
                    count = min(lanes, run.size - start)
                    row = load_row(source.strided(read).at(start), read, count, lanes)
                    store_row(target.at(start), written, count, row)

    buffers = dict(zip(arguments, (table.buffer, indices.buffer), strict=True))
    return module.program(Io.named(buffers, dst.buffer))


def _entry(number: Vec, n: int) -> Index:
    """The entry of a table of `n` that a number means."""
    k = number.k
    k.declare("declare i64 @llvm.fptosi.sat.i64.f32(float)")
    whole = Index(k, k.emit(f"call i64 @llvm.fptosi.sat.i64.f32(float {number.ssa})"))
    behind = k.emit(f"select i1 {(whole < 0).ssa}, i64 {n}, i64 0")
    return (whole + Index(k, behind)).max(0).min(n - 1)

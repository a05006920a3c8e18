"""Copies of the input as rows of tiles: as bf16 numbers, one or several for each.

A copy has a plane for each chunk of channels and each term: its pixels, 64 bytes each. So the rows
of a tile of pixels lie side by side, at whichever tap of the filter.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastrun.kernels.codegen.builder import (
    Buffer,
    Index,
    Int,
    Kernel,
    Module,
    Vec,
    at_channel,
    first_lanes,
)
from fastrun.kernels.codegen.matrix_tiles import ROW_BYTES
from fastrun.kernels.conv.amx.schedule import Window, width_of
from fastrun.kernels.core.dtype import BF16, F32, U8
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.template import check

_HALF = 16  # numbers of a vector


def check_source(src: Placement) -> None:
    """Raise `ScheduleError` unless 16 channels lie side by side."""
    good = src.layout.name == "NHWC" or src.layout.blocked == _HALF
    check(good, f"amx copies input in NHWC or NCHW{_HALF}c, not {src.layout}")


def copied_rows(p: ConvProblem, rows: int) -> int:
    """Rows of the input under the filter for so many rows of the output."""
    return (rows - 1) * p.stride[0] + (p.kernel[0] - 1) * p.dilation[0] + 1


@dataclass(frozen=True)
class Copy:
    """The copy of so many rows of the input, with the halo at their ends, of some groups.

    Distances are in bytes.
    """

    rows: int
    width: int
    window: Window
    groups: int = 1

    @property
    def row(self) -> int:
        """From a row to the next."""
        return self.width * ROW_BYTES

    @property
    def term(self) -> int:
        """From a term to the next."""
        return self.rows * self.row

    @property
    def chunk(self) -> int:
        """From a chunk to the next."""
        return self.window.terms * self.term

    @property
    def group(self) -> int:
        """From a group to the next."""
        return self.window.chunks * self.chunk

    @property
    def size(self) -> int:
        """Of all groups."""
        return self.groups * self.group


def whole_copy(p: ConvProblem, src: Placement, window: Window) -> Copy:
    """That of all rows under the filter, which may be a few of those of `src`."""
    return Copy(copied_rows(p, p.oh), width_of(src), window, p.groups)


def copy_stage(module: Module, p: ConvProblem, src: Placement, window: Window) -> None:
    """The stage that copies all rows under the filter, with a task for each of them."""
    copy, first = whole_copy(p, src, window), src.halo[0] - p.padding[0]

    @module.stage("copy", p.n * copy.rows)
    def write_copy(k: Kernel, task: Index) -> None:
        image, y = task // copy.rows, task % copy.rows
        row = _rows(k, src).at(image, 0, y + first)
        out = k.argument("shared", copy.size, copy.row, copy.group, dtype=U8).at(image, y)
        with k.times(p.groups) as group:
            to = out.strided(0, 0, copy.group).at(0, 0, group)
            _copy_row(k, at_channel(row, src, group, p.group_c), src, copy, to)


def copy_strip(
    k: Kernel, p: ConvProblem, src: Placement, copy: Copy, out: Buffer, rows: int,
    image: Int, group: Int, top: Int,
) -> None:  # fmt: skip
    """Copy the input of `rows` rows of the output, from row `top` on, to bytes at `out`."""
    first = top * p.stride[0] + (src.halo[0] - p.padding[0])
    channels = at_channel(_rows(k, src).at(image, 0, first), src, group, p.group_c)
    with k.times(copied_rows(p, rows)) as y:
        _copy_row(k, channels.at(0, 0, y), src, copy, out.strided(copy.row).at(y))


def _rows(k: Kernel, src: Placement) -> Buffer:
    return k.tensor("src", src, y=-src.halo[0], x=-src.halo[1])


def _copy_row(k: Kernel, row: Buffer, src: Placement, copy: Copy, out: Buffer) -> None:
    """Copy the channels of a group of all pixels of a row."""
    window = copy.window
    with k.times(copy.width) as x:
        pixel, to = row.at(0, 0, 0, x), out.strided(ROW_BYTES).at(x).strided(1)
        for chunk in range(window.chunks):
            start = chunk * window.per_chunk
            halves = [_numbers(k, pixel, src, start + i, window.channels) for i in (0, _HALF)]
            _store_terms(halves, to.at(chunk * copy.chunk), copy.term, window.terms)


def _numbers(k: Kernel, pixel: Buffer, src: Placement, channel: int, channels: int) -> Vec:
    """Sixteen channels from a place on as float32; those that lack are zero."""
    if channel >= channels:
        return k.const(0.0, _HALF)
    place = at_channel(pixel, src, channel // _HALF, _HALF).strided(1)
    kept = min(_HALF, channels - channel)
    if src.dtype is F32:
        return place.load_first(kept, 0, lanes=_HALF)
    value = place.load(0, lanes=_HALF).to(F32)
    if kept == _HALF:
        return value
    # What lies behind may be no number, which zero weights would not remove.
    return k.blend(first_lanes(kept, _HALF), value, k.const(0.0, _HALF))


def _store_terms(halves: list[Vec], out: Buffer, apart: int, terms: int) -> None:
    """Round the numbers to bf16, then what is left of them, and so on."""
    k = out.k
    for term in range(terms):
        low, high = halves
        rounded = k.target("llvm.x86.avx512bf16.cvtne2ps2bf16.512", BF16, 2 * _HALF, high, low)
        out.store(rounded, term * apart)
        if term < terms - 1:
            parts = [k.shuffle(rounded, rounded, range(i, i + _HALF)).to(F32) for i in (0, _HALF)]
            halves = [x - part for x, part in zip(halves, parts, strict=True)]

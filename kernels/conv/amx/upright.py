"""A row of pixels as a column, which can be cut into strips.

Sequences, and the rows of a matrix product, are images one pixel high. The rows of an image are
what tasks share, so such an image would be a single task. One pixel wide it lies the same in
memory.
"""

from __future__ import annotations

from dataclasses import replace

from fastrun.kernels.conv.amx.copy import copied_rows
from fastrun.kernels.conv.amx.schedule import Schedule
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import Placement
from fastrun.kernels.core.problem import ConvProblem
from fastrun.kernels.core.program import Io


def upright(p: ConvProblem) -> ConvProblem:
    """The problem with rows for columns where its images are one pixel high, else as it is.

    Filters of bytes stay, since a row of them is one long pixel.
    """
    top, left, bottom, right = p.padding
    if p.h > 1 or p.kernel[0] > 1 or top or bottom or p.stride != (1, 1):
        return p
    if p.precision.integer and p.kernel != (1, 1):
        return p
    return replace(
        p, h=p.w, w=1, kernel=p.kernel[::-1], padding=(left, 0, right, 0), dilation=p.dilation[::-1]
    )


def stands(io: Io) -> bool:
    """Whether the tensors of an image one pixel high have no halo above or below."""
    return not any(x.halo[0] or x.halo[2] for x in (io.src, io.dst, io.add))


def upright_io(io: Io) -> Io:
    """The same memory with rows for columns."""
    return replace(io, src=_column(io.src), dst=_column(io.dst), add=_column(io.add))


def _column(where: Placement) -> Placement:
    _, left, _, right = where.halo
    return replace(where, h=where.w, w=1, halo=(left, 0, right, 0))


def in_strips(p: ConvProblem, s: Schedule) -> Schedule:
    """The schedule with strips that tasks copy, where an upright image's hardly overlap."""
    if p == upright(p) or s.oc_outer or p.precision.src is not F32:
        return s
    overlap = copied_rows(upright(p), s.rows) - s.rows
    return replace(s, strips=4 * overlap <= s.rows)

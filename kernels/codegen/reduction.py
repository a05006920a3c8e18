"""The loop over K of a convolution: channel blocks, filter rows, filter columns, channels.

Weights are packed in this very order, so the kernel reads them as one linear stream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from fastrun.kernels.codegen.builder import Int, Kernel
from fastrun.kernels.codegen.tiling import cut
from fastrun.kernels.codegen.values import least, most
from fastrun.kernels.core.problem import ConvProblem

Step = Callable[[Int, Int, Int, Int, Int], None]

# First and end of some rows or columns of a filter, or None for all.
Taps = tuple[Int, Int] | None


def reduction(
    k: Kernel,
    channels: int,
    block: int,
    kernel: tuple[int, int],
    unroll: int,
    step: Step,
    rows: Taps = None,
    columns: Taps = None,
    before: Callable[[Int], None] = lambda block: None,
) -> None:
    """Run `step(block, ky, kx, lane, position)` for every term; `position` counts them.

    About `unroll` steps become straight code, from the innermost loop outwards. `rows` and
    `columns` are those of the filter that must run, as (first, end); the others multiply only
    padding and may be skipped. `before(block)` is emitted in front of every full channel block.
    """
    for first, end in filter(None, (rows, columns)):
        if isinstance(first, int) and isinstance(end, int) and first >= end:
            return  # nothing but padding
    full, rest = divmod(channels, block)
    terms = block * kernel[0] * kernel[1]
    if full:
        with k.times(full) as b:
            before(b)
            _window(k, b, block, b * terms, kernel, unroll, step, rows, columns)
    if rest:
        _window(k, full, rest, full * terms, kernel, unroll, step, rows, columns)


def _window(
    k: Kernel,
    block: Int,
    lanes: int,
    start: Int,
    kernel: tuple[int, int],
    unroll: int,
    step: Step,
    rows: Taps,
    columns: Taps,
) -> None:
    """All taps and lanes of one channel block."""
    kh, kw = kernel
    down, across = kh * kw * lanes <= unroll, kw * lanes <= unroll
    first, end = (0, kh) if rows is None or down else rows
    left, right = (0, kw) if columns is None or across else columns
    with k.each(first, end, down or kh == 1) as kys:
        for ky in kys:
            with k.each(left, right, across or kw == 1) as kxs:
                for kx in kxs:
                    position = ky * (kw * lanes) + kx * lanes + start
                    for tiles in cut(lanes, min(unroll, lanes)):
                        with tiles.unrolled(k) as some_lanes:
                            for lane in some_lanes:
                                step(block, ky, kx, lane, position + lane)


def met_taps(p: ConvProblem, axis: int, first: Int, size: int) -> Taps:
    """The filter's rows (axis 0) or columns (1) that meet the image, as (first, end).

    They do so in `size` rows or columns of the output from `first` on. The others multiply only
    padding: a fifth of the work of 3x3 at 7x7. None if all must run: they meet the image, or the
    padding holds a zero point, for which the bias accounts.
    """
    before, after, stride, apart = (
        p.padding[axis], p.padding[axis + 2], p.stride[axis], p.dilation[axis],
    )  # fmt: skip
    if p.kernel[axis] == 1 or before == after == 0 or p.precision.integer:
        return None
    outside = most(before - (first + (size - 1)) * stride, 0)
    inside = most((p.h, p.w)[axis] - 1 + before - first * stride, 0)
    return (outside + (apart - 1)) // apart, least(inside // apart + 1, p.kernel[axis])


def share_met(p: ConvProblem, axis: int, tile: int) -> float:
    """The share of the filter's rows or columns that is left if tiles of this size skip padding."""
    size = (p.oh, p.ow)[axis]
    every = 0, p.kernel[axis]
    firsts = range(0, size, tile)
    met = [met_taps(p, axis, first, min(tile, size - first)) or every for first in firsts]
    known = cast("list[tuple[int, int]]", met)  # since the tiles are known
    return sum(max(past - first, 0) for first, past in known) / (len(known) * p.kernel[axis])

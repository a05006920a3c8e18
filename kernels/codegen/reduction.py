"""The loop over K of a convolution: channel blocks, filter rows, filter columns, channels.

Weights are packed in this very order, so the kernel reads them as one linear stream.
"""

from __future__ import annotations

from collections.abc import Callable

from fastrun.kernels.codegen.builder import Int, Kernel
from fastrun.kernels.codegen.tiling import cut
from fastrun.kernels.codegen.values import least, most
from fastrun.kernels.core.problem import ConvProblem

Step = Callable[[Int, Int, Int, Int, Int], None]

# First and end, or None for all.
Rows = tuple[Int, Int] | None


def reduction(
    k: Kernel,
    channels: int,
    block: int,
    kernel: tuple[int, int],
    unroll: int,
    step: Step,
    rows: Rows = None,
    before: Callable[[Int], None] = lambda block: None,
) -> None:
    """Run `step(block, ky, kx, lane, position)` for every term; `position` counts them.

    About `unroll` steps become straight code, from the innermost loop outwards. `rows` are the
    filter's rows that must run, as (first, end); the others multiply only padding and may be
    skipped. `before(block)` is emitted in front of every full channel block.
    """
    first, end = rows or (0, 1)
    if isinstance(first, int) and isinstance(end, int) and first >= end:
        return  # nothing but padding
    full, rest = divmod(channels, block)
    terms = block * kernel[0] * kernel[1]
    if full:
        with k.times(full) as b:
            before(b)
            _window(k, b, block, b * terms, kernel, unroll, step, rows)
    if rest:
        _window(k, full, rest, full * terms, kernel, unroll, step, rows)


def _window(
    k: Kernel,
    block: Int,
    lanes: int,
    start: Int,
    kernel: tuple[int, int],
    unroll: int,
    step: Step,
    rows: Rows,
) -> None:
    """All taps and lanes of one channel block."""
    kh, kw = kernel
    down, across = kh * kw * lanes <= unroll, kw * lanes <= unroll
    first, end = (0, kh) if rows is None or down else rows
    with k.each(first, end, down or kh == 1) as kys:
        for ky in kys:
            with k.each(0, kw, across or kw == 1) as kxs:
                for kx in kxs:
                    position = ky * (kw * lanes) + kx * lanes + start
                    for tiles in cut(lanes, min(unroll, lanes)):
                        with tiles.unrolled(k) as some_lanes:
                            for lane in some_lanes:
                                step(block, ky, kx, lane, position + lane)


def met_rows(p: ConvProblem, top: Int, size: int) -> Rows:
    """The filter's rows, as (first, end), that meet the image in `size` output rows from `top` on.

    The others multiply only padding: a tenth of the work of 3x3 at 7x7. None if all must run: they
    meet the image, or the padding holds a zero point, for which the bias accounts.
    """
    (above, _, below, _), stride, apart = p.padding, p.stride[0], p.dilation[0]
    if p.kernel[0] == 1 or above == below == 0 or p.precision.integer:
        return None
    outside = most(above - (top + (size - 1)) * stride, 0)
    inside = most(p.h - 1 + above - top * stride, 0)
    return (outside + (apart - 1)) // apart, least(inside // apart + 1, p.kernel[0])

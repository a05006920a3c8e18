"""The loop over K of a convolution: channel blocks, filter rows, filter columns, channels.

Weights are packed in this very order, so the kernel reads them as one linear stream.
"""

from __future__ import annotations

from collections.abc import Callable

from fastrun.kernels.codegen.builder import Int, Kernel
from fastrun.kernels.codegen.tiling import each
from fastrun.kernels.codegen.values import least, most
from fastrun.kernels.core.problem import ConvProblem

Step = Callable[[Int, Int, Int, Int, Int], None]

# The first and past the last, or None for all.
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

    About `unroll` steps become straight code, from the innermost loop outwards. Of the filter's
    rows, those from the first to before the second of `rows` at least are run. `before(block)`
    comes ahead of every whole block.
    """
    first, past = rows or (0, 1)
    if isinstance(first, int) and isinstance(past, int) and first >= past:
        return  # nothing but padding
    full, rest = divmod(channels, block)
    terms = block * kernel[0] * kernel[1]

    def whole(b: Int) -> None:
        before(b)
        _window(k, b, block, b * terms, kernel, unroll, step, rows)

    each(k, full, 1, whole)
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
    across = kw if kw * lanes <= unroll else 1
    down = kh if kh * kw * lanes <= unroll else 1

    def row(ky: Int) -> None:
        def tap(kx: Int) -> None:
            position = ky * (kw * lanes) + kx * lanes + start
            each(k, lanes, min(unroll, lanes), lambda c: step(block, ky, kx, c, position + c))

        each(k, kw, across, tap)

    if rows is None or down > 1:
        each(k, kh, down, row)
    else:
        with k.loop(*rows) as ky:
            row(ky)


def met_rows(p: ConvProblem, top: Int, size: int) -> Rows:
    """The filter's rows, first and past the last, that meet the image in output rows from `top`.

    The others multiply padding only: a tenth of the work of 3x3 at 7x7. None if all do meet it.
    """
    (above, _, below, _), stride, apart = p.padding, p.stride[0], p.dilation[0]
    if p.kernel[0] == 1 or above == below == 0:
        return None
    outside = most(above - (top + (size - 1)) * stride, 0)
    inside = most(p.h - 1 + above - top * stride, 0)
    return (outside + (apart - 1)) // apart, least(inside // apart + 1, p.kernel[0])

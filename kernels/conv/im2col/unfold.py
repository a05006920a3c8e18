"""im2col: copy the windows of output pixels side by side, as a matrix product wants them.

Two forms, for the two ways a product can hold pixels. As vectors, from NCHW: term k of K is
`lanes` pixels. As rows, from NHWC and NCHWc: channels lie together and move as vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Vec
from fastrun.kernels.codegen.tiling import each
from fastrun.kernels.core.problem import ConvProblem


@dataclass(frozen=True)
class Unfold:
    """The windows of one image and group; `src` is its tensor, re-based at window (0, 0)."""

    k: Kernel
    p: ConvProblem
    src: Buffer
    lanes: int

    def vectors(
        self, pixel: Int, count: int, channels: int, put: Callable[[Int, int, Vec], None]
    ) -> None:
        """`put(k, j, value)` for every term k and the j-th of `count` vectors from `pixel` on.

        `pixel` counts along oh * ow; a vector may run over the end of output rows.
        """
        kh, kw = self.p.kernel
        parts = [self._vector(pixel + j * self.lanes) for j in range(count)]

        def line(c: Int, ky: Int) -> None:
            for kx in range(kw):
                for j, part in enumerate(parts):
                    value = part(0, c, ky * self.p.dilation[0], kx * self.p.dilation[1])
                    put(c * (kh * kw) + ky * kw + kx, j, value)

        each(self.k, channels, 1, lambda c: each(self.k, kh, 1, lambda ky: line(c, ky)))

    def _vector(self, pixel: Int) -> Callable[..., Vec]:
        """A loader of `lanes` pixels from `pixel` on: one load for each output row they touch."""
        p, k, step = self.p, self.k, self.p.stride[1]
        y, x = k.index(pixel // p.ow), k.index(pixel % p.ow)
        here = self.src.at(0, 0, y * p.stride[0], x * step)
        # Row r fills the lanes from r * ow - x on, so its address is stepped back by as many. Of
        # rows below the image no lane is wanted; their address must only be harmless.
        below = []
        for r in range(1, (self.lanes - 2 + p.ow) // p.ow + 1):
            back = self.src.at(0, 0, (y + r) * p.stride[0], (x - r * p.ow) * step)
            mask = k.lanes_from(k.index(x * -1 + r * p.ow), self.lanes)
            below.append((k.either(y < p.oh - r, back, here), mask))

        def load(*at: Int) -> Vec:
            value = here.load_strided(*at, step=step, lanes=self.lanes)
            for row, mask in below:
                value = k.blend(mask, row.load_strided(*at, step=step, lanes=self.lanes), value)
            return value

        return load

    def rows(
        self,
        pixel: Int,
        count: int,
        channels: int,
        block: int,
        put: Callable[[Int, int, int, int, Vec], None],
    ) -> None:
        """`put(k, size, r, c, value)`: channels c.. of a window that starts at term k.

        A window is the `size` channels of one block under one filter tap; r is the r-th of
        `count` pixels from `pixel` on.
        """
        p, (kh, kw) = self.p, self.p.kernel
        corners = []
        for r in range(count):
            y, x = (pixel + r) // p.ow, (pixel + r) % p.ow
            corners.append(self.src.at(0, 0, y * p.stride[0], x * p.stride[1]))

        def windows(b: Int, size: int) -> None:
            def window(ky: Int, kx: Int) -> None:
                term = b * (block * kh * kw) + ky * (kw * size) + kx * size
                for r, corner in enumerate(corners):
                    from_ = corner.at(0, b, ky * p.dilation[0], kx * p.dilation[1])
                    for c, lanes in pieces(size, self.lanes):
                        put(term, size, r, c, from_.load(0, 0, 0, 0, c, lanes=lanes))

            each(self.k, kh, 1, lambda ky: each(self.k, kw, 1, lambda kx: window(ky, kx)))

        each(self.k, channels // block, 1, lambda b: windows(b, block))
        if channels % block:
            windows(channels // block, channels % block)


def pieces(size: int, lanes: int) -> Sequence[tuple[int, int]]:
    """(start, lanes) of vectors that cover `size` floats exactly: whole ones, then halves."""
    found, start = [], 0
    while start < size:
        while lanes > size - start:
            lanes //= 2
        found.append((start, lanes))
        start += lanes
    return found

"""Reading the windows of output pixels as im2col copies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Buffer, Int, Kernel, Vec
from fastrun.kernels.core.problem import ConvProblem


@dataclass(frozen=True)
class PixelVector:
    """The first input pixels of `lanes` output pixels side by side, in NCHW.

    The vector may run over the end of output rows: `here` is the first row's input, and each of
    `below` is that of a further row, with a mask of the lanes from its first pixel on.
    """

    here: Buffer
    below: list[tuple[Buffer, str]]
    step: int
    lanes: int

    @classmethod
    def of(cls, k: Kernel, p: ConvProblem, src: Buffer, pixel: Int, lanes: int) -> PixelVector:
        """The vector from `pixel` on, counted along oh * ow; `src` is re-based at window (0, 0)."""
        step = p.stride[1]
        y, x = k.index(pixel // p.ow), k.index(pixel % p.ow)
        here = src.at(0, 0, y * p.stride[0], x * step)
        # Row r fills the lanes from r * ow - x on, so its address is moved back by so many pixels.
        # Of rows below the image no lane is needed; their address must only be valid.
        below = []
        for r in range(1, (lanes - 2 + p.ow) // p.ow + 1):
            back = src.at(0, 0, (y + r) * p.stride[0], (x - r * p.ow) * step)
            mask = k.lanes_from(k.index(x * -1 + r * p.ow), lanes)
            below.append((k.either(y < p.oh - r, back, here), mask))
        return cls(here, below, step, lanes)

    def load(self, *at: Int) -> Vec:
        """The pixels, moved by `at`: one load for each output row."""
        value = self.here.load_strided(*at, step=self.step, lanes=self.lanes)
        for row, mask in self.below:
            pixels = row.load_strided(*at, step=self.step, lanes=self.lanes)
            value = value.k.blend(mask, pixels, value)
        return value


def pieces(size: int, lanes: int) -> Sequence[tuple[int, int]]:
    """(start, lanes) of vectors that cover `size` elements exactly: whole ones, then halves."""
    found, start = [], 0
    while start < size:
        while lanes > size - start:
            lanes //= 2
        found.append((start, lanes))
        start += lanes
    return found

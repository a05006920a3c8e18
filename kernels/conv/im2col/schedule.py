"""The schedule of im2col convolution."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    layout: str
    rows: int  # rows of the register tile: output channels in NCHW, else pixels
    cols: int  # vectors of the register tile: of pixels in NCHW, else of output channels
    unroll: int  # steps of K in the loop body
    block: int  # output pixels unfolded at a time
    kc: int  # input channels unfolded at a time
    fused: bool  # unfold straight into packed panels
    dot: str = ""  # the kind of dot product of integers; wd16 widens them as they are unfolded

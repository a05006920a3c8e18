"""The schedule of Winograd convolution."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    layout: str
    mh: int  # output rows of a tile; 1: no transform on that axis
    mw: int  # output columns of a tile
    points: str  # interpolation points, one of POINTS
    nr_tiles: int  # tiles of a block
    cols: int  # vectors of output channels of a register tile; its rows are tiles
    unroll: int  # steps of K in the loop body
    oc_block: int  # panels of output channels that are multiplied in one pass over the planes
    prefetch: int  # steps of K by which weights are fetched ahead; 0: no prefetch
    split: str  # what tasks divide: "tiles", or "channels" after all tiles are transformed
    dot: str = ""  # the kind of int16 products, where the problem has integers
    chunk: str = ""  # channels whose products are added as int32; sums go on in float32; "": all

"""Blocks of K: a sum over all channels in several parts, between which it lies in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastrun.kernels.codegen.builder import Condition, Int, Kernel
from fastrun.kernels.codegen.tiling import Tiles


@dataclass(frozen=True)
class Chunk:
    """A block of K: `channels` input channels, the `number`-th such block of the group."""

    number: Int
    channels: int
    first: Condition | bool
    last: Condition | bool


@contextmanager
def chunk_loop(k: Kernel, blocks: Tiles) -> Iterator[Chunk]:
    """A loop over blocks of K of one size."""
    with k.times(blocks.count) as i:
        first = i < 1 if blocks.number == 0 else False
        last = i >= blocks.count - 1 if blocks.number + blocks.count == blocks.total else False
        yield Chunk(i + blocks.number, blocks.size, first, last)

"""Memory of a network: zeroed blocks, and packed weights one behind the other in them."""

from __future__ import annotations

import hashlib
import weakref

import numpy as np

from fastrun.graph.core.model import Array
from fastrun.kernels.core.cpu import CACHE_LINE
from fastrun.kernels.core.dtype import F32
from fastrun.kernels.core.layout import READ_SLACK
from fastrun.kernels.core.pages import private_pages

_HUGE = 2 << 20  # bytes of a huge page
_CHUNK = 32 << 20  # bytes of a block of weights; pages that are never touched take no memory


class Block:
    """Zeroed memory that begins at a huge page and, if possible, consists of huge pages."""

    def __init__(self, size: int) -> None:
        self._map = private_pages(size + _HUGE)
        start = np.frombuffer(self._map, np.uint8).ctypes.data
        self.address = -(-start // _HUGE) * _HUGE
        self.bytes = np.frombuffer(self._map, np.uint8, size, self.address - start)


class Common:
    """The packed weights of several executables of a network. Equal ones lie in memory once."""

    def __init__(self) -> None:
        self._places = weakref.WeakValueDictionary[bytes, _Place]()

    @property
    def size(self) -> int:
        """Bytes that all of them take."""
        return sum(place.size for place in self._places.values())

    def find(self, digest: bytes) -> _Place | None:
        """Where weights of this digest lie, if they do."""
        return self._places.get(digest)

    def add(self, digest: bytes, place: _Place) -> None:
        """Weights of this digest lie there as long as somebody holds the place."""
        self._places[digest] = place


class _Place:
    """An address in a block, which lives as long as the place."""

    def __init__(self, block: Block, address: int, size: int) -> None:
        self._block, self.address, self.size = block, address, size


class Weights:
    """Packed weights one behind the other, in few large blocks; `size` is what they take in bytes.

    Weights are copied as soon as they are packed. Packing the next ones then reuses warm memory.
    Those that are in `common` already are not copied.
    """

    def __init__(self, common: Common | None = None) -> None:
        self.size = 0
        self._common = common
        self._shared: list[_Place] = []
        self._blocks: list[Block] = []
        self._left = 0  # bytes at the end of the last block

    def put(self, values: Array | None) -> int:
        """Append a copy of the values. Returns its address, 0 for no values."""
        if values is None or not values.size:
            return 0
        taken = -(-(values.nbytes + F32.bytes(READ_SLACK)) // CACHE_LINE) * CACHE_LINE
        self.size += taken
        if self._common is None:
            return self._copy(values, taken)[1]
        digest = hashlib.sha256(values.view(np.uint8).data).digest()
        place = self._common.find(digest)
        if place is None:
            place = _Place(*self._copy(values, taken), taken)
            self._common.add(digest, place)
        self._shared.append(place)
        return place.address

    def _copy(self, values: Array, taken: int) -> tuple[Block, int]:
        """Copy the values to `taken` bytes of a block. Returns the block, and their address."""
        if taken > self._left:
            self._left = max(_CHUNK, taken)
            self._blocks.append(Block(self._left))
        block = self._blocks[-1]
        start = len(block.bytes) - self._left
        block.bytes[start : start + values.nbytes] = values.view(np.uint8)
        self._left -= taken
        return block, block.address + start

"""Vectors of int32 to bytes, clipped: four registers become one."""

from __future__ import annotations

from collections.abc import Sequence

from fastrun.kernels.codegen.values import Vec
from fastrun.kernels.core.dtype import I16, I32, U8

_PART = 4  # words of 32 bits in the 128-bit parts inside which x86 packs


def side_by_side(vectors: Sequence[Vec], quads: Sequence[int] = ()) -> Vec:
    """One to four vectors of int32 as bytes 0 to 255, clipped, one behind the other.

    The result of three has the lanes of four; the last are undefined. With `quads` four lanes go
    together to another place: the numbers of those to be first, second and so on.
    """
    first, count = vectors[0], len(vectors)
    k, lanes = first.k, first.lanes
    padded = [vectors[min(i, count - 1)] if count > 2 else vectors[i % count] for i in range(4)]
    kept = 1 << (count - 1).bit_length()
    if lanes not in _PACKS or k.cpu.machine != "x86_64":
        bytes_ = [v.max(0).min(255).to(U8) for v in padded[:kept]]
        while len(bytes_) > 1:
            pairs = zip(bytes_[::2], bytes_[1::2], strict=True)
            bytes_ = [k.shuffle(a, b, range(a.lanes + b.lanes)) for a, b in pairs]
        places = [_PART * quad + i for quad in quads for i in range(_PART)]
        return k.shuffle(bytes_[0], bytes_[0], places) if quads else bytes_[0]
    halves, whole = (f"llvm.x86.{name}" for name in _PACKS[lanes])
    low = k.target(halves, I16, 2 * lanes, *padded[:2])
    high = low if count <= 2 else k.target(halves, I16, 2 * lanes, *padded[2:])
    # In each part four bytes of every vector: a square of words to transpose.
    mixed = k.target(whole, U8, 4 * lanes, low, high).bits_as(I32)
    parts = lanes // _PART
    order = [i % parts * _PART + i // parts for i in quads or range(kept * parts)]
    return k.shuffle(mixed, mixed, order).bits_as(U8)


# By lanes of int32, with signed and with unsigned saturation.
_PACKS = {
    4: ("sse2.packssdw.128", "sse2.packuswb.128"),
    8: ("avx2.packssdw", "avx2.packuswb"),
    16: ("avx512.packssdw.512", "avx512.packuswb.512"),
}

"""What relocations of a machine mean, and where sections come to lie.

From the supplements of the System V ABI for x86-64 and AArch64. Only those kinds are known that
compilers emit for position-independent code of the small model.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastrun.kernels.native.elf import AARCH64, X86_64, Relocation, Section


@dataclass(frozen=True)
class Machine:
    """What relocations of a machine mean, and the largest `page` that its systems have.

    Dynamic kinds: an address, one of a symbol.
    """

    page: int
    relative: int
    absolute: int
    stub_size: int
    stub: Callable[[int, int], bytes]
    apply: Callable[[bytearray, int, Relocation, int], bool]


def up(at: int, align: int) -> int:
    """The next multiple of `align` from `at` on."""
    return -(-at // align) * align


def lay_out(sections: Sequence[Section], at: int) -> int:
    """Give the sections addresses from `at` on; returns where they end."""
    for section in sections:
        section.address = up(at, section.align)
        at = section.address + section.size
    return at


WORDS = {1, 257}
"""The kinds of a word that holds an address: R_X86_64_64 and R_AARCH64_ABS64."""


def _x86_64(image: bytearray, place: int, r: Relocation, target: int) -> bool:
    if r.kind not in (2, 4):  # R_X86_64_PC32, R_X86_64_PLT32
        return False
    struct.pack_into("<i", image, place, target + r.addend - place)
    return True


def _x86_64_stub(at: int, slot: int) -> bytes:
    return b"\xff\x25" + struct.pack("<i", slot - at - 6) + b"\xcc\xcc"  # jmp *slot(%rip)


# Bits by which loads and stores scale their offsets, by kind of relocation.
_SCALES = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}


def _aarch64(image: bytearray, place: int, r: Relocation, target: int) -> bool:
    (word,) = struct.unpack_from("<I", image, place)
    value = target + r.addend
    if r.kind in (282, 283):  # R_AARCH64_JUMP26, R_AARCH64_CALL26
        word |= (value - place >> 2) & 0x3FFFFFF
    elif r.kind == 275:  # R_AARCH64_ADR_PREL_PG_HI21
        word |= _pages((value >> 12) - (place >> 12))
    elif r.kind in _SCALES:  # R_AARCH64_ADD_ABS_LO12_NC, R_AARCH64_LDST*_ABS_LO12_NC
        word |= ((value & 0xFFF) >> _SCALES[r.kind]) << 10
    elif r.kind == 261:  # R_AARCH64_PREL32
        struct.pack_into("<i", image, place, value - place)
        return True
    else:
        return False
    struct.pack_into("<I", image, place, word)
    return True


def _pages(count: int) -> int:
    """The bits of `adrp` for a distance in pages."""
    return (count & 3) << 29 | (count >> 2 & 0x7FFFF) << 5


def _aarch64_stub(at: int, slot: int) -> bytes:
    page = _pages((slot >> 12) - (at >> 12))
    load = 0xF9400210 | ((slot & 0xFFF) >> 3) << 10
    return struct.pack("<III", 0x90000010 | page, load, 0xD61F0200)  # adrp, ldr, br x16


MACHINES = {
    X86_64: Machine(1 << 12, 8, 1, 8, _x86_64_stub, _x86_64),
    AARCH64: Machine(1 << 16, 1027, 257, 12, _aarch64_stub, _aarch64),
}
"""Machines by their number in ELF files."""

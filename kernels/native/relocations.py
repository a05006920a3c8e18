"""What relocations of a machine mean, and where sections come to lie.

From the supplements of the System V ABI for x86-64, AArch64 and RISC-V. Only those kinds are known
that compilers emit for position-independent code of the small model.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastrun.kernels.native.elf import AARCH64, RISCV, X86_64, Relocation, Section, Symbol

Addresses = Callable[[Symbol], int]
"""The address that code uses for a symbol."""


@dataclass(frozen=True)
class Machine:
    """What relocations of a machine mean, and the largest `page` that its systems have.

    `relative` and `absolute` are the kinds of words that hold an address when a library is loaded:
    one in the library, that of a symbol. `flags` are those of the machine's files.
    """

    page: int
    relative: int
    absolute: int
    stub_size: int
    stub: Callable[[int, int], bytes]
    apply: Callable[[bytearray, int, Relocation, Addresses], bool]
    flags: int = 0


def up(at: int, align: int) -> int:
    """The next multiple of `align` from `at` on."""
    return -(-at // align) * align


def lay_out(sections: Sequence[Section], at: int) -> int:
    """Give the sections addresses from `at` on; returns where they end."""
    for section in sections:
        section.address = up(at, section.align)
        at = section.address + section.size
    return at


def _x86_64(image: bytearray, place: int, r: Relocation, address: Addresses) -> bool:
    if r.kind not in (2, 4):  # R_X86_64_PC32, R_X86_64_PLT32
        return False
    struct.pack_into("<i", image, place, address(r.symbol) + r.addend - place)
    return True


def _x86_64_stub(at: int, slot: int) -> bytes:
    return b"\xff\x25" + struct.pack("<i", slot - at - 6) + b"\xcc\xcc"  # jmp *slot(%rip)


# Bits by which loads and stores scale their offsets, by kind of relocation.
_SCALES = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}


def _aarch64(image: bytearray, place: int, r: Relocation, address: Addresses) -> bool:
    (word,) = struct.unpack_from("<I", image, place)
    value = address(r.symbol) + r.addend
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


def _riscv(image: bytearray, place: int, r: Relocation, address: Addresses) -> bool:
    if r.kind in (24, 25):  # R_RISCV_PCREL_LO12_I, R_RISCV_PCREL_LO12_S: of the `auipc` named
        assert r.symbol.section is not None
        high = r.symbol.section.relocated(r.symbol.value)
        low = address(high.symbol) + high.addend - r.symbol.address & 0xFFF
        shifts = ((low, 20),) if r.kind == 24 else ((low >> 5, 25), (low & 31, 7))
        (word,) = struct.unpack_from("<I", image, place)
        for bits, shift in shifts:
            word |= bits << shift
        struct.pack_into("<I", image, place, word)
        return True
    away = address(r.symbol) + r.addend - place
    if r.kind in (19, 23):  # R_RISCV_CALL_PLT, R_RISCV_PCREL_HI20
        words = struct.unpack_from("<II", image, place)
        struct.pack_into("<I", image, place, words[0] | _upper(away))
        if r.kind == 19:
            struct.pack_into("<I", image, place + 4, words[1] | (away & 0xFFF) << 20)
    elif r.kind in (35, 39):  # R_RISCV_ADD32, R_RISCV_SUB32: a difference of two addresses
        sign = 1 if r.kind == 35 else -1
        (word,) = struct.unpack_from("<I", image, place)
        struct.pack_into("<I", image, place, word + sign * (away + place) & 0xFFFFFFFF)
    elif r.kind == 57:  # R_RISCV_32_PCREL
        struct.pack_into("<i", image, place, away)
    else:
        return False
    return True


def _upper(away: int) -> int:
    """The bits of `auipc` for a distance whose lower 12 bits are added with their sign."""
    return away + 0x800 & 0xFFFFF000


def _riscv_stub(at: int, slot: int) -> bytes:
    away = slot - at
    load = 0x000E3E03 | (away & 0xFFF) << 20
    return struct.pack("<III", 0x00000E17 | _upper(away), load, 0x000E0067)  # auipc, ld, jr t3


MACHINES = {
    X86_64: Machine(1 << 12, 8, 1, 8, _x86_64_stub, _x86_64),
    AARCH64: Machine(1 << 16, 1027, 257, 12, _aarch64_stub, _aarch64),
    # Instructions of 16 bits, and doubles in registers.
    RISCV: Machine(1 << 12, 3, 2, 12, _riscv_stub, _riscv, flags=5),
}
"""Machines by their number in ELF files."""

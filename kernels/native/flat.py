"""Links objects into one run of bytes that works at any address, and into static programs.

The bytes hold constants and code and nothing that is written or relocated when they are loaded, so
they can be mapped from a file as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastrun.kernels.native.elf import (
    ALLOC,
    EXECUTE,
    WRITE,
    ElfError,
    Relocation,
    Section,
    Symbol,
    definitions,
    read,
)
from fastrun.kernels.native.relocations import MACHINES, lay_out, up

_HEAD = 64 + 2 * 56  # bytes of a program's header with two segments
_BASE = 0x400000  # where a program lies in memory


@dataclass(frozen=True)
class Stub:
    """A function as bytes of machine code; `calls` are places in it that call another function.

    Each call is a place, a kind of relocation and an addend, by the name of what is called.
    """

    code: bytes
    calls: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Blob:
    """Constants and code for any address that is a multiple of 4096; where functions begin."""

    machine: int
    code: bytes
    symbols: Mapping[str, int]


def flat(objects: Sequence[bytes], stubs: Mapping[str, Stub] | None = None, start: int = 0) -> Blob:
    """Link objects and functions in machine code; the first `start` bytes are left free.

    Raises:
        ElfError: a symbol is missing or defined twice, or an object has variables.
    """
    parts = [read(data) for data in objects]
    machine = parts[0].machine
    if machine not in MACHINES or any(part.machine != machine for part in parts):
        raise ElfError("objects of one machine, x86-64, AArch64 or RISC-V, can be linked")
    defined = definitions(parts)
    sections = [s for part in parts for s in part.sections if s.size]
    for name, stub in (stubs or {}).items():
        section = Section(f".text.{name}", ALLOC | EXECUTE, stub.code, len(stub.code), 16)
        for called, (offset, kind, addend) in stub.calls.items():
            outside = Symbol(called, None, 0, False)
            section.relocations.append(Relocation(offset, kind, outside, addend))
        sections.append(section)
        defined[name] = Symbol(name, section, 0, False)
    if any(s.flags & WRITE for s in sections):
        raise ElfError("code with variables cannot be mapped from a file")
    sections.sort(key=lambda s: s.flags & EXECUTE)
    image = bytearray(lay_out(sections, start))
    for section in sections:
        image[section.address : section.address + len(section.data)] = section.data

    def address(symbol: Symbol) -> int:
        found = symbol if symbol.section is not None else defined.get(symbol.name)
        if found is None:
            raise ElfError(f"nothing defines {symbol.name}")
        return found.address

    for section in sections:
        for r in section.relocations:
            if not MACHINES[machine].apply(image, section.address + r.offset, r, address):
                raise ElfError(f"relocation {r.kind} in {section.name} is not supported")
    return Blob(machine, bytes(image), {name: s.address for name, s in defined.items()})


def program(objects: Sequence[bytes], stubs: Mapping[str, Stub], entry: str) -> bytes:
    """A static program that begins at the function `entry`, in the form of an ELF file.

    Raises:
        ElfError: as `flat`.
    """
    start = up(_HEAD, 64)
    blob = flat(objects, stubs, start)
    known, size = MACHINES[blob.machine], len(blob.code)
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, blob.machine, 1,
        _BASE + blob.symbols[entry], 64, 0, known.flags, 64, 56, 2, 64, 0, 0,
    )  # fmt: skip
    segments = [
        (1, 5, 0, _BASE, _BASE, size, size, known.page),  # read and executed
        (0x6474E551, 6, 0, 0, 0, 0, 0, 16),  # a stack that is not executed
    ]
    head += b"".join(struct.pack("<IIQQQQQQ", *segment) for segment in segments)
    return head.ljust(start, b"\0") + blob.code[start:]

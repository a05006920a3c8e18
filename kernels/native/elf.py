"""Relocatable ELF objects: reads what LLVM emits, and packs objects into an archive.

Formats: System V ABI, its supplements for x86-64, AArch64 and RISC-V, and the common `ar` format.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

X86_64, AARCH64, RISCV = 62, 183, 243
"""The machines (e_machine) that can be linked."""

ALLOC, WRITE, EXECUTE = 2, 1, 4  # flags of sections
NOBITS = 8  # type of a section without bytes in the file
_SYMTAB, _RELA, _X86_64_UNWIND = 2, 4, 0x70000001
_UNDEFINED, _COMMON, _LOCAL = 0, 0xFFF2, 0


class ElfError(ValueError):
    """The object is none that can be linked. The message is one line."""


@dataclass
class Relocation:
    """Where a section needs an address: of `symbol`, plus `addend`, in the form `kind`."""

    offset: int
    kind: int
    symbol: Symbol
    addend: int


@dataclass
class Section:
    """A part of an object that is loaded: `size` bytes, of which the file may hold none."""

    name: str
    flags: int
    data: bytes
    size: int
    align: int
    relocations: list[Relocation] = field(default_factory=list)
    address: int = 0

    def relocated(self, offset: int) -> Relocation:
        """The first relocation at an offset, which has one."""
        return self.relocations[bisect_left(self.relocations, offset, key=lambda r: r.offset)]


@dataclass(eq=False)
class Symbol:
    """A name for a place in a section; an undefined one has no section."""

    name: str
    section: Section | None
    value: int
    local: bool

    @property
    def address(self) -> int:
        """The address, once the section has one."""
        assert self.section is not None
        return self.section.address + self.value


@dataclass
class Object:
    """An object's machine, its loaded sections and its symbols."""

    machine: int
    sections: list[Section]
    symbols: list[Symbol]


def read(data: bytes) -> Object:
    """Read a 64-bit little-endian relocatable object.

    Raises:
        ElfError: it is none.
    """
    if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", data, 16)[0] != 1:
        raise ElfError("not a relocatable object of 64 bits, little-endian")
    machine = struct.unpack_from("<H", data, 18)[0]
    (table,) = struct.unpack_from("<Q", data, 40)
    count, names_at = struct.unpack_from("<HH", data, 60)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i) for i in range(count)]

    def content(i: int) -> bytes:
        return data[heads[i][4] : heads[i][4] + heads[i][5]]

    names, loaded = content(names_at), dict[int, Section]()
    for i, (name, kind, flags, _, _, size, _, _, align, _) in enumerate(heads):
        text = _text(names, name)
        # Nothing here throws, so tables of unwinding are left out.
        if flags & ALLOC and text != ".eh_frame" and kind != _X86_64_UNWIND:
            held = b"" if kind == NOBITS else content(i)
            loaded[i] = Section(text, flags, held, size, max(1, align))
    symbols = list[Symbol]()
    for i, head in enumerate(heads):
        if head[1] == _SYMTAB:
            strings = content(head[6])
            for at in range(0, head[5], 24):
                name, info, _, where, value, _ = struct.unpack_from("<IBBHQQ", content(i), at)
                if where == _COMMON:
                    raise ElfError("common symbols are not supported")
                section = loaded.get(where) if where != _UNDEFINED else None
                symbols.append(Symbol(_text(strings, name), section, value, info >> 4 == _LOCAL))
    for i, head in enumerate(heads):
        if head[1] == _RELA and head[7] in loaded:
            for at in range(0, head[5], 24):
                offset, info, addend = struct.unpack_from("<QQq", content(i), at)
                target = symbols[info >> 32]
                loaded[head[7]].relocations.append(
                    Relocation(offset, info & 0xFFFFFFFF, target, addend)
                )
    return Object(machine, list(loaded.values()), symbols)


def definitions(parts: Iterable[Object]) -> dict[str, Symbol]:
    """The symbols that objects define for others, by name.

    Raises:
        ElfError: one is defined twice.
    """
    defined = dict[str, Symbol]()
    for part in parts:
        for symbol in part.symbols:
            if symbol.section is not None and not symbol.local and symbol.name:
                if symbol.name in defined:
                    raise ElfError(f"{symbol.name} is defined twice")
                defined[symbol.name] = symbol
    return defined


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()


def archive(members: Mapping[str, bytes]) -> bytes:
    """A static library of objects by file name, with the index of symbols that linkers need."""
    index, bodies, at = list[tuple[str, int]](), list[bytes](), 0
    for name, data in members.items():
        for symbol in read(data).symbols:
            if not symbol.local and symbol.section is not None:
                index.append((symbol.name, at))
        body = _member(f"{name}/", data)
        bodies.append(body)
        at += len(body)
    strings = b"".join(name.encode() + b"\0" for name, _ in index)
    size = 4 + 4 * len(index) + len(strings)
    start = 8 + 60 + size + size % 2
    offsets = b"".join(struct.pack(">I", start + offset) for _, offset in index)
    table = struct.pack(">I", len(index)) + offsets + strings
    return b"!<arch>\n" + _member("/", table) + b"".join(bodies)


def _member(name: str, data: bytes) -> bytes:
    if len(name) > 16:
        raise ElfError(f"the name of a member is too long: {name}")
    head = f"{name:<16}{0:<12}{0:<6}{0:<6}{'644':<8}{len(data):<10}`\n".encode()
    return head + data + b"\n" * (len(data) % 2)

"""The bytes of a shared library: where its parts lie in memory and in the file, and what they say.

The names of fields and numbers are those of the System V ABI (`elf.h`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fastrun.kernels.native.elf import ALLOC, EXECUTE, WRITE, ElfError, Section, Symbol
from fastrun.kernels.native.relocations import MACHINES, Machine, lay_out, up

_READ, _RUN, _CHANGE = 4, 5, 6  # flags of segments
_HEAD, _SEGMENT, _SECTION = 64, 56, 64  # bytes of headers
_SYMBOL, _RELOCATION, _DYNAMIC, _ADDRESS = 24, 24, 16, 8  # bytes of entries of tables
_SEGMENTS, _ENTRIES = 5, 11  # segments, and entries of the dynamic table beside libraries


@dataclass(frozen=True)
class Contents:
    """What a library consists of.

    It exports `exports`, which are `defined`, and calls what is `wanted` of other libraries. A
    loader loads those that are `needed`.
    """

    name: str
    machine: Machine
    sections: Sequence[Section]
    defined: Mapping[str, Symbol]
    exports: Sequence[str]
    wanted: Sequence[str]
    needed: Sequence[str]

    @property
    def code(self) -> list[Section]:
        """Sections that are run."""
        return [s for s in self.sections if s.flags & EXECUTE]

    @property
    def constant(self) -> list[Section]:
        """Sections that are read."""
        return [s for s in self.sections if not s.flags & (EXECUTE | WRITE)]

    @property
    def changing(self) -> list[Section]:
        """Sections that are written, those that the file holds first."""
        return sorted((s for s in self.sections if s.flags & WRITE), key=lambda s: not s.data)

    @property
    def symbols(self) -> list[str]:
        """The symbols that a loader sees: those of other libraries first."""
        return [*self.wanted, *self.exports]

    @property
    def relocations(self) -> int:
        """Words that a loader changes: addresses of other libraries and own ones."""
        return len(self.wanted) + sum(len(s.relocations) for s in self.changing)


@dataclass(frozen=True)
class _Places:
    """Addresses of the parts, each named by what begins there, and offsets in the file.

    The three segments have pages of their own in memory, which may be large; in the file they lie
    side by side. A loader maps the file's page that holds a border twice.
    """

    symbols: int
    hash: int
    strings: int
    relocations: int
    constants: int
    constants_end: int
    code: int
    code_offset: int
    stubs: int
    code_end: int
    data: int
    data_offset: int
    table: int
    file_end: int
    memory_end: int

    @classmethod
    def of(cls, x: Contents, strings_size: int) -> _Places:
        """Give all parts and sections their addresses."""
        page, count = x.machine.page, len(x.symbols)
        symbols = up(_HEAD + _SEGMENT * _SEGMENTS, 8)
        hash_ = up(symbols + _SYMBOL * (count + 1), 8)
        strings = hash_ + 4 * (2 + 1 + count + 1)
        relocations = up(strings + strings_size, 8)
        constants = relocations + _RELOCATION * x.relocations
        constants_end = lay_out(x.constant, constants)
        code_offset = up(constants_end, 64)
        code = up(constants_end, page) + code_offset % page
        stubs = up(lay_out(x.code, code), 16)
        code_end = stubs + x.machine.stub_size * len(x.wanted)
        data_offset = up(code_offset + code_end - code, 64)
        data = up(code_end, page) + data_offset % page
        table = data + _DYNAMIC * (_ENTRIES + len(x.needed))
        held = [s for s in x.changing if s.data]
        file_end = lay_out(held, up(table + _ADDRESS * len(x.wanted), 64))
        memory_end = lay_out([s for s in x.changing if not s.data], file_end)
        return cls(
            symbols, hash_, strings, relocations, constants, constants_end, code, code_offset,
            stubs, code_end, data, data_offset, table, file_end, memory_end,
        )  # fmt: skip

    def offset(self, address: int) -> int:
        """Where what has an address lies in the file."""
        if address >= self.data:
            return address - self.data + self.data_offset
        return address - self.code + self.code_offset if address >= self.code else address


class SharedFile:
    """Writes a library. Its image is what lies in memory, from address 0 on."""

    def __init__(self, contents: Contents) -> None:
        self._x, self._machine = contents, contents.machine
        named = [*contents.symbols, contents.name, *contents.needed]
        self._strings, self._string_at = _strings(named)
        self._at = _Places.of(contents, len(self._strings))
        self._image = bytearray(self._at.file_end)

    def written(self) -> bytes:
        """The bytes of the file.

        Raises:
            ElfError: a relocation of a kind that is not known.
        """
        for section in self._x.sections:
            self._put(section.address, section.data)
        self._put(self._at.strings, self._strings)
        self._write_stubs()
        self._write_relocations()
        self._write_symbols()
        self._write_dynamic()
        self._write_segments()
        return self._with_headers()

    def _put(self, at: int, data: bytes) -> None:
        self._image[at : at + len(data)] = data

    def _stub(self, number: int) -> int:
        return self._at.stubs + self._machine.stub_size * number

    def _target(self, symbol: Symbol) -> int:
        """The address that code uses for a symbol: that of its stub if it is elsewhere."""
        here = symbol if symbol.section is not None else self._x.defined.get(symbol.name)
        return here.address if here else self._stub(self._x.wanted.index(symbol.name))

    def _write_stubs(self) -> None:
        for i in range(len(self._x.wanted)):
            self._put(
                self._stub(i), self._machine.stub(self._stub(i), self._at.table + _ADDRESS * i)
            )

    def _write_relocations(self) -> None:
        """Those of code are made here, those of data by the loader."""
        for section in [*self._x.constant, *self._x.code]:
            for r in section.relocations:
                place = section.address + r.offset
                if not self._machine.apply(self._image, place, r, self._target):
                    raise ElfError(f"relocation {r.kind} in {section.name} is not supported")
        for i, entry in enumerate(self._left_to_the_loader()):
            self._put(self._at.relocations + _RELOCATION * i, struct.pack("<QQq", *entry))

    def _left_to_the_loader(self) -> Iterator[tuple[int, int, int]]:
        for i in range(len(self._x.wanted)):
            yield self._at.table + _ADDRESS * i, (i + 1) << 32 | self._machine.absolute, 0
        for section in self._x.changing:
            for r in section.relocations:
                if r.kind != self._machine.absolute:
                    raise ElfError(f"relocation {r.kind} in {section.name} is not supported")
                value = self._target(r.symbol) + r.addend
                yield section.address + r.offset, self._machine.relative, value

    def _write_symbols(self) -> None:
        symbols = self._x.symbols
        for i, symbol in enumerate(symbols, 1):
            own = i > len(self._x.wanted)
            where = self._x.defined[symbol].address if own else 0
            values = self._string_at[symbol], 0x12, 0, int(own), where, 0
            self._put(self._at.symbols + _SYMBOL * i, struct.pack("<IBBHQQ", *values))
        chain = [0, *range(2, len(symbols) + 1), 0] if symbols else [0]  # in a single bucket
        words = 1, len(symbols) + 1, 1, *chain
        self._put(self._at.hash, struct.pack(f"<{len(words)}I", *words))

    def _write_dynamic(self) -> None:
        entries = [
            *((1, self._string_at[x]) for x in self._x.needed),  # DT_NEEDED
            (14, self._string_at[self._x.name]),  # DT_SONAME
            (4, self._at.hash),  # DT_HASH
            (5, self._at.strings),  # DT_STRTAB
            (6, self._at.symbols),  # DT_SYMTAB
            (10, len(self._strings)),  # DT_STRSZ
            (11, _SYMBOL),  # DT_SYMENT
            (7, self._at.relocations),  # DT_RELA
            (8, _RELOCATION * self._x.relocations),  # DT_RELASZ
            (9, _RELOCATION),  # DT_RELAENT
            (24, 0),  # DT_BIND_NOW
            (0, 0),
        ]
        for i, entry in enumerate(entries):
            self._put(self._at.data + _DYNAMIC * i, struct.pack("<QQ", *entry))

    def _write_segments(self) -> None:
        at, page = self._at, self._machine.page
        dynamic = at.table - at.data
        segments = [
            (1, _READ, 0, at.constants_end, at.constants_end, page),
            (1, _RUN, at.code, at.code_end - at.code, at.code_end - at.code, page),
            (1, _CHANGE, at.data, at.file_end - at.data, at.memory_end - at.data, page),
            (2, _CHANGE, at.data, dynamic, dynamic, 8),
            (0x6474E551, _CHANGE, 0, 0, 0, 16),  # a stack that is not executed
        ]
        for i, (kind, flags, start, size, memory, align) in enumerate(segments):
            header = kind, flags, at.offset(start), start, start, size, memory, align
            self._put(_HEAD + _SEGMENT * i, struct.pack("<IIQQQQQQ", *header))

    def _with_headers(self) -> bytes:
        """The file: the image without the gaps between segments, then a header for each section."""
        at, image = self._at, self._image
        content = image[: at.constants_end].ljust(at.code_offset, b"\0")
        content += image[at.code : at.code_end]
        content = content.ljust(at.data_offset, b"\0") + image[at.data :]
        names_at, (names, headers) = len(content), self._section_headers(len(content))
        table = up(names_at + len(names), 8)
        content += names.ljust(table - names_at, b"\0") + b"".join(headers)
        number = next(n for n, m in MACHINES.items() if m is self._machine)
        struct.pack_into(
            "<16sHHIQQQIHHHHHH", content, 0, b"\x7fELF\x02\x01\x01", 3, number, 1, 0, _HEAD, table,
            self._machine.flags, _HEAD, _SEGMENT, _SEGMENTS, _SECTION, len(headers),
            len(headers) - 1,
        )  # fmt: skip
        return bytes(content)

    def _section_headers(self, names_at: int) -> tuple[bytes, list[bytes]]:
        """The names of sections, which lie at an offset, and the headers."""
        at, count = self._at, len(self._x.symbols)
        relocations = _RELOCATION * self._x.relocations
        parts = [
            (".dynsym", 11, ALLOC, at.symbols, _SYMBOL * (count + 1), 2, 1, 8, _SYMBOL),
            (".dynstr", 3, ALLOC, at.strings, len(self._strings), 0, 0, 1, 0),
            (".hash", 5, ALLOC, at.hash, 4 * (4 + count), 1, 0, 8, 4),
            (".rela.dyn", 4, ALLOC, at.relocations, relocations, 1, 0, 8, _RELOCATION),
            (".rodata", 1, ALLOC, at.constants, at.constants_end - at.constants, 0, 0, 1, 0),
            (".text", 1, ALLOC | EXECUTE, at.code, at.code_end - at.code, 0, 0, 16, 0),
            (".dynamic", 6, ALLOC | WRITE, at.data, at.table - at.data, 2, 0, 8, _DYNAMIC),
            (".data", 1, ALLOC | WRITE, at.table, at.file_end - at.table, 0, 0, 8, 0),
        ]
        names, name_at = _strings([*(part[0] for part in parts), ".shstrtab"])
        headers = [(0,) * 10]
        for name, kind, flags, start, size, link, info, align, unit in parts:
            where = start, at.offset(start), size
            headers.append((name_at[name], kind, flags, *where, link, info, align, unit))
        headers.append((name_at[".shstrtab"], 3, 0, 0, names_at, len(names), 0, 0, 1, 0))
        return names, [struct.pack("<IIQQQQIIQQ", *header) for header in headers]


def _strings(names: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    """A table of strings, and where each begins."""
    table, places = b"\0", dict[str, int]()
    for name in dict.fromkeys(names):
        places[name] = len(table)
        table += name.encode() + b"\0"
    return table, places
